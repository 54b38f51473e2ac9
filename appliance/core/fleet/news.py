"""What the nodes of a fleet tell each other of upstreams, so that N of them cost an upstream what one does.

The node that holds a repository's lease looks upstream, and says what it found. The others compare the digest with
their own mirror: it is verified, too, or they fetch what is new from that node's port. They ask that node when somebody
asks them, when they hear of something new, or when they hear nothing. Whatever goes wrong with it, they look upstream.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from appliance.core.config.credentials import TOKEN
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.fleet.asking import HeardNews, ask
from appliance.core.fleet.leases import Lease, Leases
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import LookRequest, News
from appliance.core.fleet.neighbours import Neighbours
from appliance.core.fleet.wire import write
from appliance.core.git.failures import Kind
from appliance.core.models import Repo
from appliance.core.refresh.failure import HeardFailure, failure_of
from appliance.core.refresh.runs import Heard, MirrorFacts, RefreshRun
from appliance.core.refresh.schedule import delay_after
from appliance.core.refresh.sources import Source
from appliance.core.upstream import read_upstream, same_upstream

log = logging.getLogger(__name__)

TRIES = 3
"""How many nodes are asked, or their leases taken, before this one looks by itself."""
LONGEST_ERROR = 1000
"""Characters of an error that are told."""

OF_THE_UPSTREAM = frozenset({Kind.NOT_FOUND, Kind.AUTH, Kind.RATE_LIMITED, Kind.SERVER_ERROR, Kind.SHALLOW})
"""Errors that an upstream gives whoever asks. Any other may be the fault of this node, so another one tries."""
NEEDS_CREDENTIAL = frozenset({Kind.NOT_FOUND, Kind.AUTH})
"""Those of them that a credential may mend."""


@dataclass
class NewsBoard:
    """What this node knows of looks at upstreams, by the repositories' ids.

    `own` is the last look whose result this node has, its own or another's. `told` is what was said since and is yet to
    be acted on. `waiting` has the node that is being asked for a repository.
    """

    own: dict[int, HeardNews] = field(default_factory=dict)
    told: dict[int, HeardNews] = field(default_factory=dict)
    waiting: dict[int, str] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)

    def forget(self, repo_ids: set[int]) -> None:
        """Forgets repositories that are gone."""
        for repo_id in repo_ids:
            self.own.pop(repo_id, None)
            self.told.pop(repo_id, None)
            self.failures.pop(repo_id, None)


@dataclass(frozen=True)
class Sharing:
    """Which repositories are shared with the fleet, from the config in use."""

    readers: Callable[[Repo], str | None]
    """As `Privacy.readers`."""
    interval: Callable[[], float]

    def shares(self, repo: Repo) -> bool:
        """Whether another node may look for this one. A path means something else on each machine."""
        return repo.enabled and read_upstream(repo.url).scheme != "file" and self.readers(repo) != TOKEN

    def fits(self, repo: Repo, url: str) -> bool:
        """Whether what is said of `url` is about this repository: names are not the same everywhere."""
        try:
            return same_upstream(repo.url, url) and self.shares(repo)
        except UsageError:
            return False

    def has_credential(self, repo: Repo) -> bool:
        """Whether this node asks the upstream with a credential."""
        return self.readers(repo) is not None

    def interval_of(self, repo: Repo) -> float:
        """Seconds between two scheduled looks of this node."""
        return repo.interval or self.interval()


class SharedLooks:
    """The source of refreshes in a fleet: this node's look at the upstream, or another's.

    `wait_url_of` gives the port of a node, and `patience` the seconds that one may take to look.
    """

    def __init__(
        self,
        link: FleetLink,
        leases: Leases,
        board: NewsBoard,
        sharing: Sharing,
        wait_url_of: Callable[[str], Awaitable[str | None]],
        upstream: Source,
        neighbours: Neighbours,
        patience: Callable[[], float],
    ) -> None:
        self._link = link
        self._leases = leases
        self._board = board
        self._sharing = sharing
        self._wait_url_of = wait_url_of
        self._upstream = upstream
        self._neighbours = neighbours
        self._patience = patience

    async def refresh(self, run: RefreshRun) -> MirrorFacts:
        """Updates or clones one mirror. Raises GitmirrorError; HeardFailure if another node looked and failed."""
        repo = run.repo
        told = self._board.told.pop(repo.id, None)
        if not self._sharing.shares(repo):
            return await self._upstream.refresh(run)
        await self._leases.wait_first()
        if not self._leases.is_there:
            return await self._look(run)
        if told is not None and not run.asked and (facts := await self._verified(run, told)) is not None:
            return facts
        return await self._by_lease(run, told)

    async def _by_lease(self, run: RefreshRun, told: HeardNews | None) -> MirrorFacts:
        lease: Lease | None = None
        node = told.news.node if told is not None else None
        try:
            for _ in range(TRIES):
                if node is None:
                    lease = await self._leases.take(run.repo, lease)
                    if lease.is_ours:
                        return await self._look_for_all(run)
                    node = lease.node
                if (heard := await self._ask(run, node)) is not None:
                    return await self._use(run, heard)
                if lease is None:
                    lease = await self._leases.take(run.repo)
                    if lease.is_ours:
                        return await self._look_for_all(run)
                    if lease.node != node:
                        node, lease = lease.node, None
                        continue
                node = None
        except FleetAway as error:
            log.debug("%s: the fleet is not asked: %s", run.repo.name, error.message)
        return await self._look(run)

    # -- looking for oneself -------------------------------------------------------------------------------

    async def _look(self, run: RefreshRun) -> MirrorFacts:
        """Looks upstream without telling anybody. Raises GitmirrorError."""
        if run.held_back > 0 and not run.insists:
            message = f"the upstream allows no request for another {run.held_back:.0f}s (Retry-After)"
            raise HeardFailure(Kind.RATE_LIMITED, message, run.held_back, Heard(0.0, run.held_back))
        began = time.monotonic()
        facts = await self._upstream.refresh(run)
        await self._note(run.repo, facts, began)
        return facts

    async def _look_for_all(self, run: RefreshRun) -> MirrorFacts:
        """Looks upstream as the holder of the lease, and says what came of it. Raises GitmirrorError."""
        repo, began = run.repo, time.monotonic()
        try:
            facts = await self._look(run)
        except GitmirrorError as error:
            failure = failure_of(error)
            if failure.kind not in OF_THE_UPSTREAM:
                await self._leases.release(repo)
                raise
            failures = self._board.failures[repo.id] = self._board.failures.get(repo.id, 0) + 1
            delay = max(delay_after(self._sharing.interval_of(repo), failures, 0.0), failure.retry_after or 0.0)
            news = self._news(repo, None, began, moved=False, next_in=delay)
            news = replace(
                news, error=failure.words[:LONGEST_ERROR], error_kind=str(failure.kind), retry_after=failure.retry_after
            )
            self._board.own[repo.id] = HeardNews(news, began)
            await self._publish(news)
            raise
        if (own := self._board.own.get(repo.id)) is not None:
            await self._publish(replace(own.news, age=own.age))
        return facts

    async def _note(self, repo: Repo, facts: MirrorFacts, began: float) -> None:
        """Remembers what this node found upstream, for those who ask."""
        self._board.failures.pop(repo.id, None)
        digest = None
        if not facts.left_out and (own := await self._neighbours.own(repo)) is not None:
            digest = own.digest
        next_in = self._sharing.interval_of(repo)
        news = self._news(repo, digest, began, moved=bool(facts.moved), next_in=next_in)
        self._board.own[repo.id] = HeardNews(news, began)

    def _news(self, repo: Repo, digest: str | None, began: float, *, moved: bool, next_in: float) -> News:
        age, credential = time.monotonic() - began, self._sharing.has_credential(repo)
        return News(self._link.node, repo.name, repo.url, digest, age, moved, next_in, credential)

    async def _publish(self, news: News) -> None:
        try:
            await self._link.client.publish(self._link.names.news, write(news))
        except Exception as error:
            log.debug("%s: news of it cannot be told: %r", news.repo, error)

    # -- using what another node found ---------------------------------------------------------------------

    async def _ask(self, run: RefreshRun, node: str) -> HeardNews | None:
        """Asks a node what the upstream has, and to look again unless what it knows will do."""
        repo = run.repo
        own = await self._neighbours.own(repo)
        # For a first clone anything will do that a scheduled look would.
        age = 0.0 if run.asked and own is not None else self._sharing.interval_of(repo)
        self._board.waiting[repo.id] = node
        try:
            heard = await self._ask_within(run, node, age)
            if heard is not None and own is not None and heard.news.digest != own.digest:
                # Nothing that the upstream had before this node last looked may take the place of what it has.
                last = self._board.own.get(repo.id)
                if last is None or heard.began_at < last.began_at:
                    heard = await self._ask_within(run, node, 0.0 if last is None else last.age)
            return heard
        finally:
            self._board.waiting.pop(repo.id, None)

    async def _ask_within(self, run: RefreshRun, node: str, age: float) -> HeardNews | None:
        repo = run.repo
        question = LookRequest(self._link.node, repo.name, repo.url, age, run.insists)
        heard = await ask(self._link, node, question, self._patience())
        return heard if heard is not None and self._sharing.fits(repo, heard.news.url) else None

    async def _use(self, run: RefreshRun, heard: HeardNews) -> MirrorFacts:
        """Does what a node's answer demands. Raises GitmirrorError."""
        repo, news = run.repo, heard.news
        if (facts := await self._verified(run, heard)) is not None:
            return facts
        if news.digest is None or not self._trusts(repo, news):
            return await self._look(run)
        if (url := await self._wait_url_of(news.node)) is None:
            return await self._look(run)
        try:
            facts = await self._neighbours.copy(run, url, news.digest)
            own = await self._neighbours.own(repo)
            if own is None or own.digest != news.digest:
                raise GitmirrorError("it is not what the news said")
        except (GitmirrorError, OSError) as error:
            log.warning("%s: cannot be fetched from the node %s: %s", repo.name, news.node, error)
            return await self._look(run)
        return self._accept(repo, facts, heard)

    async def _verified(self, run: RefreshRun, heard: HeardNews) -> MirrorFacts | None:
        """The facts if the mirror has what the news says; None if not. Raises HeardFailure if the look failed."""
        repo, news = run.repo, heard.news
        if not self._trusts(repo, news):
            return None
        if news.error is not None:
            kind = Kind(news.error_kind) if news.error_kind in set(Kind) else Kind.OTHER
            retry_after = None
            if news.retry_after is not None:
                retry_after = max(0.0, news.retry_after + news.age - heard.age)
            self._board.own[repo.id] = heard
            raise HeardFailure(kind, news.error, retry_after, Heard(heard.age, heard.next_in))
        own = await self._neighbours.own(repo)
        if own is None or news.digest is None or own.digest != news.digest:
            return None
        return self._accept(repo, own.facts, heard)

    def _accept(self, repo: Repo, facts: MirrorFacts, heard: HeardNews) -> MirrorFacts:
        last = self._board.own.get(repo.id)
        if last is None or last.began_at < heard.began_at:
            self._board.own[repo.id] = heard
        return replace(facts, heard=Heard(heard.age, heard.next_in))

    def _trusts(self, repo: Repo, news: News) -> bool:
        """Whether a look counts here that was made with, or without, a credential that this node does not have, or has.

        What a credential opened elsewhere stays closed to a node without one. A refusal without one says nothing to a
        node that has one.
        """
        has_credential = self._sharing.has_credential(repo)
        if news.error_kind in NEEDS_CREDENTIAL:
            return not has_credential and not news.credential
        return has_credential or not news.credential
