"""Mirrors of a node that is made anew: their history from a neighbour or the upstream, its turns from the fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError
from appliance.core.fleet.downloads import fetch_object
from appliance.core.fleet.estate import Ledger, PlacedTurn
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import TurnRow
from appliance.core.fleet.unpacking import NeedsCommits, unpack
from appliance.core.git.command import Git
from appliance.core.git.failures import Kind
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import make_keyring
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import TURNS
from appliance.core.refresh.attempt import attempt, conclude
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.store.stores import Stores
from appliance.core.upstream import parse_upstream

_OF_UPSTREAM = ("checked_at", "verified_at", "next_due")
"""Columns of a mirror's health that only its upstream can vouch for."""
PATIENCE = 20.0
"""Seconds after which a host that could not be reached for one repository is not asked for the others."""
TRIES = 5
"""How often the fleet is asked for one object before the restore is given up, which would begin anew."""
BACK_WITHIN = 20.0
"""Seconds in which a connection that was lost must be there again, longer than an election takes."""


@dataclass
class RestoredMirrors:
    """Builds mirrors below `building`, one repository after the other or side by side.

    `neighbours` are the addresses of other nodes, which are asked before the upstream. What could not be had is in
    `unreached` (repository: why), `lost_turns` (uid: why) and `lost_files`.
    """

    building: Layout
    config: Config
    git: Git
    link: FleetLink
    stores: Stores
    neighbours: Sequence[str]
    ledger: Ledger
    unreached: dict[str, str] = field(default_factory=dict)
    lost_turns: dict[str, str] = field(default_factory=dict)
    lost_files: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._locks = MirrorLocks()
        self._silent: dict[str, str] = {}
        timeout = self.config.refresh.timeout
        self._refresher = Refresher(self.building, self.git, self._locks, make_keyring(self.config), timeout=timeout)
        self._scratch = self.building.state / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)

    async def build(self, repo: Repo, turns: Sequence[PlacedTurn]) -> None:
        """Makes the mirror of one repository and puts its turns into it. Raises FleetAway, GitError and OSError."""
        mirror = Mirror(self.building.mirror(repo.name), self.git)
        if (error := await self._clone(repo, mirror)) is not None:
            self.unreached[repo.name] = error
            if not mirror.exists():
                await mirror.initialise(repo.url)
                mirror.await_upstream()
        refs: dict[str, str] = {}
        for placed in turns:
            row = placed.row
            async with self._locks.shared(repo.name):
                why = await self._bring(mirror, row, set())
                if why is not None:
                    self.lost_turns[row.uid] = why
                    continue
                # Now, because nothing else keeps the objects.
                await mirror.update_refs([f"update {TURNS}{row.id} {row.commit}\n"])
            refs[f"{AGENTS}{row.session}"] = row.commit
            await self._fetch_files(row)
        await mirror.update_refs([f"update {ref} {oid}\n" for ref, oid in sorted(refs.items())])

    async def _clone(self, repo: Repo, mirror: Mirror) -> str | None:
        """Fetches the history; returns why nobody had it, in the upstream's words."""
        sources = [f"{url.rstrip('/')}/{repo.name}" for url in self.neighbours]
        error = "nobody was asked"
        for url in [*sources, repo.url]:
            host = urlsplit(url).netloc
            if host in self._silent:
                error = self._silent[host]
                continue
            started = time.monotonic()
            result = await attempt(self._refresher, RefreshRun(replace(repo, url=url)))
            before = self.stores.health.get(repo.id)
            ended = conclude(
                repo,
                before,
                result,
                interval=repo.interval or self.config.refresh.interval,
                duration=time.monotonic() - started,
                ended_at=time.time(),
            )
            if isinstance(result, MirrorFacts):
                columns = dict(ended.columns)
                if url != repo.url:
                    mirror.configure(repo.url)
                    keyring = self._refresher.current_keyring()
                    if keyring.entry(parse_upstream(repo.url, allow_local=True, has_key=keyring.has_key)) is not None:
                        # As if it had been fetched with the credential: the neighbour's mirror was.
                        mirror.mark(repo.url)
                    columns = {key: value for key, value in columns.items() if key not in _OF_UPSTREAM}
                self.stores.health.record_refresh(repo.id, ended.outcome, **columns)
                return None
            error = ended.outcome.error or str(result)
            is_silent = ended.outcome.kind in (Kind.DNS, Kind.REFUSED, Kind.TIMEOUT)
            if host and is_silent and time.monotonic() - started > PATIENCE:
                # A thousand repositories of a host that answers nobody would take a minute each.
                self._silent[host] = f"{host} was silent before: {error}"
        return error

    async def _bring(self, mirror: Mirror, row: TurnRow, tried: set[str]) -> str | None:
        """Puts a turn's objects into the mirror, with what its bundle builds on; returns why that cannot be done."""
        tried.add(row.commit)
        try:
            try:
                await self._again(lambda: unpack(self.link, mirror, row, self._scratch))
            except NeedsCommits as needs:
                # A turn of another node, or one that was ended since.
                for commit in needs.missing:
                    under = self.ledger.every.get((row.repo, commit))
                    if under is None or commit in tried or await self._bring(mirror, under, tried) is not None:
                        return needs.message
                await self._again(lambda: unpack(self.link, mirror, row, self._scratch))
        except FleetAway:
            raise
        except GitmirrorError as error:
            return error.message
        return None

    async def _fetch_files(self, row: TurnRow) -> None:
        for attached in row.attachments:
            place = self.building.attachments / row.repo / str(row.id) / attached.sha256
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                await self._again(
                    lambda name=attached.sha256, size=attached.size, place=place: fetch_object(  # type: ignore[misc]
                        self.link, name, size, name, place
                    )
                )
            except FleetAway:
                raise
            except GitmirrorError as error:
                self.lost_files.append({"repo": row.repo, "turn": row.id, "name": attached.name, "why": error.message})

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does `work`, and again if the fleet does not answer: a lost server costs seconds only. Raises FleetAway."""
        for left in reversed(range(TRIES)):
            try:
                return await work()
            except FleetAway:
                if not left:
                    raise
            try:
                async with asyncio.timeout(BACK_WITHIN):
                    await self.link.wait_up()
            except TimeoutError:
                raise FleetAway(f"the fleet cannot be used any more: {self.link.trouble}") from None
