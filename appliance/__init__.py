"""gitmirror: hot git mirrors for agent guests, and a record of what every agent did."""

from __future__ import annotations

import os

__version__ = "0.1.0"


def version_text() -> str:
    """`gitmirror 0.1.0 (abc1234567)`: the version, and the commit when this is the packed file.

    The commit is in a file that the build puts beside this one; a checkout has none. `os` and not `pathlib`,
    which would be the heaviest import of `--version`.
    """
    try:
        with open(os.path.join(os.path.dirname(__file__), "COMMIT"), encoding="ascii") as file:
            return f"gitmirror {__version__} ({file.read().strip()})"
    except FileNotFoundError:
        return f"gitmirror {__version__}"
