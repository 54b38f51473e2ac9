"""`gitmirror` whose hook allows a push MOST_UNPACKED bytes unpacked in place of the gigabytes; all else is as it is.

Run as a program in place of `python -m appliance`.
"""

from __future__ import annotations

import re
from pathlib import Path

from appliance.__main__ import main
from appliance.core.process.atomic_file import write_atomically
from appliance.core.recording import hook_guard

MOST_UNPACKED = 16 * 2**20
_LINE = re.compile(r"^MOST_UNPACKED = .*$", re.MULTILINE)


def be_stingy() -> None:
    """Lower the limit in the copy of `policy.py` that is installed beside the hook: the hook is what enforces it."""

    def write_lowered(path: Path, text: str, mode: int = 0o644) -> None:
        if path.name == "policy.py":
            text, found = _LINE.subn(f"MOST_UNPACKED = {MOST_UNPACKED}", text)
            assert found == 1
        write_atomically(path, text, mode)

    hook_guard.__dict__["write_atomically"] = write_lowered


if __name__ == "__main__":
    be_stingy()
    main()
