"""The route of the event stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from appliance.core.api.declaration import Answer, Call, Operation, Reply, Scope
from appliance.core.api.problem import BUSY, Problem
from appliance.core.observability.event_source import MEDIA_TYPE, event_source
from appliance.core.observability.event_stream import EventStream

MOST_STREAMS = 1500
"""Open streams at once, which leaves connections for everything else."""


class EventRoutes:
    """Answers with the events of `stream`."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/events", "events", "Every event as it happens", Scope.READ, self._events,
                {200: Answer("One JSON document an event, until either side hangs up.", media_type=MEDIA_TYPE)},
                details="A client that comes back with the id of the last event in `Last-Event-ID` gets all that "
                "happened since then, as far as it is among the latest 10,000 events or 16 MiB of them; otherwise the "
                "first event is `lost`.",
            )
        ]  # fmt: skip

    async def _events(self, call: Call) -> Any:
        if self._stream.watchers >= MOST_STREAMS:
            hint = "close some, and come back with Last-Event-ID"
            raise Problem(BUSY, f"{MOST_STREAMS} event streams are open", hint=hint, headers={"Retry-After": "5"})
        return Reply(media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"}, stream=self._pieces(call))

    async def _pieces(self, call: Call) -> AsyncGenerator[bytes, None]:
        with self._stream.watching(after=call.last_event_id) as subscription:
            async with call.lasting() as is_allowed:
                async for piece in event_source(subscription, is_allowed):
                    yield piece
