"""Who is connected, and how scarce places are shared: each peer has a fair part, and may have more while nobody else
wants it."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import logging
import math
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import NewType

log = logging.getLogger(__name__)

Peer = NewType("Peer", str)
"""Whom a connection is counted for. Today an address; guests that are known by more than that may be one each."""

SETTLED = 2.0
"""Seconds that a connection may say nothing before it makes way for another one of the same peer."""
TAKES_NOTHING = 10.0
"""Seconds in which a guest that was sent something took less than PACE of it: then it makes way when others wait."""
PACE = 16384
"""Bytes. A guest behind the slowest line takes as much in that time."""
SILENT = 60.0
"""Seconds without a byte in either direction after which a guest makes way when others wait. git sends something every
five seconds while it works on a pack."""
MOST_TURNED_AWAY = 256
"""Connections at once that are told that there is no place; more are closed without a word."""


def peer_of(address: str) -> Peer:
    """The peer at an address; all of one IPv6 network of 64 bits, which any host can choose from, are one.

    Whatever is no IP address, as that of a unix socket, is a peer by its name.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Peer(address or "unix")
    return Peer(str(ipaddress.ip_network((parsed, 64), strict=False))) if parsed.version == 6 else Peer(address)


class Seat:
    """One connection, from its acceptance to its end. `client` is the guest's address for the record.

    `refused`: it came when there was no room for it, and is only to be told so.
    """

    def __init__(self, connection: socket.socket, client: str, port: int, peer: Peer | None = None) -> None:
        self.socket = connection
        self.client = client
        self.port = port
        self.peer = peer_of(client) if peer is None else peer
        self.refused = False
        self.serving = False
        self.waiting = False
        self.cut_off = False
        self.idle_since = time.monotonic()
        self._moved = -1
        self._moved_at = self._paced_at = 0.0
        self._paced = 0

    @property
    def is_idle(self) -> bool:
        """Whether it has asked for nothing that it waits for."""
        return not self.serving and not self.waiting

    def begin(self) -> None:
        """It has its place; it is watched from here on."""
        self.serving, self._moved = True, -1

    def end(self) -> None:
        """It has given its place back."""
        self.serving, self.idle_since = False, time.monotonic()

    def look(self, now: float) -> None:
        """Notes how far it came. To be called from time to time while places are scarce: it costs a call or two."""
        moved = self._bytes()
        if moved is None:
            return
        if self._moved < 0 or moved != self._moved:
            if self._moved < 0:
                self._paced, self._paced_at = moved, now
            self._moved, self._moved_at = moved, now
        if moved - self._paced >= PACE or not self._unsent():
            self._paced, self._paced_at = moved, now

    def is_stalled(self, now: float) -> bool:
        """Whether it is not the one that is served who is waited for, as far as `look` saw."""
        if not self.serving or self._moved < 0:
            return False
        return now - self._paced_at >= TAKES_NOTHING or now - self._moved_at >= SILENT

    def cut(self, why: str) -> None:
        """Ends the connection: whatever waits for it waits no more."""
        self.cut_off = True
        log.info("%s makes way for others: %s", self.client, why)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _bytes(self) -> int | None:
        """Bytes that the other side sent or acknowledged; None for what is no TCP. No other path counts for it."""
        with contextlib.suppress(OSError, struct.error):
            facts = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
            acknowledged, received = struct.unpack_from("=QQ", facts, 120)
            return int(acknowledged + received)
        return None

    def _unsent(self) -> bool:
        """Whether something was sent that the other side has not taken."""
        with contextlib.suppress(OSError):
            return bool(struct.unpack("=i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))[0])
        return False


class Seats:
    """Room for `most` connections of all peers together. Past it the greediest peer makes room for the others."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._of: dict[Peer, dict[Seat, None]] = {}
        self._count = 0
        self.turned_away = 0

    def __len__(self) -> int:
        return self._count

    def take(self, seat: Seat) -> bool:
        """A connection came; False when it is not even to be told that there is no room."""
        if self._count >= self._most and not self._make_room(seat.peer):
            if self.turned_away >= MOST_TURNED_AWAY:
                return False
            seat.refused = True
            self.turned_away += 1
            return True
        self._of.setdefault(seat.peer, {})[seat] = None
        self._count += 1
        return True

    def leave(self, seat: Seat) -> None:
        """A connection has ended."""
        if seat.refused:
            self.turned_away -= 1
        else:
            self._remove(seat)

    def _remove(self, seat: Seat) -> None:
        of_peer = self._of.get(seat.peer, {})
        if seat in of_peer:
            del of_peer[seat]
            self._count -= 1
            if not of_peer:
                del self._of[seat.peer]

    def _make_room(self, peer: Peer) -> bool:
        """Ends a connection for a new one of `peer`, if there is one that is to: an idle one, or one that waits.

        Of the peer that has most, so that one with many connections keeps nobody out. A peer that has most itself may
        have its oldest idle one replaced, once that had the time to say something.
        """
        greediest = max(self._of, key=lambda each: len(self._of[each]))
        seats = self._of[greediest]
        own = len(self._of.get(peer, ())) + 1 >= len(seats)
        if own:
            greediest, seats = peer, self._of.get(peer, {})
        latest = self._clock() - SETTLED if own else math.inf
        idle = [seat for seat in seats if seat.is_idle and seat.idle_since <= latest]
        if idle:
            victim = min(idle, key=lambda seat: seat.idle_since)
        else:
            waiting = [] if own else [seat for seat in seats if seat.waiting]
            if not waiting:
                return False
            victim = waiting[-1]
        self._remove(victim)
        victim.cut(f"{greediest} has {len(seats) + 1} connections")
        return True
