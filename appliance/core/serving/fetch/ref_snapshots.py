"""The refs that guests are shown, from a snapshot, because running git for each guest costs more than the response."""

from __future__ import annotations

import asyncio
import hashlib
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_traces import RefTraces, take_traces
from appliance.core.models import Repo
from appliance.core.serving.fetch.upload_pack import UploadPack
from appliance.core.serving.net.aside import aside
from appliance.core.serving.wire.pktline import FLUSH, PacketSplitter, packet
from appliance.core.serving.wire.v2 import MANY_LINES, V2Request

FRESH_FOR = 1.0
"""Seconds that a snapshot is used without checking its traces, unless `invalidate` drops it."""

AGENTS = b"refs/agents/"
ARCHIVE = b"refs/gitmirror/archive/"
"""The refs of idle sessions; receive-pack does not see them, which keeps pushes fast."""

HEAD = b"HEAD"

PIECE = 65536
"""Bytes of a response that are made at once, so that a guest that does not read holds no more than this in memory."""
TOO_MANY_PREFIXES = 65536
"""From this many ref-prefix lines on, all of them are ignored, and no more are stored (git's own rule, ls-refs.c)."""

_OPTIONS = (b"peel", b"symrefs", b"unborn")
_ALL = V2Request("ls-refs", (), _OPTIONS).encode()


@dataclass(frozen=True)
class ShownRef:
    """One line of ls-refs. `peeled` is the object of an annotated tag, `target` the ref that a symbolic ref names."""

    name: bytes
    oid: bytes | None
    peeled: bytes = b""
    target: bytes = b""
    archived: bool = False


class _Listing:
    """The lines of `ls-refs` for one choice of its options: one text, and the offset at which each ref begins."""

    def __init__(self, refs: Sequence[ShownRef], *, peel: bool, symrefs: bool) -> None:
        self.names: list[bytes] = []
        self.offsets = array("Q", [0])
        text = bytearray()
        for ref in refs:
            line = (ref.oid or b"unborn") + b" " + ref.name
            if ref.target and symrefs:
                line += b" symref-target:" + ref.target
            if peel and ref.peeled:
                line += b" peeled:" + ref.peeled
            text += packet(line + b"\n")
            self.names.append(ref.name)
            self.offsets.append(len(text))
        self.text = memoryview(bytes(text))

    def below(self, prefixes: Sequence[bytes]) -> Iterator[memoryview]:
        """The lines of refs that begin with a prefix. The prefixes are sorted, and none begins with another."""
        at = 0
        for prefix in prefixes:
            first = bisect_left(self.names, prefix, at)
            at = bisect_left(self.names, _after(prefix), first) if _after(prefix) else len(self.names)
            if at > first:
                yield self.text[self.offsets[first] : self.offsets[at]]


@dataclass
class RefSnapshot:
    """All refs that guests see: HEAD first, then the others by name. `tags` is a digest of all tags.

    `looked_at` is when it was last known to be current; `traces` shows whether it still is.
    """

    refs: tuple[ShownRef, ...]
    looked_at: float
    tags: str
    traces: RefTraces | None = None
    _listings: dict[tuple[bool, bool, bool], _Listing] = field(default_factory=dict)

    def tip(self, ref: str) -> str | None:
        """The object id of one ref, or None."""
        wanted = ref.encode("utf-8", "surrogateescape")
        at = bisect_left(self.refs, wanted, 1 if self._has_head else 0, key=lambda shown: shown.name)
        found = self.refs[at] if at < len(self.refs) else None
        return found.oid.decode() if found is not None and found.name == wanted and found.oid else None

    @property
    def _has_head(self) -> bool:
        return bool(self.refs) and self.refs[0].name == HEAD

    def ls_refs(self, arguments: Sequence[bytes]) -> Iterator[bytes]:
        """The response to `ls-refs` with these arguments (gitprotocol-v2), in pieces of PIECE bytes or slightly more.

        The work grows with the number of arguments plus the size of the response, not with their product: comparing
        65,000 prefixes with 20,000 refs one by one took 39 s.
        """
        held = bytearray()
        for part in self._parts(arguments):
            for start in range(0, len(part), PIECE):
                held += part[start : start + PIECE]
                if len(held) >= PIECE:
                    yield bytes(held)
                    held.clear()
        yield bytes(held) + FLUSH

    def _parts(self, arguments: Sequence[bytes]) -> Iterator[memoryview]:
        symrefs, peel = b"symrefs" in arguments, b"peel" in arguments
        prefixes = _prefixes(arguments)
        if self._has_head and (not prefixes or any(map(HEAD.startswith, prefixes))):
            head = self.refs[0]
            if head.oid is not None or (symrefs and b"unborn" in arguments):
                yield _Listing([head], peel=peel, symrefs=symrefs).text
        listing = self._listing(peel, symrefs, _is_resumed(prefixes))
        if prefixes:
            yield from listing.below(_outermost(prefixes))
        else:
            yield listing.text

    def _listing(self, peel: bool, symrefs: bool, resumed: bool) -> _Listing:
        key = (peel, symrefs, resumed)
        listing = self._listings.get(key)
        if listing is None:
            rest = self.refs[1:] if self._has_head else self.refs
            chosen = [ref for ref in rest if ref.oid is not None and (resumed or not ref.archived)]
            listing = self._listings[key] = _Listing(chosen, peel=peel, symrefs=symrefs)
        return listing

    def is_light(self, arguments: Sequence[bytes]) -> bool:
        """Whether making the response is so little work that it can run on the event loop."""
        if len(arguments) > MANY_LINES:
            return False
        key = (b"peel" in arguments, b"symrefs" in arguments, _is_resumed(_prefixes(arguments)))
        return len(self.refs) < MANY_LINES or key in self._listings


