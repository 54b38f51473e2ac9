"""Brings turns that other nodes took into this node's mirrors, when somebody asks for them.

A turn comes as a bundle from the object store. If the mirror lacks commits that the bundle builds on, they are looked
for where it costs least: among the other turns of the session, then at the upstream (by a refresh), then at the other
nodes, which give out any commit. However many ask for one turn at once, it is brought once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.core.errors import GitmirrorError, NotFound
from appliance.core.events.facts import Publish
from appliance.core.events.fleet_facts import TurnsBrought
from appliance.core.fleet.addresses import is_url
from appliance.core.fleet.downloads import NotInFleet, ObjectRefused
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import NotOurs, TurnRow
from appliance.core.fleet.quarantine import quarantine, unheard
from appliance.core.fleet.session_refs import is_here, point_session, set_turn_ref
from appliance.core.fleet.unpacking import NeedsCommits, is_whole, lacking, unpack
from appliance.core.fleet.wire import read
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Repo, Turn
from appliance.core.store.away_turns import AwayTurn, AwayTurnStore
from appliance.core.store.sessions import SessionStore

log = logging.getLogger(__name__)

WITHIN = 60.0
"""Seconds in which a turn must be here, its bundle and what it builds on included."""
AT_ONCE = 4
"""Turns that are brought at once; each may take a process of git and a file as large as its bundle."""
REFRESH = 20.0
"""Seconds that a refresh of the mirror may take before the other nodes are asked."""
FROM_A_NODE = 20.0
"""Seconds in which another node must give what it is asked for."""
DEEPEST = 50
"""Turns of a session that are brought because one builds on the other."""


class KnownNodes(Protocol):
    """The other nodes, as far as bringing needs them."""

    def names(self) -> list[str]:
        """Their names."""
        ...

    def is_alive(self, node: str) -> bool:
        """Whether a node said something of late."""
        ...

    def url_of(self, node: str) -> str | None:
        """Where this node can fetch from that one."""
        ...


Refresh = Callable[[Repo], Awaitable[Any]]
"""Refreshes a mirror now and waits; for one that is not cloned yet, waits for its clone. Raises GitmirrorError."""


FetchCommits = Callable[[Repo, Sequence[str]], Awaitable[None]]
"""Fetches commits from a mirror's upstream by their ids. Raises GitmirrorError."""


class CannotBring(GitmirrorError):
    """A turn of another node cannot be had now; nothing was changed."""


