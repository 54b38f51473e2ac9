"""Reads the requests of one connection, as events of h11."""

from __future__ import annotations

import h11

from appliance.core.serving.net.linger import LINGER_BYTES
from appliance.core.serving.net.streams import IdleTimeout, SocketStream


async def another_begins(connection: h11.Connection, stream: SocketStream, seconds: float) -> bool:
    """Waits for the first bytes of the next request; returns whether they came within `seconds`. Raises OSError."""
    if not connection.trailing_data[0]:
        try:
            with stream.within(seconds):
                connection.receive_data(await stream.receive())
        except IdleTimeout:
            return False
    return True


async def next_event(connection: h11.Connection, stream: SocketStream) -> h11.Event | type[h11.PAUSED]:
    """The next event of the client. Raises IdleTimeout, OSError, h11.RemoteProtocolError."""
    # One read of the socket can hold ten thousand chunks of one byte, so other tasks must run between them.
    await stream.take_turns()
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive())
    return event  # type: ignore[return-value]


async def rest_of_request(connection: h11.Connection, stream: SocketStream) -> bool:
    """Reads at most LINGER_BYTES of the body that the handler left; returns whether the connection can be reused."""
    remaining = LINGER_BYTES
    # After `connection: close` nobody waits for the rest.
    while connection.their_state is h11.SEND_BODY and connection.our_state is h11.DONE and remaining > 0:
        event = await next_event(connection, stream)
        remaining -= len(event.data) if isinstance(event, h11.Data) else 0
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE
