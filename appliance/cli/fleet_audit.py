"""The audit log compared with the heads that the fleet has of it, in words, for the commands of `audit`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.cli.output import hush, print_line, say
from appliance.core.errors import GitmirrorError
from appliance.core.fleet.link import FleetAway
from appliance.core.fleet.log_check import FleetVerdict, LostEvents, accept_losses, check_log
from appliance.core.store.log_heads import LogHeads
from appliance.core.units import counted

if TYPE_CHECKING:
    from appliance.core.config.settings import Config
    from appliance.core.store.stores import Stores

FORGED = "if neither is true, somebody else published in this node's name: see docs/fleet.md, The log"


@dataclass
class LogComparison:
    """What was found, or why nothing could be: `trouble` is set if the fleet could not be asked."""

    verdict: FleetVerdict | None = None
    trouble: GitmirrorError | None = None
    lost: list[LostEvents] = field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        """Whether published events are lost, or may have been taken out of the stream."""
        return self.verdict is not None and not self.verdict.is_good

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        trouble = {"trouble": self.trouble.message if self.trouble else None}
        if self.verdict is not None:
            return self.verdict.document() | trouble
        return {"lost": [each.document() for each in self.lost]} | trouble

    def print(self) -> None:
        """Says what was found; the caller reports the trouble."""
        verdict = self.verdict
        if verdict is None:
            return
        for lost in verdict.lost:
            say(_words(verdict.node, lost))
        if verdict.fault is not None:
            say(
                f"the fleet's stream of heads proves nothing: {verdict.fault}. Look who may change streams on the NATS "
                "servers; docs/fleet.md, The log, has the permissions that prevent it"
            )
        if verdict.skipped:
            say(f"{counted(verdict.skipped, 'message', 'messages')} in this node's name are no heads of a log: skipped")
        if verdict.accepted:
            say(f"notes in the log accept the loss of {counted(verdict.accepted, 'published head', 'published heads')}")
        if not verdict.lost:
            print_line(_summary(verdict))

    def print_accepted(self) -> None:
        """Says which losses are noted now."""
        for lost in self.lost:
            print_line(f"noted in the log: {_which(lost)}, published until {lost.last.at}, are lost")
        if self.trouble is not None:
            say(
                f"{self.trouble.message}; if `audit verify --fleet` names lost events once the fleet can be reached, "
                "run this again"
            )


def look(config: Config, stores: Stores) -> LogComparison:
    """Compares the log with the fleet. A node without one is a UsageError."""
    try:
        return LogComparison(check_log(config.fleet, _heads(stores)))
    except FleetAway as away:
        away.message = f"the published heads were not checked: {away.message}"
        return LogComparison(trouble=away)


def accept(config: Config, stores: Stores) -> LogComparison:
    """Notes in the log that published events are lost, if any are."""
    try:
        return LogComparison(lost=accept_losses(config.fleet, _heads(stores)))
    except FleetAway as away:
        return LogComparison(trouble=away)


def _heads(stores: Stores) -> LogHeads:
    hush("appliance.core.fleet")
    return LogHeads(stores.database, stores.audit, time.time)


def _summary(verdict: FleetVerdict) -> str:
    if verdict.newest is None:
        return f"the fleet has no head of this log; serve publishes one as {verdict.node} within a minute of an event"
    held = counted(verdict.held, "published head is", "published heads are")
    newest = verdict.newest
    return f"{held} in the log; the newest is event {newest.head.id} ({newest.head.hash}), published at {newest.at}"


def _which(lost: LostEvents) -> str:
    if lost.is_own:
        return f"events after {lost.after} and up to {lost.last.head.id}"
    return f"events of an earlier log, {lost.log[:12]}, up to {lost.last.head.id}"


def _words(node: str, lost: LostEvents) -> str:
    first, last = lost.first, lost.last
    if lost.is_own:
        also = f", and so are all published up to event {last.head.id} of {last.at}" if lost.heads > 1 else ""
        return (
            f"event {first.head.id} ({first.head.hash}), published at {first.at}, is not in the log{also}: the log was "
            f"cut off or rewritten after event {lost.after}, or its database is an older one. Put the newest "
            f"gitmirror.db back; if there is none, `gitmirror.pyz audit accept-loss` notes the loss; {FORGED}"
        )
    return (
        f"{node} had an earlier log, which began with event {lost.log[:12]}; its event {last.head.id} "
        f"({last.head.hash}) was published at {last.at}, and this log does not say what became of it. Put the database "
        f"of that time back, or make the node again with `gitmirror.pyz restore --from-fleet {node}`; if neither can "
        f"be done, `gitmirror.pyz audit accept-loss` notes the loss; {FORGED}"
    )