class Bringing:
    """Brings turns into `mirrors`. `scratch` is a directory for bundles while they are unpacked."""

    def __init__(
        self,
        link: FleetLink,
        mirrors: Mirrors,
        sessions: SessionStore,
        away: AwayTurnStore,
        nodes: KnownNodes,
        refresh: Refresh,
        fetch_commits: FetchCommits,
        publish: Publish,
        scratch: Path,
    ) -> None:
        self._link = link
        self._mirrors = mirrors
        self._sessions = sessions
        self._away = away
        self._nodes = nodes
        self._refresh = refresh
        self._fetch_commits = fetch_commits
        self._publish = publish
        self._scratch = scratch
        self._flights: dict[int, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.brought = 0
        """Turns that were brought since the start."""

    @property
    def is_on(self) -> bool:
        """Whether this node belongs to a fleet, so that there may be anything to bring."""
        return self._link.is_on

    async def newest(self, repo: Repo, session: str) -> str | None:
        """The commit that a session's ref must have because its last turn is another node's; otherwise None.

        Raises StoreError.
        """
        turn = await asyncio.to_thread(self._away.newest, repo.name, session)
        return turn.commit if turn else None

    async def bring_newest(self, repo: Repo, session: str) -> None:
        """Has the mirror hold the last turn of a session, and the session's ref point there. Raises CannotBring."""
        turn = await asyncio.to_thread(self._away.newest, repo.name, session)
        if turn is not None:
            await self._bring(repo, turn)

    async def bring_commit(self, repo: Repo, oid: str) -> bool:
        """Has the mirror hold a commit if it is that of another node's turn; returns whether. Raises CannotBring."""
        turn = await asyncio.to_thread(self._away.with_commit, repo.name, oid)
        if turn is None:
            return False
        await self._bring(repo, turn)
        return True

    async def bring(self, repo: Repo, turns: Sequence[Turn]) -> None:
        """Has the mirror hold these turns; those that are here or this node's own are passed over.

        Raises CannotBring, NotFound.
        """
        for turn in turns:
            if not turn.away or await asyncio.to_thread(is_here, self._mirrors(repo.name).path, turn.id):
                continue
            found = await asyncio.to_thread(self._away.get, turn.id)
            if found is None:
                raise NotFound(f"{turn.session} has no such turn any more", hint="it was ended meanwhile")
            await self._bring(repo, found)

    async def _bring(self, repo: Repo, turn: AwayTurn) -> None:
        flight = self._flights.get(turn.id)
        if flight is None:
            flight = self._flights[turn.id] = asyncio.create_task(
                self._bring_once(repo, turn), name=f"turn {turn.id} of {turn.session}"
            )
            flight.add_done_callback(lambda done: self._landed(turn, done))
        await asyncio.shield(flight)

    def _landed(self, turn: AwayTurn, flight: asyncio.Task[None]) -> None:
        del self._flights[turn.id]
        if not flight.cancelled() and (error := flight.exception()) is not None:
            # Whoever waits is told, too; they may all have left.
            log.warning("%s: %s", turn.repo, error)

    async def _bring_once(self, repo: Repo, turn: AwayTurn) -> None:
        try:
            async with asyncio.timeout(WITHIN), self._slots:
                mirror = await self._cloned(repo)
                async with self._mirrors.locks.shared(repo.name, preempt=True):
                    # Another guest's may have landed between the look at the refs and this.
                    was_here = await asyncio.to_thread(is_here, mirror.path, turn.id)
                    await self._objects(repo, mirror, _row(turn), DEEPEST)
                    await set_turn_ref(mirror, self._away, turn)
                    await point_session(mirror, self._sessions, self._away, turn)
        except TimeoutError:
            raise self._cannot(turn, f"it was not here within {WITHIN:g}s") from None
        except (GitmirrorError, OSError) as error:
            why = error.message if isinstance(error, GitmirrorError) else f"{error.strerror} ({error.filename})"
            raise self._cannot(turn, why) from error
        if not was_here:
            log.info("%s: brought a turn of %s from node %s", repo.name, turn.session, turn.node)
            self.brought += 1
        self._publish(TurnsBrought(repo=repo, session=turn.session))

    @staticmethod
    def _cannot(turn: AwayTurn, why: str) -> CannotBring:
        return CannotBring(
            f"session {turn.session} was recorded on node {turn.node} and cannot be fetched now: {why}",
            hint="`fleet status` says which nodes and servers can be reached; try again",
        )

    async def _cloned(self, repo: Repo) -> Mirror:
        """The mirror of a repository, once its first clone is there. Raises GitmirrorError."""
        mirror = self._mirrors(repo.name)
        if not self._mirrors.has(repo):
            await self._refresh(repo)
            if not mirror.exists():
                raise GitmirrorError(f"{repo.name} was not cloned yet", hint="its status says why")
        return mirror

    async def _objects(self, repo: Repo, mirror: Mirror, row: TurnRow, depth: int) -> None:
        """Has the mirror hold a turn's commit, by whichever way succeeds first. Raises GitmirrorError, OSError."""
        try:
            missing = await self._unpack(mirror, row)
            if missing and depth:
                await self._from_session(repo, mirror, row, missing, depth)
                missing = await self._unpack(mirror, row)
            if missing:
                await self._from_upstream(repo)
                missing = await self._unpack(mirror, row)
            if row.commit in missing:
                missing = () if await self._whole_from_nodes(mirror, row) else missing
            elif missing:
                await self._from_nodes(mirror, row, missing)
                missing = await self._unpack(mirror, row)
            if missing:
                await self._by_id(repo, missing)
                missing = await self._unpack(mirror, row)
        except (FleetAway, NotInFleet, ObjectRefused) as error:
            # Another node may have the commit itself, as this one had if it was healed since.
            if not await self._whole_from_nodes(mirror, row):
                raise error
            return
        if missing:
            raise NeedsCommits(missing)

    async def _unpack(self, mirror: Mirror, row: TurnRow) -> Sequence[str]:
        """Unpacks a turn's bundle; returns the commits without which that cannot be done."""
        try:
            await unpack(self._link, mirror, row, self._scratch)
        except NeedsCommits as needs:
            return needs.missing
        return ()

    async def _from_session(self, repo: Repo, mirror: Mirror, row: TurnRow, missing: Sequence[str], depth: int) -> None:
        """Brings the turns of the session that have one of the missing commits."""
        turns = await asyncio.to_thread(self._away.of_session, repo.name, row.session)
        for turn in turns:
            if turn.commit in missing and turn.commit != row.commit:
                await self._objects(repo, mirror, _row(turn), depth - 1)
                await set_turn_ref(mirror, self._away, turn)

    async def _from_upstream(self, repo: Repo) -> None:
        try:
            async with asyncio.timeout(REFRESH):
                await self._refresh(repo)
        except (GitmirrorError, TimeoutError) as error:
            log.info("%s was not refreshed for a turn of another node: %s", repo.name, error)

    async def _by_id(self, repo: Repo, commits: Sequence[str]) -> None:
        """Asks the upstream for commits that its refs do not have any more, as after a forced push."""
        try:
            async with asyncio.timeout(REFRESH):
                await self._fetch_commits(repo, commits)
        except (GitmirrorError, TimeoutError) as error:
            log.info("the upstream of %s does not give %s: %s", repo.name, ", ".join(commits[:3]), error)

    def _urls(self, row: TurnRow) -> list[str]:
        """Where other nodes have the repository: first the one that took the turn, then those that live."""
        first = row.node
        others = [node for node in self._nodes.names() if node not in (first, self._link.node)]
        others.sort(key=lambda node: not self._nodes.is_alive(node))
        found = [self._nodes.url_of(node) for node in (first, *others) if node != self._link.node]
        return [f"{url.rstrip('/')}/{row.repo}" for url in found if url is not None and is_url(url)]

    async def _from_nodes(self, mirror: Mirror, row: TurnRow, missing: Sequence[str]) -> None:
        """Fetches commits of the upstream that it does not have any more, as a refresh would have fetched them."""
        for url in self._urls(row):
            try:
                await unheard(mirror).run(*_FETCH, url, *missing, cwd=mirror.path, deadline=FROM_A_NODE)
            except GitError as error:
                log.info("%s has not what %s builds on: %s", url, row.commit, error.message)
            else:
                missing = await lacking(mirror, missing)
                if not missing:
                    return

    async def _whole_from_nodes(self, mirror: Mirror, row: TurnRow) -> bool:
        """Fetches a turn's commit from another node, as strictly as from the object store."""
        for url in self._urls(row):
            try:
                async with quarantine(mirror) as aside:
                    strict = ("-c", "fetch.fsckObjects=true", "-c", "fetch.unpackLimit=1")
                    await aside.run(*strict, *_FETCH, url, row.commit, deadline=FROM_A_NODE)
                    await aside.accept(row.commit)
            except (GitError, ObjectRefused, OSError) as error:
                log.info("%s does not give the commit %s: %s", url, row.commit, error)
            else:
                return True
        return await is_whole(mirror, row.commit)


_FETCH = (
    "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--no-show-forced-updates",
    "--no-recurse-submodules", "--",
)  # fmt: skip


def _row(turn: AwayTurn) -> TurnRow:
    """The row of a turn in the fleet's stream. Raises GitmirrorError."""
    try:
        row = read(turn.document.encode("utf-8", "surrogateescape"), TurnRow)
    except NotOurs as error:
        raise GitmirrorError(f"its row in the database is malformed: {error}") from None
    if row.commit != turn.commit:
        raise GitmirrorError("its row in the database is of another commit")
    return row
