"""What `install` puts into place for people at a shell: the completion scripts and the man page."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from appliance.core.ops.shell_completion import PLACES, installed_scripts

MAN_PAGE = Path("/usr/local/share/man/man1/gitmirror.1")
ALIAS_PAGE = MAN_PAGE.with_name("gitmirror.pyz.1")
"""The same page under the name of the file."""
SHELL_FILES = (*PLACES.values(), MAN_PAGE, ALIAS_PAGE)


def shell_files(program: Path) -> dict[Path, bytes]:
    """The content of SHELL_FILES for the installed file `program`."""
    return installed_scripts(program) | {
        MAN_PAGE: man_page(),
        ALIAS_PAGE: f".so man1/{MAN_PAGE.name}\n".encode(),
    }


def man_page() -> bytes:
    """Reads the man page, which is package data in the zipapp and the wheel; scripts/man_page.py makes it."""
    packed = resources.files("appliance") / "man" / MAN_PAGE.name
    if packed.is_file():
        return packed.read_bytes()
    return (Path(__file__).parents[3] / "docs" / MAN_PAGE.name).read_bytes()
