"""Where a refresh gets what the upstream has: from the upstream itself, or from another node that has just looked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.runs import MirrorFacts, RefreshRun


class Source(Protocol):
    """Brings one mirror up to date. A Refresher is one: it asks the upstream each time."""

    async def refresh(self, run: RefreshRun) -> MirrorFacts:
        """Updates or clones one mirror. Raises GitmirrorError; HeardFailure if another node looked and failed."""
        ...


SourceOf = Callable[[Refresher], Source]


def upstream_alone(refresher: Refresher) -> Source:
    """The source of a node that belongs to no fleet."""
    return refresher
