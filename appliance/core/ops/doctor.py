"""Checks everything that serving needs, without changing anything, and says how to fix what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appliance.core.backup.schedule import is_late, newest_backup
from appliance.core.config.credentials import OPEN
from appliance.core.config.secret_files import SecretFile
from appliance.core.config.settings import Config
from appliance.core.errors import Forbidden, GitmirrorError
from appliance.core.git.command import NEWEST_TRIED, OLDEST_GIT
from appliance.core.git.keyring import check_files
from appliance.core.models import UNHEALTHY
from appliance.core.node.node import Node
from appliance.core.node.state_dir import is_lost, wanted_of_config
from appliance.core.ops.checks import Check as Check
from appliance.core.ops.fleet_checks import fleet_checks
from appliance.core.ops.guest_checks import problems_of_sockets
from appliance.core.ops.storage_line import STORAGE_MEND, storage_line
from appliance.core.process.control_socket import is_serving
from appliance.core.process.disk import room_of
from appliance.core.process.owner import refuse_strangers
from appliance.core.serving.net.sockets import try_to_listen
from appliance.core.store.database import DatabaseLost
from appliance.core.store.remedies import remedy
from appliance.core.units import counted, format_duration, format_size, rfc3339
from appliance.core.workspace.disk.sharing import problem_of_group

LOW_DISK = 2 * 2**30
MOST_SHOWN = 5
NO_E2FSPROGS = "mke2fs or debugfs is not installed (package e2fsprogs); only disks with `--format ext4` need them"


def examine(node: Node) -> list[Check]:
    """Runs all checks and returns them in the order in which to fix them. Never raises GitmirrorError.

    A user who may not read the state directory gets only the checks that do not need it.
    """
    checks = [
        _python(),
        _git(),
        _git_daemon(),
        _guarded("config", lambda: _config(node), "correct the file as the message says"),
    ]
    try:
        refuse_strangers(node.layout)
    except Forbidden as stranger:
        found = f"{node.layout.state} cannot be used by this user, so nothing in it was checked"
        return [*checks, Check("state directory", False, found, stranger.hint)]
    serving = is_serving(node.layout)
    checks += [
        *_credentials(node),
        *_outlets(node.config),
        _state(node),
        _disk(node),
        _guarded("storage", lambda: _storage(node), "see the message"),
        _hooks(node),
        _database(node),
        _guarded("mirrors", lambda: _mirrors(node), "see the message"),
        *_backup(node, serving),
        *_drives(node, serving),
        *_guest_sockets(node, serving),
        *fleet_checks(node, serving),
    ]
    checks += _ports(node) if not serving else []
    if serving:
        checks.append(_guarded("pushes", lambda: _pushes(node), "see the log of serve"))
        checks.append(_guarded("serve", lambda: _serve(node), "see the log of serve"))
    else:
        checks.append(_not_serving())
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
        output = subprocess.run(["git", "version"], capture_output=True, text=True, check=True, timeout=10).stdout
        version = tuple(int(part) for part in output.split()[2].split(".")[:2])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return Check("git", False, f"cannot be run: {error}", mend)
    note = f" (newer than the versions that were tested: {wanted} to {tried})" if version > NEWEST_TRIED else ""
    return Check("git", version >= OLDEST_GIT, output.strip() + note, mend)


def _git_daemon() -> Check:
    mend = "install git's daemon: it is part of git on most systems, git-daemon on Fedora and Alpine"
    try:
        output = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("git daemon", False, f"git cannot be run: {error}", mend)
    program = Path(output.strip()) / "git-daemon"
    return Check("git daemon", os.access(program, os.X_OK), f"{program}", mend)


def _config(node: Node) -> Check:
    listed = wanted_of_config(node.config)
    warnings = node.config.warnings()
    where = str(node.config.path or "defaults, no file")
    found = "; ".join([f"{where} ({counted(len(listed), 'repository', 'repositories')})", *warnings])
    return Check("config", not warnings, found, "change what the warning names")


def _credentials(node: Node) -> list[Check]:
    """Checks the files and commands of the entries; only a refresh shows whether the upstream accepts a credential."""
    checks = []
    for entry in node.config.credentials:
        problems = check_files(entry)
        if entry.ssh_key and shutil.which("ssh") is None:
            problems.append("ssh is missing: install the OpenSSH client")
        if entry.command and shutil.which(entry.command[0]) is None:
            problems.append(f"its command is missing: {entry.command[0]}")
        source = entry.token_file or entry.ssh_key or f"command {entry.command[0]}"
        readers = "open to everybody" if entry.readers == OPEN else "private"
        found = "; ".join(problems) or f"{source}; its mirrors are {readers}"
        mend = (
            "each file must belong to the service's user, token and key with mode 0600; "
            "the next refresh reads them again"
        )
        checks.append(Check(f"credentials {entry.url}", not problems, found, mend))
    return checks


def _outlets(config: Config) -> list[Check]:
    """Checks the files and commands that webhooks, alerts and events need."""
    checks = []
    for name in ("webhook_secret_file", "token_file"):
        if path := getattr(config.refresh, name):
            problem = SecretFile(f"[refresh] {name}", partial(str, path)).problem()
            checks.append(Check(name, problem is None, problem or path, "a file that only the service's user may read"))
    for name, command in (("alerts", config.alerts.command), ("events", config.events.command)):
        if command:
            found = shutil.which(command[0])
            result = found or f"{command[0]} does not exist or cannot be executed"
            checks.append(Check(f"{name} command", found is not None, result, f"correct [{name}] command"))
    return checks


def _state(node: Node) -> Check:
    state = node.layout.state
    if not state.exists():
        return Check("state directory", True, f"{state} does not exist yet; serve creates it")
    owner = state.stat().st_uid
    if owner != os.geteuid():
        return Check("state directory", True, f"{state} (user {owner}); this user reads it, and changes it by serve")
    mend = f"everything in it must belong to the user that runs gitmirror: `chown -R {owner}: {state}`"
    if not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        return Check("state directory", False, f"{state} cannot be written by its own user", "see its mode and mount")
    foreign = [path for path in (state, *state.iterdir()) if path.lstat().st_uid != owner]
    if foreign:
        return Check("state directory", False, f"{foreign[0]} belongs to another user than {state}", mend)
    return Check("state directory", True, f"{state} (user {owner})")


def _disk(node: Node) -> Check:
    directory = _existing(node)
    mend = "make room, or move the state directory"
    room = room_of(directory)
    if room is not None and room.files == 0:
        return Check("disk", False, "no inodes are free for more files", mend)
    free = shutil.disk_usage(directory).free
    return Check("disk", free > LOW_DISK, f"{format_size(free)} free", mend)


def _storage(node: Node) -> Check:
    """Says what fills the disk. It is wrong only when a budget cannot be kept."""
    if is_lost(node.layout) or not node.layout.database.exists():
        return Check("storage", True, "nothing is stored yet")
    found = node.current().storage()
    return Check("storage", not found["over"], storage_line(found), STORAGE_MEND)


def _hooks(node: Node) -> Check:
    """Checks for a noexec mount, the usual reason why git skips a hook; serve proves at start that git runs them."""
    directory = _existing(node)
    noexec = bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)
    found = f"{directory} is on a noexec mount" if noexec else f"hooks can be executed below {directory}"
    return Check("hooks", not noexec, found, "mount it without noexec: git runs the hooks that guard pushes there")


def _existing(node: Node) -> Path:
    """Returns the state directory, or its nearest parent that exists."""
    directory = node.layout.state
    while not directory.exists():
        directory = directory.parent
    return directory


def _database(node: Node) -> Check:
    try:
        return _look_at_database(node)
    except GitmirrorError as error:
        mend = remedy(error, node.layout.state, node.config.backup.to)
        return Check("database", False, error.message, mend or "a backup is a copy of the file gitmirror.db")


def _look_at_database(node: Node) -> Check:
    if not is_lost(node.layout) and not node.layout.database.exists():
        return Check("database", True, "does not exist yet; serve creates it")
    stores = node.stores()
    stores.database.examine()
    stores.audit.check()
    verdict = stores.audit.verify()
    if verdict.broken is not None:
        # Something other than SQLite changed the file, so nobody knows what else is wrong in it.
        raise DatabaseLost(
            f"the audit log is broken at event {verdict.broken}: {verdict.reason}",
            hint="compare with a backup; `audit verify` says more",
        )
    repos, events = len(stores.registry.all()), verdict.events
    found = f"{counted(repos, 'repository', 'repositories')}, {counted(events, 'audit event', 'audit events')}"
    unknown = node.unknown_turns()
    if unknown:
        found += f"; {counted(len(unknown), 'turn in a mirror is', 'turns in mirrors are')} not in the log"
    return Check("database", not unknown, found, "start serve, which records them; `audit verify` says more")


def _backup(node: Node, serving: bool) -> list[Check]:
    """Checks the directory of `[backup]` itself, because a `serve` that hangs or does not run reports nothing."""
    to, every = node.config.backup.to, node.config.backup.every
    if not to:
        return []
    mend = "see the warnings of `status`, then run `gitmirror.pyz backup`"
    try:
        newest = newest_backup(to)
    except GitmirrorError as error:
        return [Check("backup", False, error.message, error.hint or mend)]
    if newest is None:
        return [Check("backup", not serving, f"there is none in {to} yet", mend)]
    found = f"the last one in {to} is {format_duration(max(0.0, time.time() - newest))} old"
    # Without serve nothing is recorded, so an old backup lacks nothing.
    return [Check("backup", not (serving and is_late(newest, every)), found, mend)]


def _drives(node: Node, serving: bool) -> list[Check]:
    """Checks what disks need: readers that can reach the drives, and a tool of the system for one of their forms."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    has_tools = all(shutil.which(tool, path=places) for tool in ("mke2fs", "debugfs"))
    checks = [] if has_tools else [Check("e2fsprogs", True, NO_E2FSPROGS)]
    if node.config.workspace.disk_group:
        checks.append(_guarded("disk_group", lambda: _disk_group(node, serving), "see the log of serve"))
    return checks


