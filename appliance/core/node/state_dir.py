"""What `serve` and the commands without it both need of one state directory, built once."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.core.access.privacy import Privacy
from appliance.core.config.credentials import Credentials
from appliance.core.config.settings import Config, RepoConfig
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.command import Git, git_environment, write_git_configs
from appliance.core.git.keyring import Keyring
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import mirrors_on_disk
from appliance.core.layout import Layout
from appliance.core.names import is_branch_name
from appliance.core.process.children import Children
from appliance.core.process.endurance import Endurance
from appliance.core.store.database import Database, StoreError
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.store.told import LOST, ToldHead
from appliance.core.upstream import Upstream, choose_name, no_ssh, parse_upstream, same_upstream

log = logging.getLogger(__name__)


def open_stores(layout: Layout, *, create: bool = True, anew: bool = False, patient: bool = False) -> Stores:
    """Opens the database. Without `create`, one that is missing is an error. Raises GitmirrorError.

    So is one that was lost, unless `anew`: then a new one is made, whose audit log is marked as lacking what was told.
    `patient` is for what goes on without it: each use tries again to open it, and raises StoreError meanwhile.
    """
    if is_lost(layout):
        if not anew:
            raise StoreError(
                f"the database {layout.database} is missing, and {layout.state} was used before",
                hint="put it back from a backup; or start serve, which makes a new one, serves what the config lists "
                "and refuses pushes until `gitmirror.pyz audit accept-loss`",
            )
        try:
            told = ToldHead(layout.audit_head)
            if told.read() is None:
                told.write(LOST)
        except OSError as error:
            raise StoreError(f"{layout.audit_head} cannot be written: {error.strerror}") from error
        log.error("the database %s was lost: a new one takes its place, pushes are off", layout.database)
    if create:
        make_state(layout)
    return Stores.over(Database(layout.database, create=create, patient=patient))


def is_lost(layout: Layout) -> bool:
    """Whether there is no database, or an empty file, in a state directory that was used. Raises GitmirrorError."""
    try:
        if layout.database.stat().st_size:
            return False
    except PermissionError as error:
        raise GitmirrorError(
            f"this user may not enter the state directory {layout.state}",
            hint="run the command with sudo or as a member of the directory's group, or name another one with "
            "--state DIR",
        ) from error
    except OSError:
        if layout.database.exists():
            return False
    return layout.audit_head.exists() or any(mirrors_on_disk(layout))


def make_state(layout: Layout) -> None:
    """Makes the state directory and what is always in it. Raises GitmirrorError.

    Cache and workspaces can be done without; who uses them says so when they cannot be made.
    """
    try:
        for directory in (layout.state, layout.mirrors, layout.run, layout.pushes):
            directory.mkdir(parents=True, exist_ok=True)
        for directory in (layout.cache, layout.workspaces):
            with contextlib.suppress(OSError):
                directory.mkdir(exist_ok=True)
    except OSError as error:
        raise GitmirrorError(
            f"the state directory {layout.state} cannot be made: {error.strerror} ({error.filename})",
            hint="choose another with --state DIR or GITMIRROR_STATE",
        ) from error


def make_git(layout: Layout, config: Config, children: Children) -> Git:
    """The runner for refresh and maintenance; writes git's configs. The state directory must be claimed.

    Raises GitmirrorError: git without its configs would do what it must not.
    """
    try:
        write_git_configs(layout, max_push=config.recording.max_push)
    except OSError as error:
        raise GitmirrorError(
            f"git's configuration in {layout.run} cannot be written: {error.strerror}",
            hint=f"make room on its disk, and see that {layout.run} belongs to the user that runs gitmirror",
        ) from error
    return Git(children, git_environment(layout, layout.git_config, os.environ))


def clean_up(layout: Layout, mirrors: Sequence[Mirror]) -> list[str]:
    """Removes what a killed owner left on disk. Only after `claim`, when none of its children is left.

    A directory that cannot be cleaned is passed over, and logged: what uses it will tell.
    """
    endurance, removed = Endurance(log, "cleaning up"), []
    shutil.rmtree(layout.state / "incoming", ignore_errors=True)
    with endurance.over(str(layout.mirrors)):
        for doomed in layout.mirrors.glob("*/.*.removed"):
            shutil.rmtree(doomed, ignore_errors=True)
    for mirror in mirrors:
        with endurance.over(str(mirror.path)):
            if mirror.exists():
                removed += [f"{mirror.path.name}/{left}" for left in mirror.remove_leftovers()]
    return removed


def make_keyring(config: Config) -> Keyring:
    """What refreshes open upstreams with."""
    return Keyring(Credentials(config.credentials), os.environ)


def make_privacy(layout: Layout, config: Config) -> Privacy:
    """Who may read which mirror."""
    return Privacy(layout, Credentials(config.credentials))


def wanted_repo(
    url: str,
    *,
    name: str | None,
    branch: str | None,
    interval: float | None,
    allow_local: bool,
    has_key: Callable[[Upstream], bool] = no_ssh,
) -> Wanted:
    """Checks what somebody asks to register. Raises UsageError."""
    upstream = parse_upstream(url, allow_local=allow_local, has_key=has_key)
    if branch is not None and not is_branch_name(branch):
        raise UsageError(f"{branch!r} is not a branch's name", hint="give it without refs/heads/, as in --branch main")
    return Wanted(choose_name(upstream, name), upstream.url, branch, interval)


def wanted_of_config(config: Config) -> list[Wanted]:
    """The static list. Raises UsageError that names the file and the entry."""
    found: dict[str, Wanted] = {}
    for number, repo in enumerate(config.repos, 1):
        try:
            wanted = _wanted_entry(repo, config)
            if wanted.name in found:
                raise UsageError(
                    f"the name {wanted.name} is already taken by another entry", hint='give it a name = "…"'
                )
        except UsageError as error:
            raise UsageError(f"{config.path}: repos[{number}]: {error.message}", hint=error.hint) from None
        found[wanted.name] = wanted
    return list(found.values())


def _wanted_entry(repo: RepoConfig, config: Config) -> Wanted:
    return wanted_repo(
        repo.url,
        name=repo.name or None,
        branch=repo.branch or None,
        interval=repo.interval,
        allow_local=config.refresh.allow_local,
        has_key=make_keyring(config).has_key,
    )


def refuse_foreign_leftover(layout: Layout, wanted: Wanted) -> None:
    """A mirror that `remove-repo` left on disk is taken up again for the same upstream only. Raises UsageError."""
    config = layout.mirror(wanted.name) / "config"
    url = configured_url(config)
    if url is not None and not same_upstream(url, wanted.url):
        raise UsageError(
            f"{layout.mirror(wanted.name)} still holds the mirror of {url}",
            hint=f"give this one another --name; remove-repo {wanted.name} --purge deletes that mirror with all "
            "sessions recorded in it",
        )


def configured_url(config: Path) -> str | None:
    """The upstream that a mirror's own config file names; None when it cannot be read or names none."""
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        key, _, value = line.strip().partition(" = ")
        if key == "url":
            return value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return None
