"""Which connection gives way to which, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.core.serving.net.acceptor import Busy, Limits
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.seats import MOST_TURNED_AWAY, PACE, SILENT, TAKES_NOTHING, Peer, Seat, Seats, peer_of
from tests.support.gitutil import wait_until

LIMITS = Limits(max_clients=4, queue_timeout=60, request_timeout=60, idle_timeout=60, total_timeout=600)
NEVER = 10.0**9


class Pairs:
    """Connections, and the guests' ends of them."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._listening = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.ends: dict[Seat, socket.socket] = {}

    def seat(self, peer: str) -> Seat:
        """One more connection of a peer."""
        guest = self._stack.enter_context(socket.create_connection(self._listening.getsockname()))
        ours = self._stack.enter_context(self._listening.accept()[0])
        ours.setblocking(False)
        seat = Seat(ours, peer, 0, Peer(peer))
        self.ends[seat] = guest
        return seat

    def close(self) -> None:
        """Ends all."""
        self._stack.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """Real sockets."""
    made = Pairs()
    yield made
    made.close()


def fill(sock: socket.socket) -> None:
    """Sends until the other side would have to take something."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def fill_whole(seat: Seat) -> None:
    """Fills it until the kernel has acknowledged all that it has room for, which a busy machine does later."""
    found: list[int | None] = []

    def has_settled() -> bool:
        fill(seat.socket)
        found.append(seat.moved())
        return len(found) >= 5 and len(set(found[-5:])) == 1

    wait_until(has_settled, message="the kernel takes no more")


def test_a_peer_is_an_address_or_a_network_of_a_host() -> None:
    """A host can use 2**64 IPv6 addresses, and a unix socket has none."""
    assert peer_of("192.0.2.1") != peer_of("192.0.2.2")
    assert peer_of("2001:db8::1") == peer_of("2001:db8::ffff:1") != peer_of("2001:db8:0:1::1")
    assert peer_of("fe80::1%eth0") == peer_of("fe80::2%eth0")
    assert peer_of("unix") == peer_of("")


def test_one_peer_may_have_all_seats_and_gives_them_back_to_others(pairs: Pairs) -> None:
    """The idle one that said nothing for longest goes first; the newcomer is in."""
    seats = Seats(4)
    greedy = [pairs.seat("a") for _ in range(4)]
    assert all(map(seats.take, greedy)) and not any(seat.refused for seat in greedy)
    greedy[0].serving = True
    other = pairs.seat("b")
    assert seats.take(other) and not other.refused and len(seats) == 4
    assert [seat.cut_off for seat in greedy] == [False, True, False, False]
    assert pairs.ends[greedy[1]].recv(1) == b"", "it is cut off"


def test_no_more_than_a_fair_part_is_taken_from_anybody(pairs: Pairs) -> None:
    """Two peers with two of four seats each: neither makes way for one more of the other."""
    seats = Seats(4, clock=lambda: 0.0)
    taken = [pairs.seat(peer) for peer in "aabb"]
    assert all(map(seats.take, taken))
    late = pairs.seat("b")
    assert seats.take(late) and late.refused
    seats.leave(late)
    third = pairs.seat("c")
    assert seats.take(third) and not third.refused
    assert [seat.cut_off for seat in taken].count(True) == 1


def test_who_is_served_keeps_its_seat_and_who_waits_makes_way(pairs: Pairs) -> None:
    """The peer with the most connections loses the last that waits. If all are served, the newcomer is refused."""
    seats = Seats(3)
    taken = [pairs.seat("a") for _ in range(3)]
    assert all(map(seats.take, taken))
    taken[0].serving = taken[1].waiting = taken[2].waiting = True
    other = pairs.seat("b")
    assert seats.take(other) and not other.refused and taken[2].cut_off
    taken[1].waiting, taken[1].serving, other.serving = False, True, True
    late = pairs.seat("c")
    assert seats.take(late) and late.refused


def test_a_peer_replaces_its_own_once_they_had_time_to_speak(pairs: Pairs) -> None:
    """Guests behind one proxy are one peer. New connections of a crowd do not cut off its earlier ones."""
    now = 0.0
    seats = Seats(2, clock=lambda: now)
    taken = [pairs.seat("a") for _ in range(2)]
    for seat in taken:
        seat.idle_since = 0.0
        seats.take(seat)
    late = pairs.seat("a")
    assert seats.take(late) and late.refused
    now = 5.0
    later = pairs.seat("a")
    assert seats.take(later) and not later.refused and taken[0].cut_off


def test_only_so_many_are_told_that_there_is_no_room(pairs: Pairs) -> None:
    """Because the refusal also takes a connection."""
    seats = Seats(1, clock=lambda: -NEVER)
    seats.take(pairs.seat("a"))
    late = pairs.seat("a")
    assert all(seats.take(Seat(late.socket, "a", 0, late.peer)) for _ in range(MOST_TURNED_AWAY))
    assert not seats.take(late)


def test_a_reader_that_takes_nothing_is_seen_as_stalled(pairs: Pairs) -> None:
    """One that takes it slowly, and one that is only being worked for, are not."""
    stalled, slow, waits = (pairs.seat("a") for _ in range(3))
    for seat in (stalled, slow, waits):
        seat.begin()
    for seat in (stalled, slow):
        fill_whole(seat)
    now = 0.0
    for _ in range(3):
        for seat in (stalled, slow, waits):
            seat.look(now)
        now += TAKES_NOTHING * 0.6
        # The kernel acknowledges what it has room for: enough of it is taken for that.
        taken = 0
        while taken < 64 * PACE:
            taken += len(pairs.ends[slow].recv(PACE))
            fill(slow.socket)
    for seat in (stalled, slow, waits):
        seat.look(now)
    assert stalled.is_stalled(now)
    assert not slow.is_stalled(now)
    assert not waits.is_stalled(now)
    assert waits.is_stalled(now + SILENT)
    stalled.end()
    assert not stalled.is_stalled(now)


def test_a_reader_by_a_unix_socket_is_seen_as_stalled() -> None:
    """A known guest that reads nothing would keep its slots from all others; one that reads, or waits, is not."""
    with contextlib.ExitStack() as stack:
        pairs = [[stack.enter_context(each) for each in socket.socketpair()] for _ in range(3)]
        stalled, slow, waits = (Seat(ours, "unix:a", 0) for ours, _ in pairs)
        for seat in (stalled, slow, waits):
            seat.socket.setblocking(False)
            seat.begin()
        for seat in (stalled, slow):
            fill(seat.socket)
        now = 0.0
        for _ in range(4):
            for seat in (stalled, slow, waits):
                seat.look(now)
            now += TAKES_NOTHING * 0.6
            pairs[1][1].recv(2**17)
            fill(slow.socket)
            pairs[1][1].recv(2**16)
        for seat in (stalled, slow, waits):
            seat.look(now)
        assert stalled.is_stalled(now)
        assert not slow.is_stalled(now)
        assert not waits.is_stalled(now)


async def hold(admission: Admission, seat: Seat, entered: asyncio.Event) -> None:
    """Takes a place and keeps it until the connection is cut."""
    async with admission.place(seat):
        entered.set()
        while not seat.cut_off:
            await asyncio.sleep(0.01)


def test_stalled_readers_make_way_when_others_wait(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each that waits, and none while nobody does."""
    monkeypatch.setattr(Seat, "is_stalled", lambda self, now: self.serving)

    async def crowd() -> None:
        admission = Admission(LIMITS)
        greedy = [pairs.seat("a") for _ in range(4)]
        events = [asyncio.Event() for _ in greedy]
        tasks = [asyncio.create_task(hold(admission, seat, event)) for seat, event in zip(greedy, events, strict=True)]
        await asyncio.gather(*(event.wait() for event in events))
        assert not any(seat.cut_off for seat in greedy)
        async with admission.place(pairs.seat("b")):
            assert sum(seat.cut_off for seat in greedy) == 1
            async with admission.place(pairs.seat("c")):
                assert sum(seat.cut_off for seat in greedy) == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(crowd())


