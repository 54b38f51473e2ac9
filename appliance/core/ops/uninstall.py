"""Takes gitmirror off a node again: what `install` put there goes, and what agents recorded stays unless it is purged.

`plan_uninstall` looks and decides, and `Step.apply` makes the changes, as in `install`. Uninstalling is idempotent.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.core.config.settings import SYSTEM_CONFIG, SYSTEM_STATE
from appliance.core.layout import Layout
from appliance.core.ops.install import (
    DROP_IN,
    PROGRAM,
    REAL_ROOT,
    SERVICE,
    SOCKETS,
    SYSUSERS,
    UNIT_DIRECTORY,
    UNITS,
    USER,
    InstallError,
    RunCommand,
    Step,
)
from appliance.core.ops.listening import LISTEN_CONF
from appliance.core.ops.shell_files import SHELL_FILES
from appliance.core.process.owner import find_owner
from appliance.core.store.known_names import repo_names, session_names

CACHES = (Path("/var/cache/gitmirror"), Path("/var/cache/gitmirror-root"))
"""The unpacked packages of the service, and of commands run as root. This process may run from one of them."""


@dataclass(frozen=True)
class RemoveFile(Step):
    """Removes a file, and the directory that it alone was in."""

    path: Path
    directory_too: bool = False

    def apply(self) -> None:
        """A file that is gone already is no error."""
        try:
            self.path.unlink(missing_ok=True)
            if self.directory_too:
                with contextlib.suppress(OSError):
                    self.path.parent.rmdir()
        except OSError as error:
            raise InstallError(f"cannot remove {self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class RemoveTree(Step):
    """Removes a directory with everything in it.

    A link is removed with the directory that it leads to, but not with one outside of `root`: in an image, a link to
    /srv means the image's own.
    """

    path: Path
    root: Path = REAL_ROOT

    def apply(self) -> None:
        """Refuses a state directory that a process still uses. A directory that is gone already is no error."""
        if owner := find_owner(Layout(self.path)):
            raise InstallError(
                f"{owner.role}, process {owner.pid}, still uses {self.path}", hint="stop it, and run this again"
            )
        try:
            # A state directory on another disk may be a link to it.
            if (target := self.path.resolve()).is_relative_to(self.root):
                shutil.rmtree(target)
            if self.path.is_symlink():
                self.path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InstallError(f"cannot remove {error.filename or self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class Uninstallation:
    """The steps of an uninstall; what a purge deletes, in words; and what stays, with the command that removes it."""

    steps: Sequence[Step]
    purged: Sequence[str]
    left: Sequence[tuple[str, str]]


def plan_uninstall(root: Path, *, purge: bool = False) -> Uninstallation:
    """Plans the removal of what `install` put on the system at `root`, and with `purge` of state and configuration.

    With a `root` other than `/`, files below it are removed, and users and systemd are left alone. Raises InstallError
    for `/` when this process is not root, and when a link in `root` leads out of it.
    """
    root = root.resolve()
    is_live = root == REAL_ROOT
    if is_live and os.geteuid() != 0:
        raise InstallError("uninstalling from this machine needs root", hint="run it with sudo")
    has_systemd = is_live and shutil.which("systemctl") is not None
    steps: list[Step] = []
    units = [unit for unit in (*SOCKETS, SERVICE) if _below(root, UNIT_DIRECTORY / unit).exists()]
    if units and has_systemd:
        # All at once, because a guest that connects to a socket whose service was stopped starts it again.
        steps.append(
            RunCommand("stop and disable the sockets and the service", ("systemctl", "disable", "--now", *units))
        )
    files = [UNIT_DIRECTORY / unit for unit in UNITS]
    files += [SYSUSERS, *SHELL_FILES, PROGRAM]
    there = [path for each in files if _is_there(path := _below(root, each))]
    steps += [RemoveFile(f"remove {path}", path) for path in there]
    drop_ins = [path for path in _drop_ins(root) if _is_there(path)]
    steps += [RemoveFile(f"remove {path}", path, directory_too=True) for path in drop_ins]
    if units and has_systemd:
        steps.append(RunCommand("let systemd forget the units", ("systemctl", "daemon-reload")))
    owned = [*_configuration(root), _below(root, SYSTEM_STATE)]
    found = [path for path in owned if path.exists()]
    caches = [path for each in CACHES if (path := _below(root, each)).exists()]
    for path in (*there, *drop_ins, *found, *caches):
        if not (place := path.parent.resolve()).is_relative_to(root):
            raise InstallError(f"{path} is not removed, because {path.parent} leads to {place}, outside of {root}")
    if purge:
        steps += [RemoveTree(f"remove {path}", path, root) for path in found]
        if is_live and _user_exists():
            steps.append(RunCommand(f"remove the user {USER}", ("userdel", USER)))
    # Last, because modules that are not imported yet may be there.
    steps += [RemoveTree(f"remove {path}", path, root) for path in caches]
    left = [] if purge else [(_what(path, root), f"rm -r {path}") for path in found]
    if not purge and is_live and _user_exists():
        left.append((f"the user {USER}", f"userdel {USER}"))
    return Uninstallation(steps, [_what(path, root) for path in found] if purge else [], left)


def _configuration(root: Path) -> Iterator[Path]:
    """The configuration, and the changes of the units that `install` does not write itself (`systemctl edit`)."""
    yield _below(root, SYSTEM_CONFIG.parent)
    for unit in UNITS:
        directory = _below(root, UNIT_DIRECTORY / f"{unit}.d")
        if directory.is_dir() and {*directory.iterdir()} - {*_drop_ins(root)}:
            yield directory


def _drop_ins(root: Path) -> list[Path]:
    """Those that `install` writes: for the sockets of guests, and for `--listen`."""
    listens = (UNIT_DIRECTORY / f"{unit}.d" / LISTEN_CONF for unit in SOCKETS)
    return [_below(root, path) for path in (DROP_IN, *listens)]


def _what(path: Path, root: Path) -> str:
    """A directory that stays or goes, with what is in it."""
    if path == _below(root, SYSTEM_CONFIG.parent):
        return f"{path} (the configuration)"
    if path != _below(root, SYSTEM_STATE):
        return f"{path} (changes of the unit)"
    database = Layout(path).database
    repos, sessions = len(repo_names(database)), len(session_names(database, None))
    if not repos and not sessions:
        return f"{path} (the state)"
    return (
        f"{path} (the mirrors of {repos} {'repository' if repos == 1 else 'repositories'}, "
        f"{sessions} {'session' if sessions == 1 else 'sessions'} of agents, and the audit log)"
    )


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _user_exists() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to(REAL_ROOT)
