"""The connections of all peers, shared fairly: each peer has a fair share, and more while no other peer needs it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import NewType

from appliance.core.models import Guest
from appliance.core.serving.net.sockets import unsent_bytes

log = logging.getLogger(__name__)

Peer = NewType("Peer", str)
"""The peer that a connection is counted for. Today it is an address; a guest with an identity could be its own peer."""

SETTLED = 2.0
"""Seconds that a connection may be idle before a new one of the same peer may replace it."""
TAKES_NOTHING = 10.0
"""Seconds after which a guest that has read less than PACE bytes of unsent data is cut off if others wait."""
PACE = 16384
"""Bytes that even a guest on a very slow line reads in TAKES_NOTHING seconds."""
SILENT = 60.0
"""Seconds without a byte in either direction after which a guest is cut off if others wait. git sends something every
second while it works on a pack, and every five while it takes one."""
MOST_TURNED_AWAY = 256
"""Connections at once that get an error because there are too many; any more are closed without a response."""


def peer_of(address: str) -> Peer:
    """The peer of an address. An IPv6 /64 network is one peer, because a host can choose any address in its network.

    An address that is no IP address, such as that of a unix socket, is a peer under its own name.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Peer(address or "unix")
    return Peer(str(ipaddress.ip_network((parsed, 64), strict=False))) if parsed.version == 6 else Peer(address)


class Seat:
    """One connection, from its acceptance to its end. `client` is the guest's address for the record.

    `socket_of` is the id of the known guest whose socket it came by, and `guest` who sent its last request, if known.

    `refused` marks a connection for which there was no room: it only gets an error.
    """

    def __init__(
        self,
        connection: socket.socket,
        client: str,
        port: int,
        peer: Peer | None = None,
        socket_of: int | None = None,
    ) -> None:
        self.socket = connection
        self.client = client
        self.port = port
        self.socket_of = socket_of
        self.guest: Guest | None = None
        self.peer = peer_of(client) if peer is None else peer
        self.refused = False
        self.serving = False
        self.waiting = False
        self.cut_off = False
        self.on_closed: Callable[[], None] | None = None
        """Called when the guest has closed after the last response."""
        self.idle_since = time.monotonic()
        self._moved = -1
        self._moved_at = self._paced_at = 0.0
        self._paced = 0

    @property
    def is_idle(self) -> bool:
        """Whether it neither is served nor waits for a slot."""
        return not self.serving and not self.waiting

    def begin(self) -> None:
        """Notes that it has a slot. From here on `look` measures its progress."""
        self.serving, self._moved = True, -1

    def end(self) -> None:
        """Notes that it has released its slot."""
        self.serving, self.idle_since = False, time.monotonic()

    def look(self, now: float) -> None:
        """Measures its progress with one or two system calls. Called from time to time while slots are scarce."""
        moved = self.moved()
        if moved is None:
            self._look_at_unsent(now)
            return
        if self._moved < 0 or moved != self._moved:
            if self._moved < 0:
                self._paced, self._paced_at = moved, now
            self._moved, self._moved_at = moved, now
        if moved - self._paced >= PACE or not self._unsent():
            self._paced, self._paced_at = moved, now

    def _look_at_unsent(self, now: float) -> None:
        """Of a socket that is not TCP only what is unsent is known: whether that changes, or there is nothing."""
        unsent = unsent_bytes(self.socket.fileno())
        if self._moved < 0 or unsent != self._moved or not unsent:
            self._moved, self._moved_at, self._paced_at = unsent, now, now

    def is_stalled(self, now: float) -> bool:
        """Whether we wait for the guest rather than the guest for us, as far as `look` has seen."""
        if not self.serving or self._moved < 0:
            return False
        return now - self._paced_at >= TAKES_NOTHING or now - self._moved_at >= SILENT

    def cut(self, why: str) -> None:
        """Shuts the connection down, so that every wait for it ends."""
        self.cut_off = True
        log.info("%s was cut off: %s", self.client, why)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def moved(self) -> int | None:
        """The bytes that the guest sent or acknowledged, by any path; None if the socket is not TCP."""
        with contextlib.suppress(OSError, struct.error):
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
            acknowledged, received = struct.unpack_from("=QQ", info, 120)
            return int(acknowledged + received)
        return None

    def _unsent(self) -> bool:
        """Whether the socket holds bytes that the guest has not acknowledged."""
        return unsent_bytes(self.socket.fileno()) > 0


class Seats:
    """Room for `most` connections of all peers. When full, the peer with the most connections has to give one up."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._of: dict[Peer, dict[Seat, None]] = {}
        self._count = 0
        self.turned_away = 0

    def __len__(self) -> int:
        return self._count

    def take(self, seat: Seat) -> bool:
        """Seats a new connection, perhaps as `refused`. False if it is to be closed without a response."""
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
        """Frees the seat of a connection that has ended."""
        if seat.refused:
            self.turned_away -= 1
        else:
            self._remove(seat)

    def end_guest(self, guest_id: int) -> None:
        """Cuts every connection that came by the socket of a guest, or whose last request the guest sent."""
        for seats in list(self._of.values()):
            for seat in list(seats):
                if seat.socket_of == guest_id or (seat.guest is not None and seat.guest.id == guest_id):
                    seat.cut("this guest is no longer known")

    def _remove(self, seat: Seat) -> None:
        of_peer = self._of.get(seat.peer, {})
        if seat in of_peer:
            del of_peer[seat]
            self._count -= 1
            if not of_peer:
                del self._of[seat.peer]

    def _make_room(self, peer: Peer) -> bool:
        """Ends one connection, idle or waiting, so that `peer` gets a new one. Returns whether it did.

        It is a connection of the peer that has the most, so that a peer with many connections blocks nobody. If `peer`
        itself has the most, its oldest idle connection is replaced, once that has had SETTLED seconds to send
        something.
        """
        greediest = max(self._of, key=lambda other: len(self._of[other]))
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
