"""Installs gitmirror on a node: the file, the systemd units, the user, and a first configuration.

`plan_install` looks and decides, and `Step.apply` makes the changes; in between, a caller can show what will happen.
Installing is idempotent. To upgrade, install a newer file over an older one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from appliance.core.config.settings import SYSTEM_CONFIG, SYSTEM_STATE, load_config
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.ops.default_config import default_config
from appliance.core.ops.guest_checks import guests_drop_in
from appliance.core.ops.listening import LISTEN_CONF, listen_drop_ins
from appliance.core.ops.shell_files import shell_files

USER = "gitmirror"
PROGRAM = Path("/usr/local/bin/gitmirror.pyz")
UNIT_DIRECTORY = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d/gitmirror.conf")
SERVICE = "gitmirror.service"
DROP_IN = UNIT_DIRECTORY / f"{SERVICE}.d" / "guests.conf"
SOCKETS = ("gitmirror-git.socket", "gitmirror-http.socket", "gitmirror-admin.socket")
UNITS = (SERVICE, *SOCKETS)
REAL_ROOT = Path("/")


class InstallError(GitmirrorError):
    """The installation cannot continue. Every file that was written before the error is complete."""


@dataclass(frozen=True)
class Step:
    """One step of an install. `text` describes it in one line, as an order: `write /etc/...`."""

    text: str

    def apply(self) -> None:
        """Makes the change, or raises InstallError. The base class is a step with nothing to do."""


@dataclass(frozen=True)
class WriteFile(Step):
    """Writes `content` (or a copy of the file `source`) to `path`, completely or not at all."""

    path: Path
    mode: int
    content: bytes = b""
    source: Path | None = None

    def apply(self) -> None:
        """Writes, syncs and renames, so that a node that loses power has either the old file or the new one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, self.mode, self.content, self.source)
        except OSError as error:
            raise InstallError(f"cannot write {self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class MakeDirectory(Step):
    """Creates `path` with `mode`, owned by `owner` (a user's name; empty: the user who runs this)."""

    path: Path
    mode: int
    owner: str = ""

    def apply(self) -> None:
        """Also corrects an existing directory, with everything in it when it belonged to another user."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(self.mode)
            if self.owner and self.path.owner() != self.owner:
                _give(self.path, self.owner)
        except (OSError, KeyError) as error:
            raise InstallError(f"cannot create {self.path} for {self.owner or 'this user'}: {error}") from None


@dataclass(frozen=True)
class RunCommand(Step):
    """Runs a command of the node, without a shell."""

    argv: tuple[str, ...]

    def apply(self) -> None:
        """Runs it. Raises InstallError with the command's output when it fails."""
        try:
            done = subprocess.run(self.argv, capture_output=True, text=True, check=False, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallError(f"cannot run {self.argv[0]}: {error}") from None
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            raise InstallError(f"`{' '.join(self.argv)}` failed with {done.returncode}: {output}")


@dataclass(frozen=True)
class Installation:
    """The steps of an install, and the commands for the operator to run after it."""

    steps: Sequence[Step]
    next_commands: Sequence[str]


def plan_install(root: Path, program: Path, *, start: bool = False, listen: Sequence[str] = ()) -> Installation:
    """Plans the installation of the file `program` on the system at `root`.

    With a `root` other than `/` (an image, a dry run), files are written below it, and users and systemd are left
    alone. `start` also enables and (re)starts the units, and is allowed for `/` only (UsageError). `listen` are
    addresses for guests, as in `listening.listen_drop_ins`; without any, those in use stay. Raises UsageError, and
    InstallError for `/` when this process is not root or the system has no systemd.
    """
    root = root.resolve()
    live = root == REAL_ROOT
    if start and not live:
        raise UsageError(
            f"nothing can be started below {root}",
            hint="leave out --now, or install on this machine without --root",
        )
    if live and os.geteuid() != 0:
        raise InstallError(
            "installing on this machine needs root",
            hint="run it with sudo, or with --root DIR to write the files below DIR and look at them",
        )
    if live and shutil.which("systemctl") is None:
        raise InstallError(
            "this machine has no systemctl",
            hint="install needs systemd; under another supervisor, run `gitmirror.pyz serve`",
        )
    addressed = [
        _addresses_step(_below(root, UNIT_DIRECTORY / f"{unit}.d" / LISTEN_CONF), content)
        for unit, content in listen_drop_ins(listen).items()
    ]
    steps = [
        _program_step(root, program),
        *(_file_step(_below(root, UNIT_DIRECTORY / unit), _unit(unit)) for unit in UNITS),
        *addressed,
        _file_step(_below(root, SYSUSERS), _unit("gitmirror.sysusers")),
        *(_file_step(_below(root, path), content) for path, content in shell_files(PROGRAM).items()),
        _guests_step(_below(root, DROP_IN), _below(root, SYSTEM_CONFIG)),
        # The mode does not depend on root's umask, because the service must be able to read its configuration.
        MakeDirectory(f"create {_below(root, SYSTEM_CONFIG.parent)}", _below(root, SYSTEM_CONFIG.parent), 0o755),
        _config_step(_below(root, SYSTEM_CONFIG)),
        _user_step(live),
        MakeDirectory(
            f"create {_below(root, SYSTEM_STATE)} (mode 0750{f', owner {USER}' if live else ''})",
            path=_below(root, SYSTEM_STATE),
            mode=0o750,
            owner=USER if live else "",
        ),
    ]
    reload = RunCommand("let systemd read the units", argv=("systemctl", "daemon-reload"))
    enable = ("systemctl", "enable", *SOCKETS, SERVICE)
    begin = ("systemctl", "start", *SOCKETS)
    # Only the service is restarted; its sockets stay open, so guests wait for the new version and none is refused.
    restart = ("systemctl", "restart", SERVICE)
    # Other addresses need sockets that are opened anew, and systemd opens none while their service runs.
    moves = any(isinstance(step, WriteFile) for step in addressed)
    stop = ("systemctl", "stop", *SOCKETS, SERVICE)
    after = [" ".join(command) for command in (*([stop] if moves else []), enable, begin, restart)]
    if not live:
        return Installation([*steps, Step(f"left to the node: {' '.join(reload.argv)}")], after)
    steps.append(reload)
    if not start:
        return Installation(steps, after)
    if moves:
        steps.append(RunCommand("stop the sockets and the service, because their addresses change", argv=stop))
    steps += [
        RunCommand("enable the sockets and the service", argv=enable),
        RunCommand("start the sockets", argv=begin),
        RunCommand("start the service, or restart it with this version", argv=restart),
    ]
    return Installation(steps, [f"{PROGRAM} status"])


def running_program(argv0: str) -> Path:
    """Returns the zipapp that this process runs from, given its `sys.argv[0]`. Raises InstallError if it is not one."""
    path = Path(argv0).absolute()
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InstallError(
            f"{path} is not a packed gitmirror.pyz, so there is nothing to install",
            hint="build it with scripts/build_pyz.sh and run `dist/gitmirror.pyz install`",
        )
    return path


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to(REAL_ROOT)


def _unit(name: str) -> bytes:
    """Reads a file of `systemd/`, which is package data in the zipapp and the wheel."""
    packed = resources.files("appliance") / "units" / name
    if packed.is_file():
        return packed.read_bytes()
    return (Path(__file__).parents[3] / "systemd" / name).read_bytes()


def _file_step(path: Path, content: bytes, mode: int = 0o644) -> Step:
    if _same(path, mode, content):
        return Step(f"keep {path} (unchanged)")
    return WriteFile(f"{_verb(path)} {path}", path=path, mode=mode, content=content)


def _verb(path: Path) -> str:
    return "replace" if path.exists() else "write"


def _config_step(path: Path) -> Step:
    if path.exists():
        return Step(f"keep {path} (yours)")
    return WriteFile(f"write {path} (all defaults)", path=path, mode=0o644, content=default_config())


def _guests_step(path: Path, config: Path) -> Step:
    """Lets the service reach what `[guests]` and `[serve]` of an existing config name, and nothing more."""
    try:
        content = guests_drop_in(load_config(config if config.exists() else None))
    except UsageError as error:
        return Step(f"keep {path} as it is: {error.message}")
    if not content and not path.exists():
        return Step(f"leave out {path} (the configuration names no directory for guests' sockets)")
    return _file_step(path, content or b"# [guests] of the configuration needs nothing.\n")


def _addresses_step(path: Path, content: bytes) -> Step:
    if not content and not path.exists():
        return Step(f"leave out {path} (guests on this machine alone)")
    return _file_step(path, content or b"# Guests on this machine alone.\n")


def _program_step(root: Path, program: Path) -> Step:
    target = _below(root, PROGRAM)
    if target.exists() and target.samefile(program):
        return Step(f"keep {target} (it is the file being run)")
    if _same(target, 0o755, program.read_bytes()):
        return Step(f"keep {target} (unchanged)")
    return WriteFile(
        f"{_verb(target)} {target} (a copy of {program})",
        path=target,
        mode=0o755,
        source=program,
    )


def _user_step(live: bool) -> Step:
    if not live:
        return Step(f"left to the node: the user {USER} (systemd-sysusers creates it at boot from {SYSUSERS})")
    with contextlib.suppress(KeyError):
        pwd.getpwnam(USER)
        return Step(f"keep the user {USER}")
    # useradd rather than systemd-sysusers, because minimal systems lack the latter; the snippet is for images.
    command = ("useradd", "--system", "--user-group", "--home-dir", str(SYSTEM_STATE), "--no-create-home")
    return RunCommand(f"create the user {USER}", argv=(*command, "--shell", _nologin(), USER))


def _give(directory: Path, owner: str) -> None:
    """Gives `directory` and everything below it to `owner`.

    systemd would do so only while the top directory belongs to another user. Links are not followed, and the top
    directory comes last, so that the new owner cannot place links in the way before.
    """
    account = pwd.getpwnam(owner)
    for path in (*directory.rglob("*"), directory):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _nologin() -> str:
    return shutil.which("nologin", path="/usr/sbin:/sbin:/usr/bin:/bin") or "/bin/false"


def _same(path: Path, mode: int, content: bytes) -> bool:
    try:
        return path.stat().st_mode & 0o7777 == mode and path.read_bytes() == content
    except OSError:
        return False


def _replace(path: Path, mode: int, content: bytes, source: Path | None) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if source is None:
                file.write(content)
            else:
                with source.open("rb") as original:
                    shutil.copyfileobj(original, file)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
