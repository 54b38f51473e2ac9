"""Reading requests: what git sends is understood in any chunking, garbage is refused, and only what is pure is kept."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import tracemalloc
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.serving.fetch.request_memo import LARGE, RequestMemo
from appliance.core.serving.fetch.request_reader import MOST_LINES, V2Reader
from appliance.core.serving.net.reading import Budget
from appliance.core.serving.net.seats import Peer
from appliance.core.serving.wire.pktline import LARGEST, PacketError
from appliance.core.serving.wire.v2 import FetchShape, V2Request, shape_of
from tests.conftest import WIDGETS
from tests.serving.conftest import Node
from tests.serving.fetch.conftest import contents_of
from tests.serving.fetch.wire import Recorder, ask_git, pack_of, posted_bodies, v2_request
from tests.support.gitutil import commit_files, git, git_bytes
from tests.support.pkt import DELIM, FLUSH, RESPONSE_END, pkt


def parse(data: bytes, cuts: Iterable[int] = (), memo: RequestMemo | None = None) -> list[V2Request]:
    """All requests of a stream that comes cut at these places."""
    places = sorted({0, len(data), *(each for each in cuts if each < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    coming = iter(piece for piece in pieces if piece)

    async def receive() -> bytes:
        return next(coming, b"")

    async def read_all() -> list[V2Request]:
        reader, found = V2Reader(memo), []
        with Budget().share(Peer("test")) as share:
            while (request := await reader.read(receive, share)) is not None:
                found.append(request)
        return found

    return asyncio.run(read_all())


@cache
def _record(node: Node, directory: Path) -> dict[str, bytes]:
    """What git says to the v2 engine in its daily work, over both ports, without the first packet of git://."""
    options = ("-c", "protocol.version=2")
    said: dict[str, bytes] = {}
    with Recorder(node.serve.git_address) as recorder:
        url = f"git://127.0.0.1:{recorder.port}/{WIDGETS}"

        def note(name: str, *arguments: str, cwd: Path | None = None) -> None:
            before = len(recorder.said)
            git(*options, *arguments, cwd=cwd)
            for number, each in enumerate(recorder.requests()[before:]):
                said[f"{name} {number}"] = each[int(each[:4], 16) :]

        work = directory / "full"
        note("clone", "clone", "--quiet", url, str(work))
        note("shallow", "clone", "--quiet", "--depth=1", url, str(directory / "shallow"))
        note("deepen", "fetch", "--quiet", "--deepen=2", cwd=directory / "shallow")
        note("blobless", "clone", "--quiet", "--depth=1", "--filter=blob:none", url, str(directory / "blobless"))
        note("since", "clone", "--quiet", "--shallow-since=2020-09-14T02:00:00+0000", url, str(directory / "since"))
        note("exclude", "clone", "--quiet", "--shallow-exclude=v0.1", url, str(directory / "exclude"))
        note("list", "ls-remote", "--server-option=x=1", "--symref", url, "main", "refs/tags/*")
        note("nothing new", "fetch", "--quiet", cwd=work)
        git("update-ref", "-d", "refs/remotes/origin/main", cwd=work)
        git("checkout", "--quiet", "--orphan", "other", cwd=work)
        commit_files(work, {"own.txt": "mine"}, "Something that the mirror lacks")
        note("negotiation", "fetch", "--quiet", "--negotiation-tip=HEAD", "--depth=4", url, "main", cwd=work)
    with Recorder(("127.0.0.1", int(node.serve.http_url.rpartition(":")[2]))) as recorder:
        url = f"http://127.0.0.1:{recorder.port}/{WIDGETS}"
        git(*options, "clone", "--quiet", "--filter=blob:none", url, str(directory / "http"))
        for each in recorder.requests():
            for number, (_, body) in enumerate(posted_bodies(each)):
                said[f"http {number} {len(said)}"] = body
    assert len(said) >= 12
    return said


