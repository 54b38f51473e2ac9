"""What the fleet's servers know of time, so that no wrong clock of one node ends the sessions of all."""

from __future__ import annotations

from typing import Protocol


class FleetTime(Protocol):
    """The clock of the fleet's servers. Implemented by `fleet`, and wired in by the service."""

    def now(self) -> float | None:
        """Unix seconds; None while the servers are not heard."""
        ...

    async def stored_at(self, place: int) -> float | None:
        """When they stored what has this place in the order of turns; None if nothing has. Raises GitmirrorError."""
        ...


class NoFleetTime:
    """That of a node alone."""

    def now(self) -> float | None:
        """Nobody says."""
        return None

    async def stored_at(self, place: int) -> float | None:
        """Nothing is stored."""
        return None
