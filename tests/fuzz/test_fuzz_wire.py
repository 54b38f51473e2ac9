"""git's protocol, in process: the first packet of git://, requests of v2 and v0, and the ref commands of a push."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from appliance.core.models import PushDecision, Repo
from appliance.core.recording.policy import review, session_of
from appliance.core.serving.fetch.engine import _parse_v0
from appliance.core.serving.fetch.ref_snapshots import RefSnapshot, ShownRef, is_understood
from appliance.core.serving.fetch.request_memo import RequestMemo
from appliance.core.serving.fetch.request_reader import V2Reader
from appliance.core.serving.net.reading import Budget as MemoryBudget
from appliance.core.serving.net.seats import Peer
from appliance.core.serving.wire.pktline import PacketError, PacketSplitter, packet_length
from appliance.core.serving.wire.requests import (
    KEPT_COMMANDS,
    DaemonRequest,
    PushRequest,
    ReportReader,
    RequestError,
    parse_daemon_request,
    refusal_report,
)
from appliance.core.serving.wire.v2 import MANY_LINES, V2Request
from appliance.core.text import escape
from tests.fuzz import grammar
from tests.fuzz.budget import Budget, in_turns, timed
from tests.fuzz.mutation import cut, mutations
from tests.support.pkt import FLUSH, pkt

TIP = b"c0ffee" * 6 + b"c0ff"
WIDGETS = Repo(1, "acme/widgets", "https://h/acme/widgets", None, "cli", None, True, 0.0)
CHUNK = 65536
"""Bytes of one read of a socket, at most."""

FIRST, V2, V0, PUSH, REPORT, REFS = map(Budget.of, (1500, 300, 300, 400, 400, 200))


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    """`data` as reads of a socket bring it."""
    return [part[at : at + CHUNK] for part in cut(data, seed) for at in range(0, len(part), CHUNK)]


def shown(text: str) -> str:
    """The text as a log or a guest's terminal gets it."""
    safe = escape(text)
    assert safe.isprintable(), safe
    safe.encode()
    return safe


# The first packet


@FIRST.settings
@given(grammar.FIRST_PACKETS, grammar.SEEDS)
def test_first_packets(payload: bytes, seed: int) -> None:
    """Accepted or refused with words; what is accepted reaches git daemon as it was understood."""
    for data in mutations(payload, seed, FIRST.variants):

        def parse(data: bytes = data) -> DaemonRequest | None:
            try:
                return parse_daemon_request(data)
            except RequestError as error:
                shown(str(error))
                return None

        request = timed(parse)
        if request is not None:
            assert request.path.startswith("/") and request.path.isascii() and request.path.isprintable()
            replayed = request.replay("/srv/mirrors/acme/widgets.git")
            assert packet_length(replayed[:4]) == len(replayed)
            again = parse_daemon_request(replayed[4:])
            assert (again.service, again.version) == (request.service, request.version)


# Protocol v2


def read_v2(parts: Sequence[bytes], memo: RequestMemo | None = None) -> tuple[list[V2Request], bool]:
    """The requests in a stream, and whether it was valid to its end. In turns as on the loop."""

    async def read() -> tuple[list[V2Request], bool]:
        left, reader, found = list(parts), V2Reader(memo), []

        async def receive() -> bytes:
            return left.pop(0) if left else b""

        share = MemoryBudget().share(Peer("fuzz"))
        try:
            while (request := await reader.read(receive, share)) is not None:
                found.append(request)
        except PacketError as error:
            shown(str(error))
            return found, False
        return found, True

    return in_turns(read)


def look_at(request: V2Request) -> None:
    """What the engine does with a request on the loop, and what must hold."""
    if len(request.arguments) > MANY_LINES:
        # The engine does this in a thread.
        request.prepare()
    want, count = timed(lambda: request.wants)
    assert (count == 0) == (want == "" and not any(line == b"want " for line in request.arguments))
    assert len(shown(timed(lambda: request.text))) <= 8 * 160
    assert read_v2([request.encode()]) == ([request], True), "git gets another request than the one that was read"
    shape = timed(lambda: request.shape)
    if shape is not None:
        assert request.command != "fetch" or {b"want " + oid for oid in shape.wants} <= set(request.arguments)
        assert shape.request().shape == shape, "the request that is made for the cache has another shape"
        timed(lambda: shape.key(1, "tags"))


@V2.settings
@given(grammar.v2(TIP), grammar.SEEDS)
def test_v2_requests(said: bytes, seed: int) -> None:
    """Read the same in whatever pieces they come, with and without a memory of earlier requests."""
    memo = RequestMemo()
    for data in mutations(said, seed, V2.variants):
        requests, valid = read_v2(pieces_of(data, 0))
        assert read_v2(pieces_of(data, seed)) == (requests, valid)
        for _ in range(2):
            # The second time, large requests come from the memory, and nothing is read of what follows an error.
            assert read_v2(pieces_of(data, 0), memo) == (requests, valid)
        for request in requests:
            look_at(request)


# ls-refs

_NAMES = sorted(
    {
        b"refs/heads/main",
        b"refs/tags/v1",
        b"refs/agents/s1",
        b"refs/agents/\xff\xff",
        b"r\xff\xffx",
        b"\xff\xff",
        b"\xff",
    }
    | {b"refs/heads/b%d" % number for number in range(300)}
)
SNAPSHOT = RefSnapshot(
    (
        ShownRef(b"HEAD", b"1" * 40, target=b"refs/heads/main"),
        *(
            ShownRef(name, None if name == b"refs/heads/b7" else b"2" * 40, archived=name == b"refs/agents/s1")
            for name in _NAMES
        ),
    ),
    0.0,
    "",
)


