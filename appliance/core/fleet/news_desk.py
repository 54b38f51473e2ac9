"""Hears what other nodes found upstream, and answers those that ask."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.asking import SAYS_EVERY, HeardNews
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import LeaseEntry, LookRequest, News, NotOurs
from appliance.core.fleet.news import NewsBoard, Sharing
from appliance.core.fleet.wire import read, write
from appliance.core.git.failures import Kind
from appliance.core.models import Repo
from appliance.core.refresh.scheduler import LeftAlone, Scheduler

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

MOST_ASKED = 2000
"""The most questions that are answered at once; the others get no answer, and whoever asked looks upstream."""
MOST_CAUSES = 100

Begin = Callable[[Coroutine[Any, Any, None], str], object]


class NewsDesk:
    """Listens while the fleet is up. `find` gives the repository of a name, `begin` runs what takes a while."""

    def __init__(
        self,
        link: FleetLink,
        board: NewsBoard,
        sharing: Sharing,
        scheduler: Scheduler,
        find: Callable[[str], Repo | None],
        begin: Begin,
    ) -> None:
        self._link = link
        self._board = board
        self._sharing = sharing
        self._scheduler = scheduler
        self._find = find
        self._begin = begin
        self._asked = 0
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._skipped: set[str] = set()
        link.on_up(self._up.set)

    async def run(self) -> None:
        """Subscribes to each connection once, until cancelled: nats-py subscribes again when it connects again."""
        while True:
            await self._up.wait()
            self._up.clear()
            try:
                if (client := self._link.client) is not self._client:
                    await client.subscribe(self._link.names.news, cb=self._hear)
                    await client.subscribe(self._link.names.requests_to(self._link.node), cb=self._answer)
                    self._client = client
            except Exception as error:
                log.warning("the news of the fleet cannot be heard: %s", error or type(error).__name__)

    def forget(self, repos: tuple[Repo, ...]) -> None:
        """Forgets repositories that are gone."""
        self._board.forget({repo.id for repo in repos})

    async def _hear(self, message: Msg) -> None:
        heard_at = time.monotonic()
        try:
            news = read(message.data, News)
        except NotOurs as error:
            self._skip(error)
            return
        repo = self._repo(news.repo, news.url)
        if news.node == self._link.node or repo is None or self._board.waiting.get(repo.id) == news.node:
            return
        self._board.told[repo.id] = HeardNews(news, heard_at - news.age)
        self._scheduler.hear(repo)

    async def _answer(self, message: Msg) -> None:
        try:
            question = read(message.data, LookRequest)
        except NotOurs as error:
            self._skip(error)
            return
        repo = self._repo(question.repo, question.url)
        if repo is None or self._asked >= MOST_ASKED:
            await self._say(message, b"")
            return
        last = self._board.own.get(repo.id)
        if last is not None and last.age <= question.age:
            await self._say(message, write(replace(last.news, age=last.age, next=last.next_in)))
            return
        self._asked += 1
        self._begin(self._look(message, repo, question), f"look upstream for the node {question.node}")

    async def _look(self, message: Msg, repo: Repo, question: LookRequest) -> None:
        """Looks, says once in a while that it does, and then what came of it.

        While this node itself waits for another, it says that it cannot answer: that one may wait for whoever asks, and
        then each of them would wait until the refresh times out.
        """
        looking, may_wait = asyncio.create_task(self._looked(repo, question)), True
        try:
            while not looking.done():
                asked = self._board.waiting.get(repo.id)
                if asked == question.node or (asked is not None and not may_wait):
                    await self._say(message, b"")
                    return
                # To wait for another node than the one that asked need not be a circle, and most answer before the next
                # pass.
                may_wait = asked is None
                await self._say(message, write(LeaseEntry(self._link.node, repo.name)))
                await asyncio.wait([looking], timeout=SAYS_EVERY)
            await self._say(message, looking.result())
        finally:
            self._asked -= 1
            looking.cancel()

    async def _looked(self, repo: Repo, question: LookRequest) -> bytes:
        before = time.monotonic()
        try:
            await self._scheduler.refresh_now(repo, insist=question.insists)
        except LeftAlone as error:
            return write(self._left_alone(repo, error))
        except GitmirrorError:
            return b""
        except Exception:
            log.exception("%s: cannot look for the node %s", repo.name, question.node)
            return b""
        last = self._board.own.get(repo.id)
        if last is None or (last.began_at < before and self._scheduler.health(repo.id).failures):
            # It failed for a reason that may be this node's alone.
            return b""
        return write(replace(last.news, age=last.age, next=last.next_in))

    def _left_alone(self, repo: Repo, error: LeftAlone) -> News:
        """Says that the upstream is to be left alone: whoever asks for another node must not go around that."""
        rest = max(0.0, (self._scheduler.health(repo.id).retry_at or 0.0) - time.time())
        credential = self._sharing.has_credential(repo)
        return News(
            self._link.node, repo.name, repo.url, None, 0.0, False, rest, credential,
            error.message, str(Kind.RATE_LIMITED), rest,
        )  # fmt: skip

    def _repo(self, name: str, url: str) -> Repo | None:
        """The repository that is meant, or None if this node does not have it, or does not share it."""
        repo = self._find(name)
        return repo if repo is not None and self._sharing.fits(repo, url) else None

    async def _say(self, message: Msg, data: bytes) -> None:
        try:
            await self._link.client.publish(message.reply, data)
        except FleetAway:
            return
        except Exception as error:
            log.debug("a node that asked cannot be answered: %r", error)

    def _skip(self, error: Exception) -> None:
        cause = f"{error}"
        if cause not in self._skipped and len(self._skipped) < MOST_CAUSES:
            self._skipped.add(cause)
            log.warning("fleet %s: a message about an upstream is skipped: %s", self._link.names.fleet, cause)