def _prefixes(arguments: Sequence[bytes]) -> list[bytes]:
    """The requested ref prefixes; empty if they do not restrict the response."""
    found = [line[11:] for line in arguments if line.startswith(b"ref-prefix ")]
    return found if len(found) < TOO_MANY_PREFIXES else []


def _is_resumed(prefixes: Sequence[bytes]) -> bool:
    """Whether archived sessions are shown: only to a guest that asks for session refs, because they are many."""
    return any(prefix.startswith(AGENTS) for prefix in prefixes)


def _outermost(prefixes: Sequence[bytes]) -> list[bytes]:
    """The prefixes, sorted, without those that begin with another one."""
    kept: list[bytes] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def _after(prefix: bytes) -> bytes:
    """The first name that sorts after all names with this prefix; empty if there is none."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes([short[-1] + 1]) if short else b""


def _take_error(task: asyncio.Task[RefSnapshot]) -> None:
    """Of a guest that has left meanwhile nobody takes the error, and asyncio would log it with a traceback."""
    if not task.cancelled():
        task.exception()


class RefSnapshots:
    """Snapshots by repository id. The code that moves a ref calls `invalidate` before it reports the move as done."""

    def __init__(self, upload_pack: UploadPack, mirror_of: Callable[[str], Mirror]) -> None:
        self._upload_pack = upload_pack
        self._mirror_of = mirror_of
        self._taken: dict[int, RefSnapshot] = {}
        self._generation: dict[int, int] = {}
        self._loading: dict[int, tuple[int, asyncio.Task[RefSnapshot]]] = {}

    def invalidate(self, repo_id: int) -> None:
        """Drops the snapshot because a ref moved. A snapshot that is being taken now is not reused either."""
        self._generation[repo_id] = self._generation.get(repo_id, 0) + 1
        self._taken.pop(repo_id, None)

    async def get(self, repo: Repo) -> RefSnapshot:
        """A current snapshot. Raises UploadPackError."""
        taken, now = self._taken.get(repo.id), time.monotonic()
        if taken is not None:
            if now - taken.looked_at < FRESH_FOR:
                return taken
            if taken.traces is not None and taken.traces.hold():
                taken.looked_at = now
                return taken
        generation = self._generation.get(repo.id, 0)
        loading = self._loading.get(repo.id)
        if loading is None or loading[0] != generation:
            task = asyncio.create_task(self._load(repo, generation), name=f"refs {repo.name}")
            task.add_done_callback(_take_error)
            self._loading[repo.id] = (generation, task)
        else:
            task = loading[1]
        return await asyncio.shield(task)

    async def _load(self, repo: Repo, generation: int) -> RefSnapshot:
        try:
            looked_at, mirror = time.monotonic(), self._mirror_of(repo.name).path
            traces = take_traces(mirror, time.time())
            # upload-pack lists the refs, so that what git hides, skips as broken or peels is the same here. It is also
            # ten times faster than for-each-ref, which opens every object (20,000 refs: 7 ms against 73).
            answer = await self._upload_pack.collect(
                mirror,
                _ALL,
                version=2,
                setting=f"uploadpack.hideRefs=!{ARCHIVE.decode()[:-1]}",
            )
            if len(answer) > MANY_LINES * 64:
                snapshot = await aside(read_snapshot, answer, looked_at)
            else:
                snapshot = read_snapshot(answer, looked_at)
            snapshot.traces = traces
            if self._generation.get(repo.id, 0) == generation:
                self._taken[repo.id] = snapshot
            return snapshot
        finally:
            if self._loading.get(repo.id, (None,))[0] == generation:
                del self._loading[repo.id]


def read_snapshot(answer: bytes, looked_at: float) -> RefSnapshot:
    """Parses git's response to `ls-refs` with all options and the archive. Raises PacketError."""
    refs = []
    archived = []
    digest = hashlib.sha256()
    for payload in PacketSplitter().feed(answer):
        if payload is None:
            break
        oid, name, *rest = payload.removesuffix(b"\n").split(b" ")
        if name.startswith(ARCHIVE):
            archived.append(ShownRef(AGENTS + name.removeprefix(ARCHIVE), oid, archived=True))
            continue
        attributes = dict(attribute.split(b":", 1) for attribute in rest)
        target, peeled = attributes.get(b"symref-target", b""), attributes.get(b"peeled", b"")
        refs.append(ShownRef(name, None if oid == b"unborn" else oid, peeled, target))
        if name.startswith(b"refs/tags/"):
            digest.update(b"%s %s\n" % (name, oid))
    if archived:
        named = {ref.name for ref in refs}
        refs += [ref for ref in archived if ref.name not in named]
    # git's order, with HEAD first. `tip` and `_Listing` rely on it.
    refs.sort(key=lambda ref: (ref.name != HEAD, ref.name))
    return RefSnapshot(tuple(refs), looked_at, digest.hexdigest())


def is_understood(request: V2Request) -> bool:
    """Whether this module can answer an `ls-refs`. git answers the others, because it knows their meaning."""
    return request.is_plain and all(line in _OPTIONS or line.startswith(b"ref-prefix ") for line in request.arguments)
