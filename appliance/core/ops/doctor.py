"""Looks at everything that serving needs, without changing any of it, and says how to mend what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.core.config.credentials import OPEN
from appliance.core.config.secret_files import SecretFile
from appliance.core.config.settings import Config
from appliance.core.control import is_serving
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import NEWEST_TRIED, OLDEST_GIT
from appliance.core.git.keyring import check_files
from appliance.core.node.node import Node
from appliance.core.node.state_dir import wanted_of_config
from appliance.core.serving.net.sockets import listen
from appliance.core.units import format_size

LOW_DISK = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and how to mend it when it is not `ok`."""

    name: str
    ok: bool
    found: str
    mend: str = ""


def examine(appliance: Node) -> list[Check]:
    """All checks, in the order in which to mend them. Never raises."""
    serving = is_serving(appliance.layout)
    checks = [
        _python(),
        _git(),
        _git_daemon(),
        _guarded("config", lambda: _config(appliance), "mend the file; the message says what"),
        *_credentials(appliance),
        *_outlets(appliance.config),
        _state(appliance),
        _disk(appliance),
        _hooks(appliance),
        _guarded("database", lambda: _database(appliance), "see the message; a backup is the file gitmirror.db"),
    ]
    checks += _ports(appliance) if not serving else []
    checks.append(_guarded("serve", lambda: _serve(appliance), "see the log of serve") if serving else _not_serving())
    return checks


def _guarded(name: str, look: Callable[[], Check], mend: str) -> Check:
    try:
        return look()
    except GitmirrorError as error:
        return Check(name, False, error.message, error.hint or mend)


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _git() -> Check:
    wanted, tried = (".".join(map(str, version)) for version in (OLDEST_GIT, NEWEST_TRIED))
    mend = f"install git {wanted} or newer, on the PATH of the service"
    try:
        said = subprocess.run(["git", "version"], capture_output=True, text=True, check=True, timeout=10).stdout
        version = tuple(int(part) for part in said.split()[2].split(".")[:2])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return Check("git", False, f"cannot be run: {error}", mend)
    note = f" (newer than any that gitmirror was tried with: {wanted} to {tried})" if version > NEWEST_TRIED else ""
    return Check("git", version >= OLDEST_GIT, said.strip() + note, mend)


def _git_daemon() -> Check:
    mend = "install git's daemon: it is part of git on most systems, git-daemon on Fedora and Alpine"
    try:
        said = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("git daemon", False, f"git cannot be run: {error}", mend)
    program = Path(said.strip()) / "git-daemon"
    return Check("git daemon", os.access(program, os.X_OK), f"{program}", mend)


def _config(appliance: Node) -> Check:
    listed = wanted_of_config(appliance.config)
    warnings = appliance.config.warnings()
    where = str(appliance.config.path or "defaults, no file")
    found = "; ".join([f"{where} ({len(listed)} repositories)", *warnings])
    return Check("config", not warnings, found, "change what the warning names")


def _credentials(appliance: Node) -> list[Check]:
    """The files that entries name, by themselves: whether an upstream takes what is in them, its refreshes tell."""
    checks = []
    for entry in appliance.config.credentials:
        problems = check_files(entry)
        if entry.ssh_key and shutil.which("ssh") is None:
            problems.append("ssh is not there: install the OpenSSH client")
        if entry.command and shutil.which(entry.command[0]) is None:
            problems.append(f"its command is not there: {entry.command[0]}")
        source = entry.token_file or entry.ssh_key or f"command {entry.command[0]}"
        readers = "open to everybody" if entry.readers == OPEN else "private"
        found = "; ".join(problems) or f"{source}; its mirrors are {readers}"
        mend = "each file belongs to the service's user, token and key with mode 0600; a refresh reads them again"
        checks.append(Check(f"credentials {entry.url}", not problems, found, mend))
    return checks


def _outlets(config: Config) -> list[Check]:
    """What is configured for webhooks, alerts and events, and could be missing when it is needed."""
    checks = []
    for name in ("webhook_secret_file", "token_file"):
        if path := getattr(config.refresh, name):
            problem = SecretFile(f"[refresh] {name}", partial(str, path)).problem()
            checks.append(Check(name, problem is None, problem or path, "a file that only the service's user may read"))
    for name, command in (("alerts", config.alerts.command), ("events", config.events.command)):
        if command:
            found = shutil.which(command[0])
            told = found or f"{command[0]} is not there, or cannot be executed"
            checks.append(Check(f"{name} command", found is not None, told, f"correct [{name}] command"))
    return checks


def _state(appliance: Node) -> Check:
    state = appliance.layout.state
    mend = "it must belong to the user that runs gitmirror: chown -R it, or choose another with --state"
    if not state.exists():
        return Check("state directory", True, f"{state} is not there yet, serve makes it")
    owner = state.stat().st_uid
    foreign = [path for path in (state, *state.iterdir()) if path.lstat().st_uid != owner]
    if foreign:
        return Check("state directory", False, f"{foreign[0]} belongs to another user than {state}", mend)
    return Check("state directory", os.access(state, os.R_OK | os.W_OK | os.X_OK), f"{state} (user {owner})", mend)


def _disk(appliance: Node) -> Check:
    free = shutil.disk_usage(_existing(appliance)).free
    return Check("disk", free > LOW_DISK, f"{format_size(free)} free", "make room, or move the state directory")


def _hooks(appliance: Node) -> Check:
    """git skips a hook that it cannot execute; serve proves at start that it does not, this finds the usual reason."""
    place = _existing(appliance)
    noexec = bool(os.statvfs(place).f_flag & os.ST_NOEXEC)
    found = f"{place} is on a noexec mount" if noexec else f"can be executed below {place}"
    return Check("hooks", not noexec, found, "mount it without noexec: git runs the hooks that guard pushes there")


def _existing(appliance: Node) -> Path:
    place = appliance.layout.state
    while not place.exists():
        place = place.parent
    return place


def _database(appliance: Node) -> Check:
    if not appliance.layout.database.exists():
        return Check("database", True, "not there yet, serve makes it")
    stores = appliance.stores()
    verdict = stores.audit.verify()
    found = f"{len(stores.registry.all())} repositories, {verdict.events} audit events"
    if verdict.broken is not None:
        found += f"; the audit log is broken at event {verdict.broken}: {verdict.reason}"
    return Check("database", verdict.broken is None, found, "compare with a backup; `audit verify` says more")


def _ports(appliance: Node) -> list[Check]:
    checks = []
    serve = appliance.config.serve
    for name, address in (("git", serve.git), ("http", serve.http), ("admin", serve.admin)):
        if address is None:
            checks.append(Check(f"port {name}", True, "off"))
            continue
        try:
            listen(address, name).close()
            checks.append(Check(f"port {name}", True, f"{address} is free"))
        except GitmirrorError as error:
            checks.append(Check(f"port {name}", False, error.message, error.hint))
    return checks


def _serve(appliance: Node) -> Check:
    found = appliance.status()
    unhealthy = [repo["name"] for repo in found["repos"] if repo["state"] in ("stale", "failing")]
    if found["warnings"]:
        return Check("serve", False, "; ".join(found["warnings"]), "mend what it names, then restart serve")
    if unhealthy:
        return Check("serve", False, f"behind: {', '.join(unhealthy)}", "`status` says why")
    return Check("serve", True, f"process {found['pid']}, pushes are guarded")


def _not_serving() -> Check:
    return Check("serve", True, "not running")
