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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.repositories import AllowConfig, RepoConfig
from appliance.core.config.settings import SECTIONS, SYSTEM_CONFIG, SYSTEM_STATE, load_config
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.ops.guest_checks import guests_drop_in
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
EXAMPLE_REPO = {
    "url": "https://github.com/jomcgi/homelab",
    "name": "jomcgi/homelab",
    "branch": "main",
    "interval": "30s",
}
EXAMPLE_ALLOW = {"url": "https://github.com/acme/*", "interval": "5m"}
EXAMPLE_CREDENTIAL = {"url": "https://github.com/acme", "token_file": "/etc/gitmirror/acme.token"}


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


def plan_install(root: Path, program: Path, *, start: bool = False) -> Installation:
    """Plans the installation of the file `program` on the system at `root`.

    With a `root` other than `/` (an image, a dry run), files are written below it, and users and systemd are left
    alone. `start` also enables and (re)starts the units, and is allowed for `/` only (UsageError). Raises InstallError
    for `/` when this process is not root or the system has no systemd.
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
    steps = [
        _program_step(root, program),
        *(_file_step(_below(root, UNIT_DIRECTORY / unit), _unit(unit)) for unit in UNITS),
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
    """Returns the zipapp that this process runs from, given its `sys.argv[0]`. Raises InstallError if it is not one."""
    path = Path(argv0).absolute()
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise InstallError(
            f"{path} is not a packed gitmirror.pyz, so there is nothing to install",
            hint="build it with scripts/build_pyz.sh and run `dist/gitmirror.pyz install`",
        )
    return path


def default_config() -> bytes:
    """Returns the config that `install` writes: every setting with its help and its default, all commented out."""
    lines = [
        "# gitmirror: every setting with its default. To change one, remove the # and run",
        "# `systemctl reload gitmirror`. Under systemd, the sockets' addresses override git, http and admin of",
        "# [serve]; change them with `systemctl edit gitmirror-git.socket`.",
    ]
    for name, section in SECTIONS.items():
        # Section headers are not commented out, so that a key never ends up in the section above its own.
        lines += ["", f"[{name}]"]
        for item in fields(section):
            lines += [f"# {item.metadata['help']}", f"# {item.name} = {_toml(item.metadata['default'])}"]
    lines += [
        "",
        "# The static list of repositories: one [[repos]] for each. It is read at start and on reload.",
        "# [[repos]]",
        *_entry(RepoConfig, EXAMPLE_REPO),
        "",
        "# Repositories that are mirrored when a guest asks for one: one [[allow]] for each.",
        "# [[allow]]",
        *_entry(AllowConfig, EXAMPLE_ALLOW),
        "",
        "# Credentials for private upstreams: one [[credentials]] for each. Guests need a read token",
        "# (`token issue`) for their mirrors, unless readers says otherwise.",
        "# [[credentials]]",
        *_entry(CredentialConfig, EXAMPLE_CREDENTIAL),
    ]
    return ("\n".join(lines) + "\n").encode()


def _entry(kind: type[Any], example: Mapping[str, str]) -> Iterator[str]:
    """The keys of a commented-out table: with the values of the example, or else their defaults."""
    for item in fields(kind):
        value = example.get(item.name, item.metadata.get("default", ""))
        yield from (f"## {item.metadata['help']}", f"# {item.name} = {_toml(value)}")


def _toml(value: Any) -> str:
    """Formats a default as TOML. Defaults are strings without quotes, whole numbers, booleans and lists of them."""
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{value}"'


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
