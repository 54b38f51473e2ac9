"""Makes a node that died anew from what its fleet has: `restore --from-fleet`.

As in a restore of a backup, everything is built in `restoring/` below the state directory and moved into place at the
end, the database last. Once it is whole, a file there says so, and a second run only moves what is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.core.backup.restoring import move_aside_entries, put_in_place, used_entries, was_used
from appliance.core.backup.scratch import side_by_side
from appliance.core.config.settings import Config
from appliance.core.errors import Conflict, GitmirrorError, UsageError
from appliance.core.fleet.estate import Estate, PlacedTurn, read_estate
from appliance.core.fleet.heads import visiting
from appliance.core.fleet.incoming import storable_text
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.log_check import loss_of
from appliance.core.fleet.wire import write
from appliance.core.layout import Layout
from appliance.core.node.restored_mirrors import RestoredMirrors
from appliance.core.node.state_dir import make_git, open_stores, wanted_of_config, wanted_repo
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.children import Children
from appliance.core.process.owner import claim
from appliance.core.store.fleet_turns import FIRST_AWAY
from appliance.core.store.restored import RestoredTurn, write_restored
from appliance.core.store.stores import Stores
from appliance.core.units import rfc3339

WATCH = 12.0
"""Seconds in which a node that is alive says so at least once."""
_COMPLETE = "complete"


@dataclass
class FleetRestoreReport:
    """What was restored, and what could not be: serve tries again what is `unreached`, and what turns lack.

    `unregistered` counts turns of repositories that the fleet's registry does not have; they stay in the fleet.
    """

    node: str
    state: str
    repositories: int = 0
    sessions: int = 0
    turns: int = 0
    attachments: int = 0
    audit_head: str | None = None
    aside: str | None = None
    unreached: dict[str, str] = field(default_factory=dict)
    unregistered: dict[str, int] = field(default_factory=dict)
    lost_turns: list[dict[str, Any]] = field(default_factory=list)
    lost_attachments: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


def restore_from_fleet(
    node: str, layout: Layout, config: Config, *, move_aside: bool, even_if_alive: bool = False, watch: float = WATCH
) -> FleetRestoreReport:
    """Makes the node `node` anew below `layout`. Listens for `watch` seconds whether it is alive, and refuses then.

    Refuses a state directory that was used, unless `move_aside`. Raises GitmirrorError, and then leaves the state
    directory as it was.
    """
    if not config.fleet.is_on:
        raise UsageError("[fleet] servers is empty, so there is nothing to restore from", hint="name the NATS servers")
    building = Layout(layout.state / "restoring")
    try:
        layout.state.mkdir(parents=True, exist_ok=True)
        report, used = _finished(building, node), used_entries(layout)
        if report is None and used and not move_aside:
            raise was_used(layout, used)
        owned = claim(layout, "restore")
        try:
            if report is None:
                shutil.rmtree(building.state, ignore_errors=True)
                report = FleetRestoreReport(node, str(layout.state))
                asyncio.run(_build(report, building, config, owned.children, even_if_alive, watch))
                # git did not sync all that it wrote, and nothing of it counts yet.
                os.sync()
                if used:
                    report.aside = str(move_aside_entries(layout, used))
                write_atomically(building.state / _COMPLETE, json.dumps(report.document()))
            put_in_place(building, layout)
        finally:
            owned.release()
    except OSError as error:
        raise GitmirrorError(
            f"{layout.state} cannot be restored from the fleet: {error.strerror} ({error.filename})",
            hint="nothing that was there is lost; free disk space, then run it again as the user that runs serve",
        ) from error
    return report


def _finished(building: Layout, node: str) -> FleetRestoreReport | None:
    """The report of a restore of this node that was killed while it moved what it had built into place."""
    if not building.database.exists():
        return None
    try:
        report = FleetRestoreReport(**json.loads((building.state / _COMPLETE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return report if report.node == node else None


async def _build(
    report: FleetRestoreReport,
    building: Layout,
    config: Config,
    children: Children,
    even_if_alive: bool,
    watch: float,
) -> None:
    async with visiting(FleetLink(config.fleet)) as link:
        estate = await read_estate(link, report.node, watch)
        _refuse_living(estate, config, even_if_alive)
        stores = open_stores(building)
        try:
            by_repo: dict[str, list[PlacedTurn]] = {}
            for placed in estate.ledger.taken_by(report.node):
                by_repo.setdefault(placed.row.repo, []).append(placed)
            _register(stores, config, estate, report)
            git = make_git(building, config, children)
            mirrors = RestoredMirrors(building, config, git, link, stores, _neighbours(estate), estate.ledger)
            repos = {repo.name: repo for repo in stores.registry.all()}

            async def one(name: str) -> None:
                await mirrors.build(repos[name], by_repo.get(name, []))

            await side_by_side([name for name, repo in repos.items() if repo.enabled or name in by_repo], one)
            report.unregistered = {name: len(turns) for name, turns in sorted(by_repo.items()) if name not in repos}
            turns = sorted((each for name in repos for each in by_repo.get(name, [])), key=lambda each: each.seq)
            _record(stores, estate, report, turns, mirrors)
        finally:
            stores.database.close()
    shutil.rmtree(building.state / "scratch", ignore_errors=True)


def _refuse_living(estate: Estate, config: Config, even_if_alive: bool) -> None:
    own = config.fleet.node_name
    if own != estate.node and own in estate.nodes:
        raise Conflict(
            f"this node's name in the fleet is {own}, and another node of that name is alive",
            hint=f'set node = "{estate.node}" in [fleet]',
        )
    if estate.is_alive and not even_if_alive:
        raise Conflict(
            f"node {estate.node} is alive: it has just said so in the fleet",
            hint="stop its serve first; two nodes of one name would record into each other's sessions. With "
            "--even-if-alive it is restored all the same, for example to look at a copy",
        )


def _neighbours(estate: Estate) -> list[str]:
    """The addresses of other living nodes from which this machine can fetch."""
    from appliance.core.fleet.addresses import is_local, is_url
    from appliance.core.fleet.nodes import boot_id

    machine = boot_id()
    return [
        entry.url
        for entry in estate.nodes.values()
        if entry.url and is_url(entry.url) and (not is_local(entry.url) or (machine and entry.machine == machine))
    ]


def _register(stores: Stores, config: Config, estate: Estate, report: FleetRestoreReport) -> None:
    """Registers what the config lists and what the fleet has; a name that the config lists is the config's."""
    listed = wanted_of_config(config)
    stores.registry.reconcile(listed)
    names = {wanted.name for wanted in listed}
    for name, entry in sorted(estate.repos.items()):
        if name in names:
            continue
        try:
            wanted = wanted_repo(
                entry.url,
                name=name,
                branch=entry.branch,
                interval=entry.interval,
                allow_local=config.refresh.allow_local,
                has_key=lambda _: True,
            )
            stores.registry.add(wanted)
            if not entry.enabled:
                stores.registry.change(name, {"enabled": False})
        except UsageError as error:
            report.unreached[name] = error.message
    report.repositories = len(stores.registry.all())


