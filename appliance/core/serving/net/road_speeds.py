"""How fast the roads to guests are, as far as earlier responses and the connection itself tell."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import OrderedDict

from appliance.core.serving.net.seats import Peer, Seat

SLOW = 20e6
"""Bytes per second below which a road is slow. A guest unpacks a tar at 150 to 270 MB/s."""
LONG = 0.005
"""Seconds of a round trip from which a road is slow until it has shown otherwise."""
MEANINGFUL = 2**20
"""Bytes of a response that show how fast a road is."""
REMEMBERED = 3600.0
"""Seconds after which a road may have changed."""
MOST_PEERS = 4096


class RoadSpeeds:
    """The last speed of each peer. Guests behind one tunnel are one peer, so that what one shows serves the next."""

    def __init__(self) -> None:
        self._last: OrderedDict[Peer, tuple[float, float]] = OrderedDict()

    def note(self, peer: Peer, count: int, seconds: float) -> None:
        """Notes that a guest took `seconds` to receive a response of `count` bytes and to close."""
        if count >= MEANINGFUL:
            self._last[peer] = (count / max(seconds, 1e-3), time.monotonic())
            self._last.move_to_end(peer)
            if len(self._last) > MOST_PEERS:
                self._last.popitem(last=False)

    def is_slow(self, seat: Seat) -> bool:
        """Whether the road of a connection is slow."""
        rate, noted_at = self._last.get(seat.peer, (0.0, 0.0))
        if rate and time.monotonic() - noted_at < REMEMBERED:
            return rate < SLOW
        return _round_trip(seat.socket) >= LONG


def _round_trip(connection: socket.socket) -> float:
    """The smoothed round-trip time of a TCP connection, in seconds; 0 of others."""
    with contextlib.suppress(OSError, struct.error):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
        return float(struct.unpack_from("=I", info, 68)[0]) / 1e6
    return 0.0