def test_who_has_fewest_places_is_next(pairs: Pairs) -> None:
    """However many others came before."""

    async def crowd() -> list[str]:
        admission, order = Admission(LIMITS), []
        release = asyncio.Event()

        async def guest(peer: str) -> None:
            async with admission.place(pairs.seat(peer)):
                order.append(peer)
                await release.wait()

        tasks = [asyncio.create_task(guest(peer)) for peer in "aaaaaaab"]
        while admission.waiting < 4:
            await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
        assert admission.served == 8
        return order

    assert asyncio.run(crowd())[4] == "b"


def test_who_waits_too_long_is_told_and_leaves_nothing(pairs: Pairs) -> None:
    """A free slot goes to the next guest, even if another one gives up at that moment."""

    async def crowd() -> None:
        admission = Admission(replace(LIMITS, queue_timeout=0.2))
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(admission.place(pairs.seat("a")))
            with pytest.raises(Busy):
                async with admission.place(pairs.seat("b")):
                    pass
            gone = asyncio.create_task(hold(admission, pairs.seat("b"), asyncio.Event()))
            await asyncio.sleep(0)
            assert admission.waiting == 1
        # Given to it as the others left, and given back as it goes.
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(admission.place(pairs.seat("c")))
        assert (admission.waiting, admission.refused) == (0, 1)

    asyncio.run(crowd())
