"""Makes a repository with a commit checked out from a pack, without reading the mirror that the pack is of."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.error_lines import last_errors

_PASSED_ON = ("PATH", "TMPDIR", "TZ", "GIT_EXEC_PATH")


def check_out(pack: int, directory: Path, commit: str, *, branch: str, origin: str) -> None:
    """Makes an independent repository in `directory`: `commit` on a new branch, and `origin` is the upstream.

    The pack, which is read from the descriptor `pack`, has everything that `commit` reaches. No configuration is read
    but the new repository's own: whoever wrote the mirror's is not whoever runs this. Raises UsageError when
    `directory` exists and is not empty or not the caller's, OSError and GitmirrorError. Each leaves it as it was.
    """
    existed = directory.exists()
    if existed and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not empty", hint="name a directory that does not exist yet")
    if existed and not _is_callers(directory):
        raise UsageError(f"{directory} is another user's", hint="name a directory that does not exist yet")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _git(directory, "init", "--quiet")
        _git(directory, "index-pack", "--stdin", stdin=pack)
        _git(directory, "update-ref", f"refs/heads/{branch}", commit)
        _git(directory, "remote", "add", "origin", origin)
        _git(directory, "checkout", "--quiet", branch)
    except BaseException:
        _remove(directory, keep_top=existed)
        raise


def _is_callers(directory: Path) -> bool:
    """Whether the directory is of whoever called, also by sudo: another owner could put a .git with hooks into it."""
    own = {str(os.geteuid()), os.environ.get("SUDO_UID")}
    return str(directory.stat().st_uid) in own


def _git(directory: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> None:
    argv = ["git", "-c", "safe.directory=*", "-c", "init.defaultBranch=main", *arguments]
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {
        "HOME": os.devnull,
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    try:
        done = subprocess.run(argv, cwd=directory, env=environment, stdin=stdin, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise GitmirrorError(f"git cannot be started: {error.strerror}", hint="install git") from error
    if done.returncode:
        words = last_errors(done.stderr.decode(errors="replace")) or f"exit code {done.returncode}"
        raise GitmirrorError(f"git {arguments[0]} failed in {directory}: {words}")


def _remove(directory: Path, *, keep_top: bool) -> None:
    for entry in list(directory.iterdir()) if directory.is_dir() else []:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not keep_top and directory.is_dir():
        directory.rmdir()
