"""Whom a push relay talks to: the guest, and whoever decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from appliance.core.models import Caller, Confirmation, Guest, PushDecision, RefCommand, Repo


class Sender(Protocol):
    """The guest's side of a push: a socket, or an HTTP request and its response."""

    async def receive(self) -> bytes:
        """The bytes that have arrived; empty at the end. Raises OSError."""
        ...

    async def send(self, data: bytes) -> None:
        """Sends all of it. Raises OSError."""
        ...

    async def end(self) -> None:
        """Ends the response."""
        ...

    def abort(self) -> None:
        """Cuts the connection, so that every wait for the guest ends."""
        ...


class PushAuthority(Protocol):
    """Decides on pushes. Implemented by `recording`, and wired in by the service."""

    def open(self) -> str:
        """The id of a new push."""
        ...

    def environment(self, push: str, guest: Guest | None) -> dict[str, str]:
        """The environment variables for its hooks; `guest` is who pushes, if it is known."""
        ...

    async def rule(
        self,
        push: str,
        repo: Repo,
        caller: Caller,
        commands: Sequence[RefCommand],
        total: int,
        count_objects: Callable[[], Awaitable[int]],
        fault: str | None = None,
        options: Sequence[bytes] = (),
    ) -> PushDecision:
        """Decides on the push, and logs the attempt."""
        ...

    @property
    def waits(self) -> bool:
        """Whether `confirm` waits for anything."""
        ...

    async def confirm(self, decision: PushDecision, report: Mapping[str, str | None], size: int) -> Confirmation:
        """Waits until what was applied may be told to the guest, or must be withdrawn."""
        ...

    async def conclude(
        self, decision: PushDecision, report: Mapping[str, str | None], size: int, confirmation: Confirmation = ...
    ) -> None:
        """Logs the outcome, and withdraws what was not confirmed."""
        ...
