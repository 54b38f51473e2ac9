"""Opens what `serve` and the commands without it need from a state directory: stores, git, keyring, privacy."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.core.config.credentials import Credentials
from appliance.core.config.repositories import RepoConfig
from appliance.core.config.settings import Config
from appliance.core.errors import Conflict, GitmirrorError, NotServing, UsageError
from appliance.core.layout import Layout
from appliance.core.names import check_branch_name
from appliance.core.process.endurance import Endurance
from appliance.core.process.groups import how_to_get_in
from appliance.core.store.database import Database, DatabaseLost, StoreError
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.store.told import ToldHead
from appliance.core.upstream import Upstream, choose_name, no_ssh, parse_upstream, same_upstream

if TYPE_CHECKING:
    from appliance.core.access.privacy import Privacy
    from appliance.core.git.command import Git
    from appliance.core.git.complaints import Hear
    from appliance.core.git.keyring import Keyring
    from appliance.core.git.mirror import Mirror
    from appliance.core.process.children import Children

# What runs git is imported where it is used: most commands open the stores alone, and it is a third of their time.

log = logging.getLogger(__name__)


class NoState(NotServing):
    """There is nothing to read, because no `serve` ever ran here; it is rather the wrong directory."""

    def __init__(self, layout: Layout) -> None:
        what = f"there is no gitmirror in {layout.state}" if layout.state.exists() else None
        super().__init__(
            what or f"there is no state directory {layout.state}",
            hint="`serve` makes it at its first start; if the state is elsewhere, name its directory with --state DIR "
            "or GITMIRROR_STATE",
        )


def open_stores(
    layout: Layout, *, create: bool = True, anew: bool = False, patient: bool = False, virtual: bool = False
) -> Stores:
    """Opens the database. Raises NoState if there is none yet and `create` is false, and GitmirrorError.

    With `virtual`, what is not there yet reads as an empty node.

    A database that was lost is an error too, unless `anew`: then a new one is created, and its audit log is marked as
    lacking events. `patient` is for a caller that can continue without it: each use tries again to open the database
    and raises StoreError if it cannot.
    """
    if is_lost(layout):
        if not anew:
            raise DatabaseLost(
                f"the database {layout.database} is missing, and {layout.state} was used before",
                hint="put it back from a backup; or start serve, which makes a new one, serves what the config lists "
                "and refuses pushes until `gitmirror.pyz audit accept-loss`",
            )
        try:
            ToldHead(layout.audit_head).mark_lost()
        except OSError as error:
            if not patient or layout.database.exists():
                raise StoreError(f"{layout.audit_head} cannot be read or written: {error.strerror}") from error
            # Create no new database without the mark in its log: the caller continues without a database until the next
            # start.
            log.error(
                "the database %s was lost, and %s cannot be read or written: %s",
                layout.database,
                layout.audit_head,
                error,
            )
            create = False
            make_state(layout)
        else:
            log.error("the database %s was lost: a new one replaces it, pushes are off", layout.database)
    elif not create and not virtual and not layout.database.exists():
        raise NoState(layout)
    if create:
        make_state(layout)
    return Stores.over(Database(layout.database, create=create, patient=patient, virtual=virtual and not create))


def is_lost(layout: Layout) -> bool:
    """Whether there is no database, or an empty file, in a state directory that was used. Raises GitmirrorError."""
    try:
        if layout.database.stat().st_size:
            return False
    except PermissionError as error:
        raise GitmirrorError(
            f"this user may not enter the state directory {layout.state}",
            hint=f"{how_to_get_in(layout.state)}, or name another one with --state DIR",
        ) from error
    except OSError:
        if layout.database.exists():
            return False
    from appliance.core.git.mirrors import mirrors_on_disk

    return layout.audit_head.exists() or any(mirrors_on_disk(layout))


def make_state(layout: Layout) -> None:
    """Creates the state directory and the directories that are always in it. Raises GitmirrorError.

    The cache and the workspaces are optional. If they cannot be created, the code that uses them reports it.
    """
    try:
        for directory in (layout.state, layout.mirrors, layout.run, layout.pushes):
            directory.mkdir(parents=True, exist_ok=True)
        for directory in (layout.cache, layout.workspaces):
            with contextlib.suppress(OSError):
                directory.mkdir(exist_ok=True)
    except OSError as error:
        raise GitmirrorError(
            f"the state directory {layout.state} cannot be created: {error.strerror} ({error.filename})",
            hint="choose another with --state DIR or GITMIRROR_STATE",
        ) from error


def make_git(layout: Layout, config: Config, children: Children, hear: Hear | None = None) -> Git:
    """Writes git's configs and returns the runner for refreshes and maintenance. The state directory must be claimed.

    Raises GitmirrorError if the configs cannot be written, because git must not run without them.
    """
    from appliance.core.git.command import Git, git_environment, write_git_configs
    from appliance.core.git.complaints import hears_nothing

    try:
        write_git_configs(layout, max_push=config.recording.max_push)
    except OSError as error:
        raise GitmirrorError(
            f"git's configuration in {layout.run} cannot be written: {error.strerror}",
            hint=f"free space on its disk, and make sure that {layout.run} belongs to the user that runs gitmirror",
        ) from error
    return Git(children, git_environment(layout, layout.git_config, os.environ), hear=hear or hears_nothing)


def clean_up(layout: Layout, mirrors: Sequence[Mirror]) -> list[str]:
    """Removes what a killed owner left on disk. Call it only after `claim`, when none of its children is alive.

    A directory that cannot be cleaned is logged and skipped; the code that uses it will report the error.
    """
    from appliance.core.integrity.exchange import settle

    endurance, removed = Endurance(log, "cleaning up"), []
    shutil.rmtree(layout.state / "incoming", ignore_errors=True)
    with endurance.over("heals that were killed"):
        # Done first, because a mirror may still have to be renamed into its place.
        for settled in settle(layout):
            log.warning("%s", settled)
    with endurance.over(str(layout.mirrors)):
        for doomed in layout.mirrors.glob("*/.*.removed"):
            shutil.rmtree(doomed, ignore_errors=True)
    workspaces = [(layout.workspaces, f"*/*/*/{below}.*.new") for below in ("", "*/", "*/packs/")]
    for directory, pattern in ((layout.run, ".*.new"), (layout.uploads, "*"), *workspaces):
        with endurance.over(str(directory)):
            for half_written in directory.glob(pattern):
                half_written.unlink(missing_ok=True)
    for mirror in mirrors:
        with endurance.over(str(mirror.path)):
            if mirror.exists():
                removed += [f"{mirror.path.name}/{leftover}" for leftover in mirror.remove_leftovers()]
    return removed


def make_keyring(config: Config) -> Keyring:
    """The credentials that refreshes use for upstreams."""
    from appliance.core.git.keyring import Keyring

    return Keyring(Credentials(config.credentials), os.environ)


def make_privacy(layout: Layout, config: Config) -> Privacy:
    """Who may read which mirror."""
    from appliance.core.access.privacy import Privacy

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
    """Checks a repository that is to be registered. Raises UsageError."""
    upstream = parse_upstream(url, allow_local=allow_local, has_key=has_key)
    check_branch_name(branch)
    return Wanted(choose_name(upstream, name), upstream.url, branch, interval)


def wanted_of_config(config: Config) -> list[Wanted]:
    """The repositories that the config lists. Raises a UsageError that names the file and the entry."""
    by_name: dict[str, Wanted] = {}
    for number, repo in enumerate(config.repos, 1):
        try:
            wanted = _wanted_entry(repo, config)
            if wanted.name in by_name:
                raise UsageError(
                    f"the name {wanted.name} is already taken by another entry", hint='give it a name = "…"'
                )
        except UsageError as error:
            raise UsageError(f"{config.path}: repos[{number}]: {error.message}", hint=error.hint) from None
        by_name[wanted.name] = wanted
    return list(by_name.values())


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
    """Checks that a mirror that `remove-repo` left on disk is of the same upstream. Raises Conflict if it is not."""
    config = layout.mirror(wanted.name) / "config"
    url = configured_url(config)
    if url is not None and not same_upstream(url, wanted.url):
        raise Conflict(
            f"{wanted.name} on this node's disk is still the mirror of {url}",
            hint=f"give this repository another --name; remove-repo {wanted.name} --purge deletes that mirror with all "
            "sessions recorded in it",
        )


def configured_url(config: Path) -> str | None:
    """The upstream URL in a mirror's own config file, or None if the file is unreadable or has no URL."""
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        key, _, value = line.strip().partition(" = ")
        if key == "url":
            return value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return None
