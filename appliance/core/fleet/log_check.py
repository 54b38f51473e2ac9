"""Checks the audit log against what the fleet knows of it: every head that was published must be in the log."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from typing import Any

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.heads import PublishedHead, fault_of_stream, heads_of, visiting
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import NotOurs
from appliance.core.store.log_heads import AcceptedLoss, LogHeads

BY_OPERATOR = "an operator accepted a loss"
"""How the note of `accept_losses` begins."""


@dataclass
class LostEvents:
    """Events of one log whose heads were published and are not in the log, and that no note accepts.

    `after` is the highest published event before them that the log holds; 0 if it holds none.
    """

    log: str
    is_own: bool
    after: int
    first: PublishedHead
    last: PublishedHead
    heads: int = 1

    def add(self, published: PublishedHead) -> None:
        """Counts one more."""
        self.first = min(self.first, published, key=lambda each: each.head.id)
        self.last = max(self.last, published, key=lambda each: (each.head.id, each.seq))
        self.heads += 1

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "log": self.log,
            "own": self.is_own,
            "after": self.after,
            "first": _document(self.first),
            "last": _document(self.last),
            "heads": self.heads,
        }


@dataclass
class FleetVerdict:
    """What comparing the log with the heads published in the name of `node` found.

    `held` counts the heads that are in the log, `accepted` those that a note says are lost, `skipped` the messages that
    are no heads. `newest` is the newest head that the log holds. `fault` says what is wrong with the stream itself.
    """

    node: str
    held: int = 0
    accepted: int = 0
    skipped: int = 0
    newest: PublishedHead | None = None
    fault: str | None = None
    lost: list[LostEvents] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing is missing, and nothing can have been taken away."""
        return not self.lost and self.fault is None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "node": self.node,
            "held": self.held,
            "accepted": self.accepted,
            "skipped": self.skipped,
            "newest": _document(self.newest) if self.newest else None,
            "stream": self.fault,
            "lost": [each.document() for each in self.lost],
        }


def check_log(config: FleetConfig, heads: LogHeads) -> FleetVerdict:
    """Compares the log with the fleet, over a connection of its own. Raises FleetAway and StoreError."""

    async def check() -> FleetVerdict:
        async with visiting(FleetLink(config)) as link:
            return await compare(link, heads)

    return asyncio.run(check())


def accept_losses(config: FleetConfig, heads: LogHeads) -> list[LostEvents]:
    """Appends a note for everything that `check_log` finds lost, and returns it. Raises FleetAway and StoreError."""
    lost = check_log(config, heads).lost
    if lost:
        heads.accept([loss_of(each) for each in lost], BY_OPERATOR)
    return lost


def loss_of(lost: LostEvents) -> AcceptedLoss:
    """What a note says that accepts lost events."""
    return AcceptedLoss(lost.log, lost.after, lost.last.head, lost.last.at)


async def compare(link: FleetLink, heads: LogHeads) -> FleetVerdict:
    """Compares the log with everything that was published in this node's name. Raises FleetAway and StoreError."""
    verdict, span = FleetVerdict(link.node), heads.span()
    own, losses, lost = span.log if span else None, heads.losses(), dict[str, LostEvents]()
    numbers = array("q")
    verdict.fault = await fault_of_stream(link)
    async for batch in heads_of(link, link.node):
        published = [each for each in batch if not isinstance(each, NotOurs)]
        verdict.skipped += len(batch) - len(published)
        held = heads.held(each.head for each in published)
        for each in published:
            name = each.said.log
            if name == own and each.head in held:
                verdict.held += 1
                verdict.newest = each
                numbers.append(each.head.id)
            elif any(loss.covers(name, each.head.id, each.at) for loss in losses):
                verdict.accepted += 1
            elif name in lost:
                lost[name].add(each)
            else:
                lost[name] = LostEvents(name, name == own, 0, each, each)
    for name, events in lost.items():
        if name == own:
            events.after = max((number for number in numbers if number < events.first.head.id), default=0)
    verdict.lost = list(lost.values())
    return verdict


def _document(published: PublishedHead) -> dict[str, Any]:
    return {"id": published.head.id, "hash": published.head.hash, "at": published.at}