def _record(
    stores: Stores,
    estate: Estate,
    report: FleetRestoreReport,
    turns: Sequence[PlacedTurn],
    mirrors: RestoredMirrors,
) -> None:
    """Writes the turns into the database, and into the report what there is and what is missing."""
    restored = []
    for placed in turns:
        row, away = placed.row, 0
        if (why := mirrors.lost_turns.get(row.uid)) is not None:
            away = len(report.lost_turns) + 1
            report.lost_turns.append(
                {"repo": row.repo, "session": row.session, "id": row.id, "commit": row.commit, "why": why}
            )
        restored.append(_restored(placed, away))
    at = rfc3339(time.time())
    write_restored(stores, report.node, restored, estate.ledger.kept, [loss_of(log) for log in estate.logs], at)
    report.unreached |= mirrors.unreached
    report.lost_attachments = mirrors.lost_files
    report.turns = len(restored)
    report.sessions = len({(each.row.repo, each.row.session) for each in turns})
    report.attachments = sum(len(each.row.attachments) for each in turns) - len(mirrors.lost_files)
    report.audit_head = stores.audit.head()
    report.logs = [
        {"log": log.log, "id": log.last.head.id, "hash": log.last.head.hash, "at": log.last.at} for log in estate.logs
    ]


def _restored(placed: PlacedTurn, away: int) -> RestoredTurn:
    """A turn for the database. One without objects counts as another node's, so that they are fetched when asked."""
    row = placed.row
    columns = {
        "id": FIRST_AWAY + away - 1 if away else row.id,
        "repo": row.repo,
        "session": row.session,
        "commit_id": row.commit,
        "base": row.base,
        "at": row.at,
        "subject": storable_text(row.subject),
        "commits": row.commits,
        "files_changed": row.files_changed,
        "insertions": row.insertions,
        "deletions": row.deletions,
        "client": storable_text(row.client),
        "guest": storable_text(row.guest) if row.guest is not None else None,
        "bytes": row.bytes,
        "node": row.node,
        "seq": placed.seq,
        "uid": row.uid,
        "away": int(bool(away)),
    }
    notes = {storable_text(key): storable_text(value) for key, value in row.notes.items()}
    files = tuple((storable_text(each.name), each.size, each.sha256) for each in row.attachments)
    return RestoredTurn(columns, row.old, write(row).decode(), notes, files)
