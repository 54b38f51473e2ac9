"""Configuration: frozen dataclasses read from one TOML file and the environment.

An error names the file, the key, what is wrong and what is allowed. An unknown key is an error, because a misspelt
setting would otherwise silently have no effect.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from appliance.core.config.addresses import ListenAddress, parse_listeners
from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.fields import (
    ANYONE,
    POINTERS,
    directories,
    group,
    lfs,
    parse_budget,
    parse_count,
    parse_directory,
    parse_flag,
    parse_interval,
    parse_positive,
    parse_url,
    public_url,
    setting,
    words,
    workspace_history,
    writers,
)
from appliance.core.config.fields import history as disk_words
from appliance.core.config.fields import text as _text
from appliance.core.config.fleet import FleetConfig
from appliance.core.config.repositories import AllowConfig, RepoConfig
from appliance.core.errors import UsageError
from appliance.core.units import format_duration, parse_size

SYSTEM_STATE = Path("/var/lib/gitmirror")
SYSTEM_CONFIG = Path("/etc/gitmirror/gitmirror.toml")


@dataclass(frozen=True)
class ServeConfig:
    """`[serve]`: the addresses for guests and operators, and the limits of connections."""

    git: tuple[ListenAddress, ...] = setting(
        "127.0.0.1:9418",
        parse_listeners,
        'Address for guests over git://, or a list of them: HOST:PORT, unix:/path or vsock:PORT; "" turns it off, '
        "port 0 picks a free port.",
    )
    http: tuple[ListenAddress, ...] = setting(
        "127.0.0.1:9419", parse_listeners, "Address for guests over HTTP, or a list of them."
    )
    admin: tuple[ListenAddress, ...] = setting(
        "127.0.0.1:9420",
        parse_listeners,
        "Address for the API, health, metrics and webhooks, or a list of them. Guests must not reach it.",
    )
    public_git: str = setting(
        "", public_url("git"), 'URL that guests use for the git listener, when it differs: "git://mirror:9418".'
    )
    public_http: str = setting(
        "",
        public_url("http", "https"),
        'URL that guests use for the HTTP listener, when it differs: "http://mirror:9419".',
    )
    max_clients: int = setting(512, parse_count, "Guests served at once; further guests wait.")
    queue_timeout: float = setting("30s", parse_positive, "How long a guest waits for a slot before it gets an error.")
    request_timeout: float = setting("10s", parse_positive, "How long a guest may take to send its first packet.")
    idle_timeout: float = setting("5m", parse_positive, "Close a connection when no byte has passed for this long.")
    total_timeout: float = setting("1h", parse_positive, "The longest time that a guest's connection may last.")
    drain_timeout: float = setting("30s", parse_positive, "How long running transfers may take to end after SIGTERM.")
    wait_for_clone: float = setting(
        "10s", parse_positive, "How long a guest waits for the first clone of a repository that [[allow]] allows."
    )


@dataclass(frozen=True)
class RefreshConfig:
    """`[refresh]`: how mirrors follow their upstreams."""

    interval: float = setting("60s", parse_interval, "Time between two refreshes of a repository; at least 1s.")
    timeout: float = setting("10m", parse_positive, "Kill a refresh, with all its processes, when it takes longer.")
    concurrency: int = setting(4, parse_count, "How many refreshes run at once.")
    stale_after: float = setting("10m", parse_positive, "A repository whose lag is above this is stale.")
    allow_local: bool = setting(False, parse_flag, "Allow file:// URLs and paths as upstreams.")
    webhook_secret_file: str = setting(
        "", _text, "File with the secret of POST /hooks/github; without it that route is off."
    )
    token_file: str = setting(
        "", _text, "File with the token for POST /OWNER/REPO/refresh; without it that route is off."
    )


@dataclass(frozen=True)
class CacheConfig:
    """`[cache]`: responses cached for guests."""

    budget: int = setting("10GiB", parse_size, "The most bytes that cached responses may take on disk.")
    lfs_budget: int = setting(
        "20GiB",
        parse_size,
        'The most bytes that LFS objects may take on disk; "0B" sends git-lfs to the upstream.',
    )


@dataclass(frozen=True)
class WorkspaceConfig:
    """`[workspace]`: snapshots, and disks for guests whose VMM attaches drives."""

    enabled: bool = setting(
        True, parse_flag, "Keep a ready workspace (snapshot) of each repository's branch. Does not turn disks off."
    )
    history: str = setting(
        "auto", workspace_history, 'History of a snapshot: "full", "trees", "tip", or "auto" by size.'
    )
    history_below: int = setting("2GiB", parse_size, 'Above this size of all history, packed, "auto" means "tip".')
    submodules: bool = setting(
        False, parse_flag, "Include the submodules whose upstreams are mirrored here in each workspace."
    )
    lfs: str = setting(
        POINTERS, lfs, 'LFS files of a workspace: "content", or "pointers" for git-lfs to fetch from the mirror.'
    )
    disk_history: str = setting(
        "full", disk_words, 'History of a disk: "full", or "tip" for the commit alone (depth 1).'
    )
    disk_budget: int = setting(
        "50GiB", parse_size, "The most bytes that disks may take; leased disks stay even beyond it."
    )
    disk_group: str = setting(
        "", group, "Group whose members, such as the VMM, may read the drives; without it the service's own group."
    )


@dataclass(frozen=True)
class RecordingConfig:
    """`[recording]`: what agents push."""

    writers: str = setting(
        ANYONE, writers, 'Who may push sessions: "anyone", or "guests" for known guests (`guest add`) alone.'
    )
    max_push: int = setting("256MiB", parse_size, "The largest pack that a push may send.")
    max_objects: int = setting(50_000, parse_count, "The most objects that the pack of a push may hold.")
    max_new_sessions: int = setting(600, parse_count, "The most new sessions per minute and mirror.")
    max_turns: int = setting(1000, parse_count, "The most turns of a session.")
    max_bytes: int = setting("50GiB", parse_size, "The most bytes that all recorded packs may take together.")
    retention: float = setting("30d", parse_positive, "A session is deleted this long after its last turn.")


@dataclass(frozen=True)
class GuestsConfig:
    """`[guests]`: the sockets of known guests."""

    socket_directories: tuple[str, ...] = setting(
        [], directories, "Directories that may hold guests' sockets; under systemd, serve can write to no others."
    )
    socket_group: str = setting(
        "", group, "Group whose members, such as the VMM, may connect to guests' sockets; else the service's own group."
    )


@dataclass(frozen=True)
class AlertsConfig:
    """`[alerts]`: where alerts go: one when a repository turns unhealthy, and one when it has recovered."""

    command: tuple[str, ...] = setting("", words, "Command to run for each alert; it gets the alert as JSON on stdin.")
    url: str = setting("", parse_url, "URL to which each alert is posted as JSON.")


@dataclass(frozen=True)
class EventsConfig:
    """`[events]`: where events go, as they happen."""

    command: tuple[str, ...] = setting(
        "", words, "Command that runs as long as serve does and gets each event as a line of JSON on stdin."
    )
    url: str = setting("", parse_url, "URL to which each event is posted as JSON.")


@dataclass(frozen=True)
class BackupConfig:
    """`[backup]`: copies of what exists only on this node."""

    to: str = setting("", parse_directory, "Directory for backups, on another disk; without it serve makes none.")
    every: float = setting("1h", parse_interval, "Time between two backups; at least 1s.")


@dataclass(frozen=True)
class StorageConfig:
    """`[storage]`: what the state directory may take on its disk."""

    budget: int | None = setting(
        "", parse_budget, "The most bytes that the state directory may take; past it, what can be fetched again goes."
    )


@dataclass(frozen=True)
class Config:
    """The whole configuration. `path` is the file it came from, or None for the defaults."""

    path: Path | None = None
    serve: ServeConfig = field(default_factory=ServeConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    workspace: WorkspaceConfig = field(default_factory=WorkspaceConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    guests: GuestsConfig = field(default_factory=GuestsConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    backup: BackupConfig = field(default_factory=BackupConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    repos: tuple[RepoConfig, ...] = ()
    credentials: tuple[CredentialConfig, ...] = ()
    allow: tuple[AllowConfig, ...] = ()

    def warnings(self) -> list[str]:
        """Returns warnings about values that are allowed but surely not intended."""
        found = []
        slowest = max([self.refresh.interval, *(repo.interval or 0 for repo in self.repos)])
        if self.refresh.stale_after <= slowest:
            found.append(
                f"refresh.stale_after ({format_duration(self.refresh.stale_after)}) is not above the longest interval "
                f"({format_duration(slowest)}): healthy repositories will be reported as stale"
            )
        return found


SECTIONS: dict[str, type[Any]] = {
    "serve": ServeConfig,
    "refresh": RefreshConfig,
    "cache": CacheConfig,
    "workspace": WorkspaceConfig,
    "recording": RecordingConfig,
    "guests": GuestsConfig,
    "alerts": AlertsConfig,
    "events": EventsConfig,
    "backup": BackupConfig,
    "storage": StorageConfig,
    "fleet": FleetConfig,
}

_Section = TypeVar("_Section")


def _refuse_unknown(path: Path, where: str, given: Mapping[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            dotted = f"{where}.{key}" if where else key
            raise UsageError(
                f"{path}: unknown key {dotted}",
                hint=f"did you mean {where + '.' if where else ''}{near[0]}? Known: {', '.join(known)}",
            )


def _section(path: Path, where: str, kind: type[_Section], given: Any) -> _Section:
    if not isinstance(given, dict):
        raise UsageError(f"{path}: {where} must be a table", hint=f"write [{where}] on a line of its own")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(path, where, given, list(known))
    values = {}
    for key, value in given.items():
        try:
            values[key] = known[key].metadata["parse"](value)
        except ValueError as error:
            # A URL may carry a password, which the error must not repeat.
            shown = re.sub(r"//[^/@]*@", "//…@", repr(value))
            raise UsageError(f"{path}: {where}.{key} is {shown}", hint=f"it must be {error}") from None
    return kind(**values)


def _tables(path: Path, key: str, kind: type[_Section], document: Mapping[str, Any]) -> tuple[_Section, ...]:
    listed = document.get(key, [])
    if not isinstance(listed, list):
        raise UsageError(f"{path}: {key} must be a list of tables", hint=f"write [[{key}]] before each entry")
    return tuple(_section(path, f"{key}[{number}]", kind, item) for number, item in enumerate(listed, 1))


def parse_config(text: str, path: Path) -> Config:
    """Parses the text of a config file; `path` is used in errors only. Raises UsageError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        twice = re.match(r"Cannot declare \('(\w+)',\) twice", str(error))
        hint = f"[{twice[1]}] is there already: write your lines below that line" if twice else ""
        raise UsageError(f"{path} is not valid TOML: {error}", hint=hint) from None
    _refuse_unknown(path, "", document, [*SECTIONS, "repos", "credentials", "allow"])
    sections = {key: _section(path, key, SECTIONS[key], value) for key, value in document.items() if key in SECTIONS}
    repos = _tables(path, "repos", RepoConfig, document)
    for number, repo in enumerate(repos, 1):
        if not repo.url:
            raise UsageError(f"{path}: repos[{number}].url is missing", hint='url = "https://github.com/OWNER/REPO"')
    credentials = _tables(path, "credentials", CredentialConfig, document)
    for number, credential in enumerate(credentials, 1):
        if fault := credential.fault():
            raise UsageError(f"{path}: credentials[{number}]: {fault[0]}", hint=fault[1])
        if credential.url in [earlier.url for earlier in credentials[: number - 1]]:
            raise UsageError(
                f"{path}: credentials[{number}]: {credential.url} already has an entry", hint="remove one of the two"
            )
    allowed = _tables(path, "allow", AllowConfig, document)
    for number, entry in enumerate(allowed, 1):
        if not entry.url:
            raise UsageError(f"{path}: allow[{number}].url is missing", hint='url = "https://github.com/OWNER/*"')
    return Config(path=path, repos=repos, credentials=credentials, allow=allowed, **sections)


def load_config(path: Path | None) -> Config:
    """Reads the config at `path`, or returns the defaults for None. Raises UsageError when it cannot be read."""
    if path is None:
        return Config()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    return parse_config(text, path)


def find_config(option: str | None, environ: Mapping[str, str]) -> Path | None:
    """Returns the path from `--config`, else `$GITMIRROR_CONFIG`, else SYSTEM_CONFIG if it exists."""
    named = option or environ.get("GITMIRROR_CONFIG")
    if named:
        return Path(named).absolute()
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else None


def find_state(option: str | None, environ: Mapping[str, str]) -> Path:
    """Returns `--state`, else `$GITMIRROR_STATE`, else systemd's `$STATE_DIRECTORY`, else the default.

    The default is SYSTEM_STATE when it exists or the user is root, and a directory in the user's home otherwise.
    """
    named = option or environ.get("GITMIRROR_STATE") or environ.get("STATE_DIRECTORY")
    if named:
        return Path(named).absolute()
    if SYSTEM_STATE.exists() or os.geteuid() == 0:
        return SYSTEM_STATE
    return Path.home() / ".local" / "state" / "gitmirror"
