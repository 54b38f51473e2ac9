"""Protocol v2 requests, and what of a fetch decides its answer (gitprotocol-v2)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from appliance.core.serving.wire.pktline import FLUSH, packet

DELIMITER = b"0001"
MOST_WORDS = 8
MANY_LINES = 2000
"""Lines past which a request is worked on aside."""

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
            if len(words) >= MOST_WORDS:
                # It goes into events and the database.
                break
        return ", ".join(words) or "full"

    @property
    def is_plain(self) -> bool:
        """Whether every capability says who asks or of which hash function, and none changes what is asked."""
        return all(map(_INERT.fullmatch, self.capabilities))

    def prepare(self) -> None:
        """Finds out now what is known of it later, for a request so large that the loop must not."""
        _ = self.wants, self.text, self.shape
        if self.shape is not None:
            self.shape.prepare()

    def encode(self) -> bytes:
        """The request as it goes to `git upload-pack --stateless-rpc`."""
        head = b"".join(packet(line + b"\n") for line in (b"command=" + self.command.encode(), *self.capabilities))
        body = b"".join(packet(line + b"\n") for line in self.arguments)
        return head + (DELIMITER + body if body else b"") + FLUSH


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

    def prepare(self) -> None:
        """Finds out now what `key` needs."""
        _ = self._digest

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
    return FetchShape(in_order(wants), in_order(shallow), tuple(sorted(rest)), (formats or [b"sha1"])[0])


def in_order(oids: set[bytes]) -> tuple[bytes, ...]:
    """Object ids sorted, in steps: to sort 600,000 in one keeps all threads waiting for a third of a second."""
    if len(oids) <= MANY_LINES:
        return tuple(sorted(oids))
    begin_alike: dict[bytes, list[bytes]] = {}
    for oid in oids:
        begin_alike.setdefault(oid[:2], []).append(oid)
    return tuple(oid for start in sorted(begin_alike) for oid in sorted(begin_alike[start]))


def is_pure_filter(spec: bytes) -> bool:
    """Whether a filter's effect is a function of the objects alone; `sparse:oid=` reads a blob that a ref may name."""
    if spec.startswith(b"combine:"):
        parts = spec[8:].split(b"+")
        return 0 < len(parts) <= 8 and all(_PURE_FILTER.fullmatch(part) for part in parts)
    return _PURE_FILTER.fullmatch(spec) is not None