@pytest.fixture(scope="session")
def recorded(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Streams of requests as git sends them, by what was done."""
    return _record(node, tmp_path_factory.mktemp("recorded"))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_git_sends_is_read_the_same_in_any_chunking(recorded: dict[str, bytes], data: st.DataObject) -> None:
    """A real stream of requests, cut anywhere, gives the same requests, and `encode` gives them again."""
    stream = recorded[data.draw(st.sampled_from(sorted(recorded)))]
    whole = parse(stream)
    assert whole and {request.command for request in whole} <= {"ls-refs", "fetch"}
    memo = RequestMemo()
    for _ in range(3):
        cuts = data.draw(st.sets(st.integers(1, len(stream)), max_size=40))
        assert parse(stream, cuts) == whole
        assert parse(stream, cuts, memo) == whole, "also when it was read before"
    assert parse(b"".join(request.encode() for request in whole)) == whole


def test_one_byte_at_a_time_is_enough(recorded: dict[str, bytes]) -> None:
    """The slowest chunking there is."""
    stream = recorded["shallow 0"]
    assert parse(stream, range(len(stream))) == parse(stream)


def test_git_reads_what_is_passed_on_to_it(node: Node, recorded: dict[str, bytes]) -> None:
    """Each recorded request, read and written again, gets the same answer from git as the original."""
    for name, stream in recorded.items():
        for request in parse(stream):
            if request.command == "ls-refs":
                assert ask_git(node.mirror, request.encode()) == ask_git(node.mirror, _alone(request, stream)), name


def _alone(request: V2Request, stream: bytes) -> bytes:
    """The bytes of one request as they stand in the stream."""
    start = stream.index(f"command={request.command}".encode()) - 4
    return stream[start : stream.index(FLUSH, start) + 4]


def test_clones_are_cacheable_and_what_depends_on_the_guest_is_not(recorded: dict[str, bytes]) -> None:
    """Of the real requests, those without anything of the guest's own in them have a shape."""
    pure = {}
    for name, stream in recorded.items():
        fetches = [request for request in parse(stream) if request.command == "fetch"]
        pure[name.rsplit(" ", 1)[0]] = [shape_of(request) is not None for request in fetches]
    for name in ("clone", "shallow", "since"):
        assert pure[name] == [True], name
    assert pure["blobless"] == [True], "the blobs of a checkout too"
    assert pure["exclude"] == [False]
    assert pure["negotiation"][0] is False, "the round that offers something"
    assert pure["nothing new"] == []


# Garbage


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_garbage_is_refused_in_words(recorded: dict[str, bytes], data: st.DataObject) -> None:
    """Whatever comes, whole requests are read and the rest is a PacketError: nothing else is ever raised."""
    if data.draw(st.booleans()):
        stream = data.draw(st.binary(max_size=200))
    else:
        stream = recorded[data.draw(st.sampled_from(sorted(recorded)))]
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(stream) - 1))
            drop = data.draw(st.integers(0, 8))
            stream = stream[:at] + data.draw(st.binary(max_size=8)) + stream[at + drop :]
    memo = RequestMemo() if data.draw(st.booleans()) else None
    try:
        requests = parse(stream, data.draw(st.sets(st.integers(0, 300), max_size=5)), memo)
    except PacketError as error:
        assert str(error)
    else:
        for request in requests:
            shape_of(request)
            assert parse(request.encode()) == [request]


BROKEN = {
    "no length": b"zzzz",
    "a sign": b"+010command=fetch",
    "length 3": b"0003",
    "a response end": pkt("command=fetch") + RESPONSE_END,
    "two delimiters": pkt("command=fetch") + DELIM + DELIM + FLUSH,
    "no command": pkt("agent=x") + FLUSH,
    "two commands": pkt("command=fetch") + pkt("command=ls-refs") + FLUSH,
    "an odd command": pkt("command=fe tch") + FLUSH,
    "an empty command": pkt("command=") + pkt("agent=x") + FLUSH,
    "a path for a command": pkt("command=../../bin/sh") + FLUSH,
    "an end within a line": pkt("command=fetch")[:9],
    "an end before the flush": pkt("command=fetch") + DELIM + pkt("done"),
    "too many lines": pkt("command=fetch") + DELIM + pkt("") * MOST_LINES + FLUSH,
    "too many bytes": pkt("command=fetch") + DELIM + pkt(b"x" * 65000) * 600 + FLUSH,
    "a line longer than any": pkt("command=fetch") + b"fff1" + b"x" * (LARGEST + 1 - 4) + FLUSH,
}


@pytest.mark.slow
@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_request_is_refused(stream: bytes) -> None:
    """Each rule of the framing, broken."""
    for memo in (None, RequestMemo()):
        with pytest.raises(PacketError):
            parse(stream, range(0, len(stream), 65536), memo)


def test_the_largest_line_that_git_takes_is_taken_and_stays_one() -> None:
    """65,516 bytes of payload, with and without a line end of its own."""
    payload = b"ref-prefix " + b"x" * (LARGEST - 4 - 12)
    for line in (payload, payload + b"\n"):
        [request] = parse(pkt("command=ls-refs") + DELIM + pkt(line) + FLUSH)
        assert request.arguments == (payload,)
        assert parse(request.encode()) == [request]


