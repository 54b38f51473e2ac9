"""Builds what brings turns of other nodes, and answers for the API whether they are here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.core.daemon.fleet import FleetParts
from appliance.core.daemon.state import ServeState
from appliance.core.events.facts import Publish
from appliance.core.fleet.attached_files import AttachedFiles
from appliance.core.fleet.bringing import Bringing
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Turn
from appliance.core.recording.policy import AGENTS
from appliance.core.refresh.compose import Refreshing
from appliance.core.store.away_turns import AwayTurnStore
from appliance.core.store.stores import Stores
from appliance.core.store.turn_details import AttachmentRow


@dataclass(frozen=True)
class Brought:
    """What was recorded elsewhere, on demand. All methods return at once on a node alone."""

    state: ServeState
    stores: Stores
    bringing: Bringing
    files: AttachedFiles

    async def turns(self, turns: Sequence[Turn]) -> None:
        """Has the mirrors hold these turns. Raises GitmirrorError."""
        for turn in turns:
            if turn.away:
                await self.bringing.bring(self.state.find(turn.repo), [turn])

    async def ref(self, name: str, ref: str | None) -> None:
        """Has a session's ref point to the session's last turn; other refs are passed over. Raises GitmirrorError."""
        session = (ref or "").removeprefix(AGENTS)
        if session and session != ref and self.bringing.is_on:
            await self.bringing.bring_newest(self.state.find(name), session)

    async def attachment(self, row: AttachmentRow) -> None:
        """Has an attachment's file here. Raises GitmirrorError."""
        await self.files.bring(row)


def compose_bringing(
    parts: FleetParts, state: ServeState, stores: Stores, mirrors: Mirrors, refreshing: Refreshing, publish: Publish
) -> Brought:
    """Builds it. Bundles are unpacked from the directory of git's own temporary files."""
    away = AwayTurnStore(stores.database)
    bringing = Bringing(
        parts.link, mirrors, stores.sessions, away, parts.nodes, refreshing.scheduler.refresh_now,
        refreshing.refresher.fetch_commits, publish, state.layout.run,
    )  # fmt: skip
    return Brought(state, stores, bringing, AttachedFiles(parts.link, state.layout, away))