@REFS.settings
@given(grammar.v2(TIP, (b"ls-refs",)), grammar.SEEDS)
def test_ls_refs(said: bytes, seed: int) -> None:
    """Exactly the refs with one of the prefixes, however the lines were damaged."""
    for data in mutations(said, seed, REFS.variants):
        for request in read_v2([data])[0]:
            if request.command != "ls-refs" or not is_understood(request):
                continue
            lines = request.arguments
            if SNAPSHOT.is_light(lines):
                pieces = SNAPSHOT.ls_refs(lines)
                answer = b""
                while piece := timed(lambda pieces=pieces: next(pieces, b"")):  # type: ignore[misc]
                    answer += piece
            answer = b"".join(SNAPSHOT.ls_refs(lines))
            found = [payload.split()[1] for payload in PacketSplitter().feed(answer) if payload is not None]
            prefixes = tuple(line[11:] for line in lines if line.startswith(b"ref-prefix "))
            archive = any(prefix.startswith(b"refs/agents/") for prefix in prefixes)
            assert answer.endswith(FLUSH)
            assert found == [
                ref.name
                for ref in SNAPSHOT.refs
                if ref.oid and (archive or not ref.archived) and ref.name.startswith(prefixes or b"")
            ]


# Protocol v0 and v1


@V0.settings
@given(grammar.v0(TIP), grammar.SEEDS)
def test_v0_requests(said: bytes, seed: int) -> None:
    """git answers them; what is recorded of them is short and printable."""
    for data in mutations(said, seed, V0.variants):
        request = timed(lambda data=data: _parse_v0(data[:CHUNK]))  # type: ignore[misc]
        want, _ = timed(lambda request=request: request.wants)  # type: ignore[misc]
        shown(want)
        assert len(shown(timed(lambda request=request: request.text))) <= 8 * 160  # type: ignore[misc]


# Pushes


def read_push(parts: Sequence[bytes]) -> PushRequest | None:
    """A push as PushRelay reads it, each read in one turn. None if there is no command to refuse."""
    request = PushRequest()

    async def read() -> PushRequest | None:
        nonlocal request
        request = PushRequest()
        try:
            for part in parts:
                if request.done:
                    request.more(part)
                else:
                    await asyncio.sleep(0)
                    request.feed(part)
            if not request.done:
                request.break_off("the push ended before its list of refs was complete")
        except PacketError as error:
            shown(str(error))
            return None
        return request

    return in_turns(read)


@PUSH.settings
@given(grammar.pushes(TIP), grammar.SEEDS)
def test_ref_commands(said: bytes, seed: int) -> None:
    """Read the same in whatever pieces they come; git gets what was ruled on; a refusal is well formed."""
    for data in mutations(said, seed, PUSH.variants):
        request = read_push(pieces_of(data, 0))
        other = read_push(pieces_of(data, seed))
        if request is None or other is None:
            assert request is other, "in other pieces it is another push"
            continue
        assert (request.commands, request.total, request.fault) == (other.commands, other.total, other.fault)
        assert (request.raw, request.rest if not request.fault else b"") == (
            other.raw,
            other.rest if not other.fault else b"",
        )
        assert len(request.commands) <= KEPT_COMMANDS
        triples = [(command.old, command.new, command.ref) for command in request.commands]
        refused = timed(lambda triples=triples: review(triples))  # type: ignore[misc]
        if request.fault or request.total > len(triples):
            assert not request.raw, "git would get a push that is refused"
            refused = {command.ref: request.fault or "too many" for command in request.commands}
        elif not refused:
            assert all(session_of(ref) for _, _, ref in triples)
            replayed = read_push([bytes(request.raw)])
            assert replayed is not None and replayed.commands == request.commands and not replayed.fault
        if refused:
            decision = PushDecision("p", WIDGETS, "c", tuple(request.commands), refused, ("why", "\x1b[2J"))
            list(PacketSplitter().feed(refusal_report(request, decision)))


@REPORT.settings
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"\1", b"\1", b"\2", b"\3", b""]),
            st.sampled_from(
                [
                    pkt("unpack ok\n"),
                    pkt("ok refs/agents/s1\n"),
                    pkt("ng refs/agents/s1 why\n"),
                    pkt("ng\n"),
                    b"\x1b[2J",
                    FLUSH,
                ]
            ),
        ).map(lambda made: pkt(b"".join(made))),
        max_size=6,
    ).map(b"".join),
    grammar.SEEDS,
    st.booleans(),
)
def test_reports(said: bytes, seed: int, side_band: bool) -> None:
    """What receive-pack says, which hooks and a full disk can garble."""
    commands = read_push([pkt(b"0" * 40 + b" " + TIP + b" refs/agents/s1\0") + FLUSH])
    assert commands is not None
    for data in mutations(said, seed, REPORT.variants):

        def read(data: bytes = data) -> None:
            reader = ReportReader(frozenset({"side-band-64k"} if side_band else ()))
            try:
                for piece in pieces_of(data, seed):
                    reader.feed(piece)
            except PacketError as error:
                shown(str(error))
            assert set(reader.outcome(commands.commands)) <= {"refs/agents/s1"}

        timed(read)
