"""Protocol v2 requests: reading them strictly, and what of a fetch decides its answer (gitprotocol-v2)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.core.serving.pktline import FLUSH, LARGEST, PacketError, packet, packet_length

DELIMITER = b"0001"

MOST_REQUEST_BYTES = 32 * 2**20
MOST_LINES = 600_000
"""A checkout of linux asks for 78,635 blobs in one request; each is a line of 50 bytes."""

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

    def encode(self) -> bytes:
        """The request as it goes to `git upload-pack --stateless-rpc`."""
        head = b"".join(packet(line + b"\n") for line in (b"command=" + self.command.encode(), *self.capabilities))
        body = b"".join(packet(line + b"\n") for line in self.arguments)
        return head + (DELIMITER + body if body else b"") + FLUSH


class V2Reader:
    """Reads requests from a stream, one after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    async def read(self, receive: Callable[[], Awaitable[bytes]]) -> V2Request | None:
        """The next request; None when the guest is done. Raises PacketError when it is none, or too large."""
        command = ""
        capabilities: list[bytes] = []
        arguments: list[bytes] = []
        section, lines, received = 0, 0, 0
        while True:
            for kind, payload in self._packets():
                lines += 1
                if lines > MOST_LINES:
                    raise PacketError("too many lines in one request")
                if kind == "flush":
                    if not command and not capabilities:
                        return None
                    return V2Request(_command(command), tuple(capabilities), tuple(arguments))
                if kind == "delimiter":
                    if section:
                        raise PacketError("a second delimiter in one request")
                    section = 1
                elif kind == "end":
                    raise PacketError("a response-end packet in a request")
                elif section:
                    arguments.append(payload)
                elif payload.startswith(b"command="):
                    if command:
                        raise PacketError("two commands in one request")
                    command = payload[8:].decode("ascii", "replace")
                else:
                    capabilities.append(payload)
            data = await receive()
            # A guest that always has more never gives the others their turn.
            await asyncio.sleep(0)
            if not data:
                if lines or self._buffer:
                    raise PacketError("the guest left in the middle of a request")
                return None
            received += len(data)
            if received > MOST_REQUEST_BYTES:
                raise PacketError("a request that is too large")
            self._buffer += data

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
        digest = hashlib.sha256(f"{repo_id}\n{tags if self.include_tag else ''}\n".encode())
        digest.update(self.request().encode())
        return digest.hexdigest()


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
    if not done or not wants or len(formats) > 1 or not all(map(_INERT.fullmatch, request.capabilities)):
        return None
    return FetchShape(tuple(sorted(wants)), tuple(sorted(shallow)), tuple(sorted(rest)), (formats or [b"sha1"])[0])


def is_pure_filter(spec: bytes) -> bool:
    """Whether a filter's effect is a function of the objects alone; `sparse:oid=` reads a blob that a ref may name."""
    if spec.startswith(b"combine:"):
        parts = spec[8:].split(b"+")
        return 0 < len(parts) <= 8 and all(_PURE_FILTER.fullmatch(part) for part in parts)
    return _PURE_FILTER.fullmatch(spec) is not None
