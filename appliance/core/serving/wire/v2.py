"""Requests of protocol v2, and the parts of a fetch that determine its response (gitprotocol-v2)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from appliance.core.serving.wire.pktline import FLUSH, packet

DELIMITER = b"0001"
MOST_WORDS = 8
MANY_LINES = 2000
"""Lines above which a request is processed in a thread (`aside`)."""

_OID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NUMBER = re.compile(rb"[0-9]{1,10}")
_INERT = re.compile(rb"(?:agent|session-id|server-option|object-format)=.*")
_PURE_FILTER = re.compile(rb"blob:none|blob:limit=[0-9]+[kmg]?|tree:[0-9]+|object:type=(?:blob|tree|commit|tag)")


@dataclass(frozen=True)
class V2Request:
    """One command: its name, the capability lines after it, and its arguments, all without line ends."""

    command: str
    capabilities: tuple[bytes, ...]
    arguments: tuple[bytes, ...]

    @cached_property
    def shape(self) -> FetchShape | None:
        """The parts of this fetch that determine its response, or None if the response must not be cached."""
        return shape_of(self)

    @property
    def is_done(self) -> bool:
        """Whether the guest has ended the negotiation, so that the pack is in the answer."""
        return b"done" in self.arguments

    @cached_property
    def wants(self) -> tuple[str, int]:
        """The first wanted object id ("" if there is none), and the number of different ones."""
        oids = [line[5:] for line in self.arguments if line.startswith(b"want ")]
        return (oids[0].decode("ascii", "replace") if oids else "", len(set(oids)))

    @cached_property
    def text(self) -> str:
        """A short description of the fetch, such as `depth 1, blob:none`."""
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
            if len(words) >= MOST_WORDS:
                # The text goes into events and the database, so it must stay short.
                break
        return ", ".join(words) or "full"

    @property
    def is_plain(self) -> bool:
        """Whether each capability only names the client or the hash algorithm, so that none changes the response."""
        return all(map(_INERT.fullmatch, self.capabilities))

    def prepare(self) -> None:
        """Computes the cached properties now. Called in a thread if the request is too large for the event loop."""
        _ = self.wants, self.text, self.shape
        if self.shape is not None:
            self.shape.prepare()

    def encode(self) -> bytes:
        """The bytes of the request for `git upload-pack --stateless-rpc`."""
        head = b"".join(packet(line + b"\n") for line in (b"command=" + self.command.encode(), *self.capabilities))
        body = b"".join(packet(line + b"\n") for line in self.arguments)
        return head + (DELIMITER + body if body else b"") + FLUSH


@dataclass(frozen=True)
class FetchShape:
    """A fetch whose response may be cached: all parts that determine the response, in a canonical order.

    Progress messages and `thin-pack` are left out: without `have` lines a pack is never thin, and progress does not
    change the pack. `wants` and `shallow` are sets of object ids; `rest` is every other line that matters.
    """

    wants: tuple[bytes, ...]
    shallow: tuple[bytes, ...]
    rest: tuple[bytes, ...]
    format: bytes

    @property
    def include_tag(self) -> bool:
        """Whether tags that point into the pack are sent too. The response then depends on the tags."""
        return b"include-tag" in self.rest

    def request(self) -> V2Request:
        """The request that produces the response."""
        arguments = [b"no-progress", *self.rest]
        arguments += [b"shallow " + oid for oid in self.shallow]
        arguments += [b"want " + oid for oid in self.wants]
        return V2Request("fetch", (b"object-format=" + self.format,), (*arguments, b"done"))

    def key(self, repo_id: int, tags: str) -> str:
        """The cache key of the response. `tags` is a digest of all tags; it counts only with `include_tag`."""
        prefix = f"{repo_id}\n{tags if self.include_tag else ''}\n".encode()
        return hashlib.sha256(prefix + self._digest).hexdigest()

    def prepare(self) -> None:
        """Computes now what `key` needs."""
        _ = self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.request().encode()).digest()


def shape_of(request: V2Request) -> FetchShape | None:
    """The shape of a fetch, or None if its response depends on more than the request and the objects.

    That is so with haves, deepen-not, want-ref and sparse filters. Any argument or capability that is not known to be
    pure gives None. So do two depths or two filters, because git uses the last one or rejects the request.
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
    return FetchShape(in_order(wants), in_order(shallow), tuple(sorted(rest)), (formats or [b"sha1"])[0])


def in_order(oids: set[bytes]) -> tuple[bytes, ...]:
    """Sorts object ids in steps, because sorting 600,000 in one call blocks all threads for a third of a second."""
    if len(oids) <= MANY_LINES:
        return tuple(sorted(oids))
    by_prefix: dict[bytes, list[bytes]] = {}
    for oid in oids:
        by_prefix.setdefault(oid[:2], []).append(oid)
    return tuple(oid for prefix in sorted(by_prefix) for oid in sorted(by_prefix[prefix]))


def is_pure_filter(spec: bytes) -> bool:
    """Whether a filter depends only on the objects. `sparse:oid=` does not, because its blob may be named by a ref."""
    if spec.startswith(b"combine:"):
        parts = spec[8:].split(b"+")
        return 0 < len(parts) <= 8 and all(_PURE_FILTER.fullmatch(part) for part in parts)
    return _PURE_FILTER.fullmatch(spec) is not None
