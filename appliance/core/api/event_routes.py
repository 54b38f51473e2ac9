"""The route of the event stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from appliance.core.api.declaration import Answer, Call, Operation, Reply, Scope
from appliance.core.observability.event_stream import EventStream

EVENT_STREAM = "text/event-stream"


class EventRoutes:
    """Answers with the events of `stream`."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/events", "events", "Every event as it happens", Scope.READ, self._events,
                {200: Answer("One JSON document an event.", media_type=EVENT_STREAM)},
            )
        ]  # fmt: skip

    async def _events(self, call: Call) -> Any:
        return Reply(media_type=EVENT_STREAM, stream=self._told(call))

    async def _told(self, call: Call) -> AsyncIterator[bytes]:
        with self._stream.watching() as subscription:
            yield b": gitmirror\n\n"
            while True:
                for event in await subscription.take():
                    yield b"id: %s\ndata: %s\n\n" % (event.id.encode(), event.json)