def _disk_group(node: Node, serving: bool) -> Check:
    group = node.config.workspace.disk_group
    problem = problem_of_group(group, node.layout.state, int(node.status()["pid"]) if serving else None)
    if problem is not None:
        return Check("disk_group", False, *problem)
    return Check("disk_group", True, f"members of {group} can read the drives of disks")


def _guest_sockets(node: Node, serving: bool) -> list[Check]:
    """Checks that the service can make guests' sockets where the config allows them."""
    config = node.config.guests
    if not config.socket_directories and not config.socket_group:
        return []
    try:
        problems = list(problems_of_sockets(config, int(node.status()["pid"]) if serving else None))
    except GitmirrorError as error:
        problems = [(error.message, error.hint or "see the log of serve")]
    if problems:
        return [Check("guest sockets", False, found, mend) for found, mend in problems]
    return [Check("guest sockets", True, ", ".join(config.socket_directories) or "in any directory")]


def _mirrors(node: Node) -> Check:
    """Reports known damage, and when the content of each mirror was last inspected. `verify --full` inspects it now."""
    if is_lost(node.layout) or not node.layout.database.exists():
        return Check("mirrors", True, "none was inspected yet")
    stores = node.stores()
    healths = stores.health.all()
    known = [(repo.name, healths[repo.id]) for repo in stores.registry.all() if repo.id in healths]
    damaged = [f"{name}: {health.damage}" for name, health in known if health.damage]
    if damaged:
        more = f", and {len(damaged) - MOST_SHOWN} more" if len(damaged) > MOST_SHOWN else ""
        found = "; ".join(damaged[:MOST_SHOWN])
        return Check(
            "mirrors", False, f"damaged: {found}{more}", "`heal REPO` heals one now; check the disk (dmesg, smartctl)"
        )
    cloned = [health for _, health in known if health.cloned]
    whole = [health.verified_whole_at for health in cloned if health.verified_whole_at is not None]
    oldest = f", the first of them on {rfc3339(min(whole))[:10]}" if whole else ""
    return Check("mirrors", True, f"{len(whole)} of {len(cloned)} were inspected in full and found undamaged{oldest}")


