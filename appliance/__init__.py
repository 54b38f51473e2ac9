"""gitmirror: hot git mirrors for agent guests, and a record of what every agent did.

- `core`: everything that gitmirror does.
- `cli`: the command line. `tui`: the live view. Both use `core.node`, and are independent of each other, except that
  one command opens the view.
- `__main__`: the entry point of `python -m appliance` and of gitmirror.pyz; it answers `--version` by itself.

docs/architecture.md has the picture, and shows how a fetch, a push, a refresh and a snapshot pass through it.

What always holds: everything that is imported is pure Python, because one file runs on any CPython 3.11 or newer.
Importing this package costs nothing: scripts ask for the version often.
"""

from __future__ import annotations

import os

__version__ = "1.0.0"


def version_text() -> str:
    """`gitmirror 1.0.0 (abc1234567)`: the version, and the commit when this is the packed file.

    The commit is in a file that the build puts beside this one; a checkout has none. This uses `os`, because `pathlib`
    would be the heaviest import of `--version`.
    """
    try:
        with open(os.path.join(os.path.dirname(__file__), "COMMIT"), encoding="ascii") as file:
            return f"gitmirror {__version__} ({file.read().strip()})"
    except FileNotFoundError:
        return f"gitmirror {__version__}"