@pytest.mark.slow
def test_large_requests_are_remembered_by_all_their_bytes_and_within_bounds() -> None:
    """The same bytes are the same request; one byte more, another. Old ones are forgotten."""

    def oid(number: int) -> str:
        return hashlib.sha1(b"%d" % number).hexdigest()

    def request(first: int) -> bytes:
        return v2_request("fetch", [f"want {oid(first + number)}" for number in range(40_000)] + ["done"])

    memo = RequestMemo()
    one = request(0)
    assert len(one) > LARGE
    [read] = parse(one, memo=memo)
    assert parse(one, (10_000, 20_000), memo=memo)[0] is read
    assert parse(one + one, memo=memo) == [read, read]
    [other] = parse(request(1), memo=memo)
    assert other != read and other.wants == (oid(1), 40_000)
    for number in range(2, 6):
        parse(request(number), memo=memo)
    assert memo.find(one) is None, "8 MiB of requests are remembered"
    assert memo.find(request(5)) is not None
    [again] = parse(one[:-4] + pkt("x") + FLUSH, memo=memo)
    assert again.arguments == (*read.arguments, b"x")


def test_an_end_between_requests_is_the_end() -> None:
    """Nothing, or a flush alone, is a guest that is done."""
    assert parse(b"") == []
    assert parse(FLUSH) == []


# What may be kept

OIDS = st.binary(min_size=20, max_size=20).map(bytes.hex)
PURE = st.sampled_from(
    (
        "include-tag",
        "ofs-delta",
        "deepen 1",
        "deepen 2147483647",
        "deepen-since 1600000000",
        "deepen-relative",
        "filter blob:none",
        "filter blob:limit=10k",
        "filter tree:0",
        "filter object:type=commit",
        "filter combine:blob:none+tree:3",
    )
)
IMPURE = st.one_of(
    OIDS.map("have {}".format),
    st.sampled_from(
        (
            "deepen-not refs/heads/main",
            "want-ref refs/heads/main",
            "filter sparse:oid=main:.sparse",
            "filter combine:blob:none+sparse:oid=abc",
            "filter combine:blob:none+sparse%3Aoid=abc",
            "filter combine:combine:blob:none+tree:1",
            "filter sparse:path=x",
            "filter auto",
            "filter",
            "packfile-uris https",
            "wait-for-done",
            "want HEAD",
            "want refs/heads/main",
            "want " + "A" * 40,
            "want " + "a" * 39,
            "shallow main",
            "deepen main",
            "deepen -1",
            "deepen 1 ",
            "deepen-since yesterday",
            "include-tag yes",
            "from-the-future",
            "",
        )
    ),
    st.text(alphabet=st.characters(codec="ascii", exclude_characters="\n\r"), min_size=1, max_size=20).map(
        "x-{}".format
    ),
)


def fetch(
    arguments: Sequence[str], capabilities: Sequence[str] = ("agent=git/2.39.5", "object-format=sha1")
) -> V2Request:
    """A fetch with these arguments, as it is read."""
    [request] = parse(v2_request("fetch", arguments, capabilities))
    return request


def shape(arguments: Sequence[str], capabilities: Sequence[str] = ("object-format=sha1",)) -> FetchShape:
    """Its shape, which there must be."""
    found = shape_of(fetch(arguments, capabilities))
    assert found is not None
    return found


@settings(deadline=None)
@given(st.lists(PURE, max_size=3, unique=True), st.lists(OIDS, min_size=1, max_size=3), IMPURE, st.integers(0, 9))
def test_nothing_that_depends_on_more_than_the_request_is_kept(
    pure: list[str], wants: list[str], impure: str, at: int
) -> None:
    """haves, deepen-not, want-ref, sparse filters and everything unknown are handed to git, wherever they stand."""
    arguments = [*pure, *(f"want {oid}" for oid in wants)]
    arguments.insert(min(at, len(arguments)), impure)
    assert shape_of(fetch([*arguments, "done"])) is None


def test_a_request_that_is_not_finished_is_not_kept() -> None:
    """Without `done`, without a want, of two hash functions, or with a capability nobody knows."""
    want = "want " + "a" * 40
    assert shape_of(fetch([want, "done"])) is not None
    assert shape_of(fetch([want])) is None
    assert shape_of(fetch(["done"])) is None
    assert shape_of(fetch([want, "done"], ("object-format=sha1", "object-format=sha256"))) is None
    assert shape_of(fetch([want, "done"], ("from-the-future=1",))) is None


