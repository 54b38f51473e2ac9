"""Putting the appliance on a node: its file, its units, its user, its first configuration.

`plan_install` looks and decides, `Step.apply` does; in between a caller can show what will happen. Installing
is idempotent, and installing a newer file over an older one is the upgrade.
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
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.settings import SECTIONS, SYSTEM_CONFIG, SYSTEM_STATE, RepoConfig
from appliance.core.errors import GitmirrorError, UsageError

USER = "gitmirror"
PROGRAM = Path("/usr/local/bin/gitmirror.pyz")
UNIT_DIRECTORY = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d/gitmirror.conf")
SERVICE = "gitmirror.service"
SOCKETS = ("gitmirror-git.socket", "gitmirror-http.socket", "gitmirror-admin.socket")
UNITS = (SERVICE, *SOCKETS)
REAL_ROOT = Path("/")
EXAMPLE_REPO = {
    "url": "https://github.com/jomcgi/homelab",
    "name": "jomcgi/homelab",
    "branch": "main",
    "interval": "30s",
}
EXAMPLE_CREDENTIAL = {"url": "https://github.com/acme", "token_file": "/etc/gitmirror/acme.token"}


class InstallError(GitmirrorError):
    """Installing cannot go on; what was written before it is whole."""


@dataclass(frozen=True)
class Step:
    """One thing an install does. `text` says it in a line, as an order: `write /etc/...`."""

    text: str

    def apply(self) -> None:
        """Does it, or raises InstallError. The base class is a step with nothing to do."""


@dataclass(frozen=True)
class WriteFile(Step):
    """Puts `content` (or a copy of the file `source`) at `path`, whole or not at all."""

    path: Path
    mode: int
    content: bytes = b""
    source: Path | None = None

    def apply(self) -> None:
        """Write, fsync, rename: a node that loses power has the old file or the new one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, self.mode, self.content, self.source)
        except OSError as error:
            raise InstallError(f"cannot write {self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class MakeDirectory(Step):
    """Makes `path` with `mode`, owned by `owner` (a user's name; empty: whoever runs this)."""

    path: Path
    mode: int
    owner: str = ""

    def apply(self) -> None:
        """An existing directory is put right too, with all in it when it was another user's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(self.mode)
            if self.owner and self.path.owner() != self.owner:
                _give(self.path, self.owner)
        except (OSError, KeyError) as error:
            raise InstallError(f"cannot make {self.path} for {self.owner or 'this user'}: {error}") from None


@dataclass(frozen=True)
class RunCommand(Step):
    """Runs a command of the node itself, without a shell."""

    argv: tuple[str, ...]

    def apply(self) -> None:
        """Fails with what the command said."""
        try:
            done = subprocess.run(self.argv, capture_output=True, text=True, check=False, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallError(f"cannot run {self.argv[0]}: {error}") from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise InstallError(f"`{' '.join(self.argv)}` failed with {done.returncode}: {said}")


@dataclass(frozen=True)
class Installation:
    """What an install will do, and what the operator does after it."""

    steps: Sequence[Step]
    next_commands: Sequence[str]


def plan_install(root: Path, program: Path, *, start: bool = False) -> Installation:
    """What installing the file `program` on the system at `root` takes.

    `root` other than `/` is a directory that looks like a node (an image, a dry run): files are written below
    it, and users and systemd are left alone. `start` also enables and (re)starts the units, on `/` only.
    Raises InstallError when `/` is asked for by somebody who is not root, or has no systemd.
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
            hint="run it with sudo, or with --root DIR to see in DIR what it would write",
        )
    if live and shutil.which("systemctl") is None:
        raise InstallError(
            "this machine has no systemctl",
            hint="install is for systemd; with another supervisor, let it run `gitmirror.pyz serve`",
        )
    steps = [
        _program_step(root, program),
        *(_file_step(_below(root, UNIT_DIRECTORY / unit), _unit(unit)) for unit in UNITS),
        _file_step(_below(root, SYSUSERS), _unit("gitmirror.sysusers")),
        # Whatever root's umask is, the service must be able to read its configuration.
        MakeDirectory(f"make {_below(root, SYSTEM_CONFIG.parent)}", _below(root, SYSTEM_CONFIG.parent), 0o755),
        _config_step(_below(root, SYSTEM_CONFIG)),
        _user_step(live),
        MakeDirectory(
            f"make {_below(root, SYSTEM_STATE)} (mode 0750{f', owner {USER}' if live else ''})",
            path=_below(root, SYSTEM_STATE),
            mode=0o750,
            owner=USER if live else "",
        ),
    ]
    reload = RunCommand("make systemd read the units", argv=("systemctl", "daemon-reload"))
    enable = ("systemctl", "enable", *SOCKETS, SERVICE)
    begin = ("systemctl", "start", *SOCKETS)
    # Restarting the service alone keeps the sockets: guests wait for the new version, none is refused.
    restart = ("systemctl", "restart", SERVICE)
    after = [" ".join(command) for command in (enable, begin, restart)]
    if not live:
        return Installation([*steps, Step(f"left to the node: {' '.join(reload.argv)}")], after)
    steps.append(reload)
    if not start:
        return Installation(steps, after)
    steps += [
        RunCommand("enable the sockets and the service", argv=enable),
        RunCommand("start the sockets", argv=begin),
        RunCommand("start the service, or restart it with this version", argv=restart),
    ]
    return Installation(steps, [f"{PROGRAM} status"])


