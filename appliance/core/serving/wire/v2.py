"""Protocol v2 requests: reading them strictly, and what of a fetch decides its answer (gitprotocol-v2)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from appliance.core.serving.wire.pktline import FLUSH, LARGEST, PacketError, packet, packet_length

DELIMITER = b"0001"

MOST_REQUEST_BYTES = 32 * 2**20
TURN = 2**18
"""Bytes of one request that are read before others get their turn, when they come without a wait."""
LARGE = 8192
"""Bytes past which a request is first looked up whole."""
MOST_LINES = 600_000
"""A checkout of linux asks for 78,635 blobs in one request; each is a line of 50 bytes."""
TOO_MANY_PREFIXES = 65536
"""So many ref-prefix lines are as good as none, and more are not kept (git's own rule, ls-refs.c)."""

_LEFT = "the guest left in the middle of a request"
_OID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NUMBER = re.compile(rb"[0-9]{1,10}")
_INERT = re.compile(rb"(?:agent|session-id|server-option|object-format)=.*")
_PURE_FILTER = re.compile(rb"blob:none|blob:limit=[0-9]+[kmg]?|tree:[0-9]+|object:type=(?:blob|tree|commit|tag)")


@dataclass(frozen=True)
class V2Request:
    """One command: its name, the capability lines that follow it, and its arguments, without line ends."""

    command: str
    capabilities: tuple[bytes, ...]
    arguments: tuple[bytes, ...]

    @cached_property
    def shape(self) -> FetchShape | None:
        """What decides the answer of this fetch, or None when it may not be kept."""
        return shape_of(self)

    @cached_property
    def wants(self) -> tuple[str, int]:
        """The first object id that is wanted ("" for none), and how many different ones are."""
        found = [line[5:] for line in self.arguments if line.startswith(b"want ")]
        return (found[0].decode("ascii", "replace") if found else "", len(set(found)))

    @cached_property
    def text(self) -> str:
        """The shape of a fetch in a few words: `depth 1, blob:none`."""
        words = []
        for line in self.arguments:
            word, _, value = line.partition(b" ")
            if word in (b"deepen", b"deepen-since", b"deepen-not"):
                kind = "depth" if word == b"deepen" else word.decode()
                words.append(f"{kind} {value.decode('ascii', 'replace')[:40]}")
            elif word == b"filter":
                words.append(value.decode("ascii", "replace")[:40])
            elif word == b"have" and "incremental" not in words:
                words.append("incremental")
        return ", ".join(words) or "full"

    @property
    def is_plain(self) -> bool:
        """Whether every capability says who asks or of which hash function, and none changes what is asked."""
        return all(map(_INERT.fullmatch, self.capabilities))

    def encode(self) -> bytes:
        """The request as it goes to `git upload-pack --stateless-rpc`."""
        head = b"".join(packet(line + b"\n") for line in (b"command=" + self.command.encode(), *self.capabilities))
        body = b"".join(packet(line + b"\n") for line in self.arguments)
        return head + (DELIMITER + body if body else b"") + FLUSH


class RequestMemo:
    """Large requests that were read before, by their bytes.

    Every guest that checks a tip out asks for the same thousands of blobs, and reading that costs more than sending
    the answer (2,000 wants: 8 ms). What is remembered is bounded by MOST_REMEMBERED bytes of requests.
    """

    MOST_REMEMBERED = 8 * 2**20
    MOST_READING = 128 * 2**20
    """Bytes of requests that are being read at once, of all guests: parsed they take several times as much."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[V2Request, int]] = OrderedDict()
        self._bytes = 0
        self.reading = 0

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Counts so many bytes as being read. Raises PacketError when that is too much of all guests together."""
        self.reading += size
        try:
            self.check()
            yield
        finally:
            self.reading -= size

    def check(self) -> None:
        """Raises PacketError when too much is being read at once."""
        if self.reading > self.MOST_READING:
            raise PacketError("too many large requests are being read at once; try again")

    def is_worth(self, raw: bytes | bytearray) -> bool:
        """Whether a request of so many bytes is looked up: a smaller one is read as fast, a larger one not kept."""
        return LARGE < len(raw) <= self.MOST_REMEMBERED // 2

    def find(self, raw: bytes | bytearray) -> V2Request | None:
        """The request of exactly these bytes, if it was read before."""
        key = hashlib.sha256(raw).digest()
        found = self._known.get(key)
        if found is None:
            return None
        self._known.move_to_end(key)
        return found[0]

    def remember(self, raw: bytes | bytearray, request: V2Request, size: int | None = None) -> None:
        """Keeps a request for the next guest that sends the same; `size` is what it is without compression."""
        key, size = hashlib.sha256(raw).digest(), len(raw) if size is None else size
        if key in self._known or size > self.MOST_REMEMBERED // 2:
            return
        self._known[key] = (request, size)
        self._bytes += size
        while self._bytes > self.MOST_REMEMBERED:
            self._bytes -= self._known.popitem(last=False)[1][1]


class V2Reader:
    """Reads requests from a stream, one after the other; large ones by way of `memo`."""

    def __init__(self, memo: RequestMemo | None = None) -> None:
        self._buffer = bytearray()
        self._memo = memo
        self._reading = 0

    @property
    def has_more(self) -> bool:
        """Whether something of the next request came along with the last one."""
        return bool(self._buffer)

    async def read(self, receive: Callable[[], Awaitable[bytes]]) -> V2Request | None:
        """The next request; None when the guest is done. Raises PacketError when it is none, or too large."""
        try:
            return await self._read(receive)
        finally:
            if self._memo is not None:
                self._memo.reading -= self._reading
            self._reading = 0

    async def _read(self, receive: Callable[[], Awaitable[bytes]]) -> V2Request | None:
        command = ""
        capabilities: list[bytes] = []
        arguments: list[bytes] = []
        section, lines, prefixes, received = 0, 0, 0, 0
        raw = bytearray()
        # What came with the request before is read as ever: each of many would be looked up with all that follows it.
        memo = None if self._buffer else self._memo
        while True:
            if memo is not None and not lines and memo.is_worth(self._buffer):
                if not self._buffer.endswith(FLUSH):
                    # The rest is on its way: a guest sends a whole request and then waits for its answer.
                    packet_length(bytes(self._buffer[:4]))
                    received += await self._more(receive, received)
                    continue
                if (known := memo.find(self._buffer)) is not None:
                    self._buffer.clear()
                    return known
                raw += self._buffer
            for kind, payload in self._packets():
                lines += 1
                if lines > MOST_LINES:
                    raise PacketError("too many lines in one request")
                if kind == "flush":
                    if not command and not capabilities:
                        return None
                    request = V2Request(_command(command), tuple(capabilities), tuple(arguments))
                    if raw and memo is not None and not self._buffer:
                        memo.remember(raw, request)
                    return request
                if kind == "delimiter":
                    if section:
                        raise PacketError("a second delimiter in one request")
                    section = 1
                elif kind == "end":
                    raise PacketError("a response-end packet in a request")
                elif section:
                    prefixes += payload.startswith(b"ref-prefix ")
                    if prefixes <= TOO_MANY_PREFIXES or not payload.startswith(b"ref-prefix "):
                        arguments.append(payload)
                elif payload.startswith(b"command="):
                    if command:
                        raise PacketError("two commands in one request")
                    command = payload[8:].decode("ascii", "replace")
                else:
                    capabilities.append(payload)
            more = await self._more(receive, received)
            if not more:
                if lines:
                    raise PacketError(_LEFT)
                return None
            received += more
            # What comes now belongs to the request too, so what was seen before is not all of it.
            raw.clear()

    async def _more(self, receive: Callable[[], Awaitable[bytes]], received: int) -> int:
        """Waits for more; returns how much came, 0 at an end between requests. Raises PacketError at any other."""
        data = await receive()
        if received // TURN != (received + len(data)) // TURN:
            # A guest that always has more never gives the others their turn.
            await asyncio.sleep(0)
        if not data and self._buffer:
            raise PacketError(_LEFT)
        if received + len(data) > MOST_REQUEST_BYTES:
            raise PacketError("a request that is too large")
        self._buffer += data
        if self._memo is not None:
            self._reading += len(data)
            self._memo.reading += len(data)
            self._memo.check()
        return len(data)

    def _packets(self) -> list[tuple[str, bytes]]:
        """What is whole in the buffer up to the first flush, which ends a request."""
        found: list[tuple[str, bytes]] = []
        at = 0
        while len(self._buffer) - at >= 4:
            size = packet_length(bytes(self._buffer[at : at + 4]))
            if size < 4:
                kind = ("flush", "delimiter", "end")[size]
                found.append((kind, b""))
                at += 4
                if kind == "flush":
                    break
                continue
            if size > LARGEST:
                raise PacketError(f"a packet of {size} bytes, at most {LARGEST} are taken")
            if len(self._buffer) - at < size:
                break
            found.append(("line", bytes(self._buffer[at + 4 : at + size]).removesuffix(b"\n")))
            at += size
        del self._buffer[:at]
        return found


def _command(name: str) -> str:
    if not name:
        raise PacketError("a request without a command")
    if not re.fullmatch(r"[a-z-]+", name):
        raise PacketError("a command with odd characters")
    return name


@dataclass(frozen=True)
class FetchShape:
    """A fetch whose answer may be kept: all that decides it, in a canonical order.

    Progress messages and the offer of a thin pack do not: without `have` lines a pack is never thin, and progress is
    for the eye. `wants` and `shallow` are sets of object ids, `rest` every other line that matters.
    """

    wants: tuple[bytes, ...]
    shallow: tuple[bytes, ...]
    rest: tuple[bytes, ...]
    format: bytes

    @property
    def include_tag(self) -> bool:
        """Whether tags that point into the pack come along: then the answer depends on the tags too."""
        return b"include-tag" in self.rest

    def request(self) -> V2Request:
        """The request that makes the answer."""
        arguments = [b"no-progress", *self.rest]
        arguments += [b"shallow " + oid for oid in self.shallow]
        arguments += [b"want " + oid for oid in self.wants]
        return V2Request("fetch", (b"object-format=" + self.format,), (*arguments, b"done"))

    def key(self, repo_id: int, tags: str) -> str:
        """The name of the answer. `tags` stands for the state of all tags, and only counts with `include_tag`."""
        whose = f"{repo_id}\n{tags if self.include_tag else ''}\n".encode()
        return hashlib.sha256(whose + self._digest).hexdigest()

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.request().encode()).digest()