def test_what_git_takes_by_its_order_is_not_put_in_order() -> None:
    """Of two depths or filters the last one counts, or none is allowed: such a request is git's own to judge."""
    want = "want " + "a" * 40
    for twice in (
        ("deepen 2", "deepen 1"),
        ("filter blob:none", "filter tree:0"),
        ("deepen-since 1", "deepen-since 2"),
    ):
        assert shape_of(fetch([*twice, want, "done"])) is None


@settings(deadline=None)
@given(st.data())
def test_the_key_ignores_who_asks_and_how(data: st.DataObject) -> None:
    """Agent, session, server options, progress, thin packs, order and repetition of wants do not matter."""
    wants = data.draw(st.lists(OIDS, min_size=1, max_size=4, unique=True))
    plain = ["include-tag", "ofs-delta", "deepen 1", *(f"want {oid}" for oid in wants)]
    noisy = [
        *plain,
        f"want {wants[0]}",
        *data.draw(st.lists(st.sampled_from(("thin-pack", "no-progress")), max_size=2)),
    ]
    capabilities = ["agent=other/9", "session-id=abc", "server-option=x=1", "server-option=y", "object-format=sha1"]
    key = shape([*plain, "done"]).key(1, "tags")
    assert (
        shape([*data.draw(st.permutations(noisy)), "done"], data.draw(st.permutations(capabilities))).key(1, "tags")
        == key
    )
    assert shape([*plain, "done"], ("agent=git/2.39.5",)).key(1, "tags") == key, "sha1 is what is meant without a word"


def test_the_key_tells_apart_whatever_changes_the_answer() -> None:
    """Wants, shallow commits, each argument, the hash function, the repository, and the tags when they come along."""
    one, other = "a" * 40, "b" * 40
    base = [f"want {one}", "done"]
    variants = [
        base,
        [f"want {other}", "done"],
        [f"want {one}", *base[:-1], f"want {other}", "done"],
        [f"shallow {one}", *base],
        ["include-tag", *base],
        ["ofs-delta", *base],
        ["sideband-all", *base],
        ["deepen 1", *base],
        ["deepen 2", *base],
        ["deepen 1", "deepen-relative", *base],
        ["deepen-since 1", *base],
        ["filter blob:none", *base],
        ["filter tree:0", *base],
    ]
    keys = [shape(each).key(1, "t") for each in variants]
    keys += [shape(base).key(2, "t"), shape(base, ("object-format=sha256",)).key(1, "t")]
    keys += [shape(["include-tag", *base]).key(1, "other tags")]
    assert len(set(keys)) == len(keys)
    assert shape(base).key(1, "t") == shape(base).key(1, "other tags"), "tags that do not come along do not count"


def test_what_is_asked_of_git_is_the_request_itself(node: Node, tmp_path: Path) -> None:
    """A shape's request gets a pack of the same objects as the guest's own words."""
    arguments = ["thin-pack", "ofs-delta", "include-tag", "deepen 2", f"want {node.tip}", "done"]
    original = ask_git(node.mirror, v2_request("fetch", arguments))
    ours = ask_git(node.mirror, shape(arguments).request().encode())
    assert _objects(original, tmp_path / "original") == _objects(ours, tmp_path / "ours")
    assert original.split(b"packfile\n")[0] == ours.split(b"packfile\n")[0]


def _objects(answer: bytes, directory: Path) -> frozenset[str]:
    """The objects of the pack within an answer, each with its type and size."""
    git("init", "--quiet", "--bare", str(directory))
    code, _, said = git_bytes("index-pack", "--stdin", cwd=directory, input=pack_of(answer))
    assert code == 0, said
    return contents_of(directory).objects


@pytest.mark.parametrize("memo", [False, True], ids=["plain", "with a memo"])
def test_what_was_read_of_a_refused_request_is_not_kept(memo: bool) -> None:
    """Who holds the error holds the frames that it went through, and what they hold is not charged to anybody."""
    pieces = [b"0011command=fetch" + DELIM, *[pkt(b"x" * 60_000)] * 300]

    async def refused() -> BaseException:
        coming = iter(pieces)

        async def receive() -> bytes:
            for piece in coming:
                return piece
            raise ConnectionResetError

        with Budget().share(Peer("test")) as share:
            try:
                await V2Reader(RequestMemo() if memo else None).read(receive, share)
            except ConnectionResetError as error:
                return error
        raise AssertionError("it was read")

    gc.collect()
    tracemalloc.start()
    try:
        error = asyncio.run(refused())
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > 300 * 60_000 and held < 2**20, error
