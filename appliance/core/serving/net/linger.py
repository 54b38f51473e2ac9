"""Ends a connection after its last answer: at once, but without losing the answer."""

from __future__ import annotations

import time

from appliance.core.serving.net.streams import IdleTimeout, SocketStream

LINGER_SECONDS = 2.0
"""How long a peer that has received everything may take to end its side."""
LINGER_BYTES = 2**20
"""The most bytes of a peer that are read and discarded meanwhile."""


async def linger(stream: SocketStream) -> bool:
    """Ends our side, and reads on until the peer ends its own. Returns whether it did.

    Closing with unread bytes would reset the connection, and the peer would lose what it has not read yet. Some tunnels
    never tell us that the peer has ended, so the wait is bounded: by LINGER_SECONDS after the peer has acknowledged
    everything, and before that by the idle time of `stream`.
    """
    await stream.end()
    drained, unsent = 0, stream.unsent
    moved_at = looked_at = time.monotonic()
    while drained < LINGER_BYTES:
        try:
            with stream.within(looked_at + LINGER_SECONDS - time.monotonic()):
                data = await stream.receive()
        except IdleTimeout:
            before, unsent, looked_at = unsent, stream.unsent, time.monotonic()
            if unsent < before:
                moved_at = looked_at
            elif not unsent or looked_at - moved_at >= (stream.idle or 0):
                return False
        except OSError:
            return False
        else:
            if not data:
                return True
            drained += len(data)
    return False
