"""How the demo starts its node: by the file that it runs from itself."""

from __future__ import annotations

import os
import shlex
import sys
import zipfile
from pathlib import Path

import appliance
from appliance.demo.place import DemoPlace

_FOR_PYTHON = ("HOME", "XDG_CACHE_HOME", "SHIV_ROOT", "PYTHONHOME")
"""Variables by which the file finds where it has been unpacked."""


def _is_file() -> bool:
    return zipfile.is_zipfile(sys.argv[0])


def serve_command(place: DemoPlace) -> tuple[list[str], dict[str, str]]:
    """The command of the demo's `serve`, and the variables that it needs."""
    env = {name: os.environ[name] for name in _FOR_PYTHON if name in os.environ}
    if _is_file():
        program = [sys.executable, str(Path(sys.argv[0]).absolute())]
    else:
        program = [sys.executable, "-m", "appliance"]
        env["PYTHONPATH"] = str(Path(appliance.__file__).parents[1])
    return [*program, "--state", str(place.layout.state), "--config", str(place.config), "serve"], env


def shown_command(place: DemoPlace) -> str:
    """The beginning of a command for a shell that means the demo's node, by the file as the user called it."""
    argv0 = sys.argv[0]
    if not _is_file():
        words = ["gitmirror"] if Path(argv0).name == "gitmirror" else [sys.executable, "-m", "appliance"]
    elif os.access(argv0, os.X_OK) and "/" in argv0:
        words = [argv0]
    else:
        words = [sys.executable, argv0]
    return shlex.join([*words, "--state", str(place.layout.state), "--config", str(place.config)])
