"""The refs that guests are shown, from a snapshot: asking git for each guest costs more than the answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_traces import RefTraces, take_traces
from appliance.core.models import Repo
from appliance.core.serving.fetch.upload_pack import UploadPack
from appliance.core.serving.wire.pktline import FLUSH, PacketSplitter, packet
from appliance.core.serving.wire.v2 import V2Request

FRESH_FOR = 1.0
"""Seconds that a snapshot is believed without a look when nothing of ours moved a ref."""

AGENTS = b"refs/agents/"
ARCHIVE = b"refs/gitmirror/archive/"
"""Where idle sessions are kept, out of the way of pushes."""

MOST_RENDERED = 64
TOO_MANY_PREFIXES = 65536
"""So many ref-prefix lines are as good as none (git's own rule, ls-refs.c)."""

_OPTIONS = (b"peel", b"symrefs", b"unborn")
_ALL = V2Request("ls-refs", (), _OPTIONS).encode()


@dataclass(frozen=True)
class ShownRef:
    """One line of ls-refs: `peeled` is what an annotated tag points at, `target` what a symbolic ref does."""

    name: bytes
    oid: bytes | None
    peeled: bytes = b""
    target: bytes = b""
    archived: bool = False


@dataclass
class RefSnapshot:
    """All refs that guests see, HEAD first. `tags` is one value for the state of all tags.

    `looked_at` is when it was last known to be true, `traces` what tells whether it still is.
    """

    refs: tuple[ShownRef, ...]
    looked_at: float
    tags: str
    traces: RefTraces | None = None
    _rendered: dict[tuple[bytes, ...], bytes] = field(default_factory=dict)

    def tip(self, ref: str) -> str | None:
        """The object id of one ref, or None."""
        wanted = ref.encode("utf-8", "surrogateescape")
        return next((shown.oid.decode() for shown in self.refs if shown.name == wanted and shown.oid), None)

    def ls_refs(self, arguments: Sequence[bytes]) -> bytes:
        """The answer to `ls-refs` with these arguments (gitprotocol-v2)."""
        key = tuple(arguments)
        answer = self._rendered.get(key)
        if answer is None:
            answer = self._render(key)
            if len(self._rendered) < MOST_RENDERED and sum(map(len, key)) < 4096:
                self._rendered[key] = answer
        return answer

    def _render(self, arguments: tuple[bytes, ...]) -> bytes:
        symrefs, peel, unborn = b"symrefs" in arguments, b"peel" in arguments, b"unborn" in arguments
        prefixes = tuple(line[11:] for line in arguments if line.startswith(b"ref-prefix "))
        if len(prefixes) >= TOO_MANY_PREFIXES:
            prefixes = ()
        # Archived sessions are there for whoever names one, and no weight to all others.
        resumed = any(prefix.startswith(AGENTS) for prefix in prefixes)
        lines = []
        for ref in self.refs:
            if prefixes and not ref.name.startswith(prefixes):
                continue
            if ref.archived and not resumed:
                continue
            if ref.oid is None and not (unborn and symrefs):
                continue
            line = (ref.oid or b"unborn") + b" " + ref.name
            if ref.target and symrefs:
                line += b" symref-target:" + ref.target
            if peel and ref.peeled:
                line += b" peeled:" + ref.peeled
            lines.append(packet(line + b"\n"))
        return b"".join(lines) + FLUSH


class RefSnapshots:
    """Snapshots by repository id. `invalidate` is called before whoever moved a ref is told that it is done."""

    def __init__(self, upload_pack: UploadPack, mirror_of: Callable[[str], Mirror]) -> None:
        self._upload_pack = upload_pack
        self._mirror_of = mirror_of
        self._taken: dict[int, RefSnapshot] = {}
        self._generation: dict[int, int] = {}
        self._loading: dict[int, tuple[int, asyncio.Task[RefSnapshot]]] = {}

    def invalidate(self, repo_id: int) -> None:
        """A ref of this repository moved: no snapshot from before is shown again."""
        self._generation[repo_id] = self._generation.get(repo_id, 0) + 1
        self._taken.pop(repo_id, None)

    async def get(self, repo: Repo) -> RefSnapshot:
        """A snapshot that is current. Raises UploadPackError."""
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
            self._loading[repo.id] = (generation, task)
        else:
            task = loading[1]
        return await asyncio.shield(task)

    async def _load(self, repo: Repo, generation: int) -> RefSnapshot:
        try:
            looked_at, mirror = time.monotonic(), self._mirror_of(repo.name).path
            traces = take_traces(mirror, time.time())
            # git's own answer: what it hides, skips as broken or peels through is so for us too. It is also ten times
            # faster than for-each-ref, which opens every object (20,000 refs: 7 ms against 73).
            answer = await self._upload_pack.collect(
                mirror,
                _ALL,
                version=2,
                setting=f"uploadpack.hideRefs=!{ARCHIVE.decode()[:-1]}",
            )
            snapshot = read_snapshot(answer, looked_at)
            snapshot.traces = traces
            if self._generation.get(repo.id, 0) == generation:
                self._taken[repo.id] = snapshot
            return snapshot
        finally:
            if self._loading.get(repo.id, (None,))[0] == generation:
                del self._loading[repo.id]


def read_snapshot(answer: bytes, looked_at: float) -> RefSnapshot:
    """The snapshot that an answer to `ls-refs` with all its options and the archive shows. Raises PacketError."""
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
        more = dict(each.split(b":", 1) for each in rest)
        refs.append(
            ShownRef(name, None if oid == b"unborn" else oid, more.get(b"peeled", b""), more.get(b"symref-target", b""))
        )
        if name.startswith(b"refs/tags/"):
            digest.update(b"%s %s\n" % (name, oid))
    if archived:
        named = {ref.name for ref in refs}
        refs += [ref for ref in archived if ref.name not in named]
        # HEAD stays first, as git has it.
        refs.sort(key=lambda ref: (ref.name != b"HEAD", ref.name))
    return RefSnapshot(tuple(refs), looked_at, digest.hexdigest())


def is_understood(request: V2Request) -> bool:
    """Whether an `ls-refs` asks for nothing but what is answered here; git is to judge the rest."""
    return request.is_plain and all(line in _OPTIONS or line.startswith(b"ref-prefix ") for line in request.arguments)
