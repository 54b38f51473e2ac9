"""Builds the parts of one `serve` that share looks at upstreams with the other nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from appliance.core.fleet.leases import Leases
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.neighbours import Neighbours
from appliance.core.fleet.news import NewsBoard, SharedLooks, Sharing
from appliance.core.fleet.news_desk import Begin, NewsDesk
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Repo
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.refresh.sources import Source


class FleetNews:
    """What both parts need: the source of refreshes, which the scheduler is built with, and the desk, which needs it.

    `wait_url_of` gives the port of a node, and `timeout` the deadline of one refresh in seconds.
    """

    def __init__(
        self,
        link: FleetLink,
        mirrors: Mirrors,
        sharing: Sharing,
        wait_url_of: Callable[[str], Awaitable[str | None]],
        timeout: Callable[[], float],
    ) -> None:
        self._link = link
        self._mirrors = mirrors
        self._sharing = sharing
        self._wait_url_of = wait_url_of
        self._timeout = timeout
        self._board = NewsBoard()

    def source_of(self, refresher: Refresher) -> Source:
        """Where refreshes get what an upstream has; without a fleet, the upstream alone."""
        if not self._link.is_on:
            return refresher
        neighbours = Neighbours(self._mirrors, refresher)
        return SharedLooks(
            self._link, Leases(self._link), self._board, self._sharing, self._wait_url_of, refresher, neighbours,
            self._timeout,
        )  # fmt: skip

    def desk(self, scheduler: Scheduler, find: Callable[[str], Repo | None], begin: Begin) -> NewsDesk:
        """What hears news and answers questions."""
        return NewsDesk(self._link, self._board, self._sharing, scheduler, find, begin)
