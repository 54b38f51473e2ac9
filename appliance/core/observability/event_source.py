"""The events of a subscription as `text/event-stream`, the format that browsers call EventSource.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html. No event has a type there, because then a
client would have to know all types to listen to each; the document's `event` says what happened.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from appliance.core.observability.event_stream import StreamedEvent, Subscription

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 1000
"""Milliseconds after which a client that was disconnected comes back."""
KEEP_ALIVE = 15.0
"""Seconds without an event until a comment is sent, so that no proxy ends the connection as idle."""


async def event_source(
    subscription: Subscription, is_allowed: Callable[[], bool] = lambda: True
) -> AsyncGenerator[bytes, None]:
    """Yields the bytes of a response that lasts until it is closed or no longer allowed.

    The first ones come at once and hold the subscriber's place, so that a client that is disconnected before the first
    event misses nothing. `is_allowed` is called before each batch and after each `EventStream.wake`, so it has to be
    quick. The next bytes are made only when they are asked for: a slow client holds one batch.
    """
    yield f": events of gitmirror\nretry: {RETRY_MS}\n{_place(subscription)}".encode()
    while True:
        events = await subscription.take(KEEP_ALIVE, is_allowed)
        if not is_allowed():
            return
        if events:
            yield b"".join(_message(event) for event in events)
        else:
            yield f": nothing happened\n{_place(subscription)}".encode()


def _place(subscription: Subscription) -> str:
    """An id without data, which a client remembers, and which is no event to it."""
    return f"id: {subscription.position}\n\n"


def _message(event: StreamedEvent) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (event.id.encode(), event.json)
