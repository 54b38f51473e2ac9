"""What commands and the live view write outside the state directory: it is whoever called that writes it.

A command that root runs becomes the owner of the state directory, because it reads what that user's guests wrote. It
would then write a checkout or a bundle where only that user may. So a process stays behind that is still root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from appliance.core.errors import GitmirrorError
from appliance.core.process.left_behind import LeftBehind, Operation

Run = Callable[[str, Mapping[str, Any], int | None], int | None]


class CallersFiles:
    """Writes files of the caller. Methods raise OSError and GitmirrorError."""

    def __init__(self, run: Run | None = None) -> None:
        self._run = run or _run_here

    @classmethod
    def left_behind(cls, only: Path | None = None) -> CallersFiles:
        """Those of the user that this process is now, also once it has become another one.

        With `only`, which the user named, nothing is written but that file or directory, whatever guests wrote.
        """
        chosen = OPERATIONS if only is None else {key: _limited(each, only) for key, each in OPERATIONS.items()}
        return cls(LeftBehind(chosen).run)

    def create(self, path: Path) -> BinaryIO:
        """Opens a new file. Raises FileExistsError."""
        descriptor = self._run("create", {"path": os.path.abspath(path)}, None)
        assert descriptor is not None
        return os.fdopen(descriptor, "wb")

    def make_directory(self, path: Path) -> None:
        """Makes a directory, and those above it, unless it is there."""
        self._run("make_directory", {"path": os.path.abspath(path)}, None)

    def remove(self, path: Path) -> None:
        """Removes a file that `create` made and that is not to stay; does nothing to any other."""
        self._run("remove", {"path": os.path.abspath(path)}, None)

    def check_out(self, pack: int, directory: Path, commit: str, *, branch: str, origin: str) -> None:
        """Makes a repository from a pack that is read from the descriptor `pack`; see `git.unpacking.check_out`."""
        where = {"directory": os.path.abspath(directory), "commit": commit, "branch": branch, "origin": origin}
        self._run("check_out", where, pack)


_made: dict[str, tuple[int, int]] = {}
"""The files that this process has made, by path, with their device and inode."""


def _create(arguments: Mapping[str, Any], _: int | None) -> int:
    path = arguments["path"]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    _made[path] = _identity(os.fstat(descriptor))
    return descriptor


def _make_directory(arguments: Mapping[str, Any], _: int | None) -> None:
    Path(arguments["path"]).mkdir(parents=True, exist_ok=True)


def _remove(arguments: Mapping[str, Any], _: int | None) -> None:
    path = arguments["path"]
    with contextlib.suppress(FileNotFoundError):
        # Whoever asks reads what guests wrote, and so may not have root remove anything else.
        if _made.pop(path, None) == _identity(os.lstat(path)):
            os.unlink(path)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _check_out(arguments: Mapping[str, Any], pack: int | None) -> None:
    # Imported here, because only this command needs it.
    from appliance.core.git.unpacking import check_out

    assert pack is not None
    directory = Path(arguments["directory"])
    check_out(pack, directory, arguments["commit"], branch=arguments["branch"], origin=arguments["origin"])


OPERATIONS: Mapping[str, Operation] = {
    "create": _create,
    "make_directory": _make_directory,
    "remove": _remove,
    "check_out": _check_out,
}


def _run_here(name: str, arguments: Mapping[str, Any], descriptor: int | None) -> int | None:
    return OPERATIONS[name](arguments, descriptor)


def _limited(operation: Operation, only: Path) -> Operation:
    allowed = os.path.abspath(only)

    def run(arguments: Mapping[str, Any], descriptor: int | None) -> int | None:
        wanted = arguments["directory"] if "directory" in arguments else arguments["path"]
        if wanted != allowed:
            raise GitmirrorError(f"{wanted} is not {allowed}, which this command was asked to write")
        return operation(arguments, descriptor)

    return run