def running_program(argv0: str) -> Path:
    """The zipapp that this process was started from, by its `sys.argv[0]`. InstallError when it is none."""
    path = Path(argv0).absolute()
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InstallError(
            f"{path} is not the packed file, so there is nothing to install",
            hint="build it with scripts/build_pyz.sh and run `dist/gitmirror.pyz install`",
        )
    return path


def default_config() -> bytes:
    """What `install` writes: every setting with its line of help and its default, all commented out."""
    lines = [
        "# gitmirror: every setting with its default. Take the # away to change one, then",
        "# `systemctl reload gitmirror`. Under systemd the sockets' addresses win over git, http and admin",
        "# of [serve]: change those by `systemctl edit gitmirror-git.socket`.",
    ]
    for name, section in SECTIONS.items():
        # Sections are not commented: an uncommented key must never land in the section above its own.
        lines += ["", f"[{name}]"]
        for item in fields(section):
            lines += [f"# {item.metadata['help']}", f"# {item.name} = {_toml(item.metadata['default'])}"]
    lines += [
        "",
        "# The static list: one [[repos]] for each. It is read at start and on reload.",
        "# [[repos]]",
    ]
    for item in fields(RepoConfig):
        lines += [f"## {item.metadata['help']}", f"# {item.name} = {_toml(EXAMPLE_REPO[item.name])}"]
    lines += [
        "",
        "# What lets refreshes into private upstreams: one [[credentials]] for each. Their mirrors are served",
        "# to guests with a read token (`token issue`), unless readers says otherwise.",
        "# [[credentials]]",
    ]
    for item in fields(CredentialConfig):
        value = EXAMPLE_CREDENTIAL.get(item.name, item.metadata["default"])
        lines += [f"## {item.metadata['help']}", f"# {item.name} = {_toml(value)}"]
    return ("\n".join(lines) + "\n").encode()


def _toml(value: Any) -> str:
    """A default as TOML writes it. Defaults are texts without quotes, whole numbers and flags."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{value}"'


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to(REAL_ROOT)


def _unit(name: str) -> bytes:
    """A file of `systemd/`, which is package data in the zipapp and the wheel."""
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
        return Step(f"left to the node: the user {USER} (systemd-sysusers makes it at boot from {SYSUSERS})")
    with contextlib.suppress(KeyError):
        pwd.getpwnam(USER)
        return Step(f"keep the user {USER}")
    # useradd and not systemd-sysusers, which minimal systems lack; the snippet is for images.
    command = ("useradd", "--system", "--user-group", "--home-dir", str(SYSTEM_STATE), "--no-create-home")
    return RunCommand(f"make the user {USER}", argv=(*command, "--shell", _nologin(), USER))


def _give(directory: Path, owner: str) -> None:
    """`directory` and all below it to `owner`; systemd would only do so while the top is somebody else's.

    Links are not followed, and the top goes last: until then the new owner cannot put any in our way.
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