def shape_of(request: V2Request) -> FetchShape | None:
    """What decides the answer, or None when that is not only the request: haves, deepen-not, want-ref, sparse filters.

    Any argument or capability that is not known to be pure makes it None, and so do two depths or two filters: for git
    the last one counts, or the request is none.
    """
    wants: set[bytes] = set()
    shallow: set[bytes] = set()
    rest: set[bytes] = set()
    once: set[bytes] = set()
    done = False
    for line in request.arguments:
        word, _, value = line.partition(b" ")
        if word == b"done" and not value:
            done = True
        elif line in (b"thin-pack", b"no-progress"):
            continue
        elif (
            line in (b"include-tag", b"ofs-delta", b"deepen-relative", b"sideband-all")
            or (word in (b"deepen", b"deepen-since") and _NUMBER.fullmatch(value))
            or (word == b"filter" and is_pure_filter(value))
        ):
            if value and word in once:
                return None
            once.add(word)
            rest.add(line)
        elif word == b"want" and _OID.fullmatch(value):
            wants.add(value)
        elif word == b"shallow" and _OID.fullmatch(value):
            shallow.add(value)
        else:
            return None
    formats = [line.partition(b"=")[2] for line in request.capabilities if line.startswith(b"object-format=")]
    if not done or not wants or len(formats) > 1 or not request.is_plain:
        return None
    return FetchShape(tuple(sorted(wants)), tuple(sorted(shallow)), tuple(sorted(rest)), (formats or [b"sha1"])[0])


def is_pure_filter(spec: bytes) -> bool:
    """Whether a filter's effect is a function of the objects alone; `sparse:oid=` reads a blob that a ref may name."""
    if spec.startswith(b"combine:"):
        parts = spec[8:].split(b"+")
        return 0 < len(parts) <= 8 and all(_PURE_FILTER.fullmatch(part) for part in parts)
    return _PURE_FILTER.fullmatch(spec) is not None