def _ports(node: Node) -> list[Check]:
    checks = []
    serve = node.config.serve
    for name, addresses in (("git", serve.git), ("http", serve.http), ("admin", serve.admin)):
        if not addresses:
            checks.append(Check(f"port {name}", True, "off"))
        for address in addresses:
            try:
                try_to_listen(address, name)
                checks.append(Check(f"port {name}", True, f"{address} is free"))
            except GitmirrorError as error:
                checks.append(Check(f"port {name}", False, error.message, error.hint))
    return checks


def _pushes(node: Node) -> Check:
    pushes = node.status()["pushes"] or {}
    if pushes.get("off"):
        return Check("pushes", False, f"pushes are off: {pushes['off']}", pushes["mend"])
    return Check("pushes", True, f"{pushes.get('accepted', 0)} accepted, {pushes.get('rejected', 0)} refused")


def _serve(node: Node) -> Check:
    found = node.status()
    unhealthy = [f"{repo['name']} ({repo['state']})" for repo in found["repos"] if repo["state"] in UNHEALTHY]
    if found["warnings"]:
        return Check(
            "serve",
            False,
            "; ".join(found["warnings"]),
            "fix what the warnings name; a changed setting needs a reload or restart",
        )
    if unhealthy:
        why = "see why in `status`, or in Repositories of the live view"
        return Check("serve", False, f"unhealthy: {', '.join(unhealthy)}", why)
    return Check("serve", True, f"process {found['pid']}, pushes are guarded")


def _not_serving() -> Check:
    return Check("serve", True, "not running")
