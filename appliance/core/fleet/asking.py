"""Asks another node what an upstream has. It answers at once with what it knows, or says that it looks, and then what
it found."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import LeaseEntry, LookRequest, News, NotOurs
from appliance.core.fleet.wire import read, write

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

ANSWERS_IN = 1.0
"""Seconds that a node may take to say that it is looking."""
SAYS_EVERY = 1.0
"""Seconds between two messages of a node that is still looking."""
SILENT_FOR = 3.0
"""Seconds after which one that said so is given up."""


@dataclass(frozen=True)
class HeardNews:
    """News, and when the look began that it tells of, in monotonic seconds of this node."""

    news: News
    began_at: float

    @property
    def age(self) -> float:
        """Seconds since the look began."""
        return max(0.0, time.monotonic() - self.began_at)

    @property
    def next_in(self) -> float:
        """Seconds until the node looks again."""
        return max(0.0, self.news.next + self.news.age - self.age)


async def ask(link: FleetLink, node: str, question: LookRequest, timeout: float) -> HeardNews | None:
    """Asks `node` and waits up to `timeout` seconds; None if it is gone, silent, or cannot answer."""
    messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(message: Msg) -> None:
        messages.put_nowait(message.data)

    asked_at = time.monotonic()
    try:
        client = link.client
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=take)
    except Exception as error:
        log.debug("%s cannot be asked: %r", node, error)
        return None
    try:
        async with asyncio.timeout(timeout):
            await client.publish(link.names.requests_to(node), write(question), reply=inbox)
            patience = ANSWERS_IN
            while True:
                async with asyncio.timeout(patience):
                    data = await messages.get()
                # Empty: it cannot answer, or, from the server, nobody is there under that name.
                said = read(data, News, LeaseEntry)
                if isinstance(said, News):
                    return _heard(said, question, asked_at, has_looked=patience == SILENT_FOR)
                patience = SILENT_FOR
    except (TimeoutError, NotOurs, FleetAway):
        return None
    except Exception as error:
        log.debug("%s cannot be asked: %r", node, error)
        return None
    finally:
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()


def _heard(news: News, question: LookRequest, asked_at: float, *, has_looked: bool) -> HeardNews | None:
    """The answer, or None if it answers something else, or with something older than was asked for."""
    # What a node knew when it was asked may have been long on its way, so count from the question.
    began_at = asked_at - news.age
    if has_looked and (since := time.monotonic() - news.age) >= asked_at:
        began_at = since
    is_answer = news.repo == question.repo and began_at >= asked_at - question.age
    return HeardNews(news, began_at) if is_answer else None
