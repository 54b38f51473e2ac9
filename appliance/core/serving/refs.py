"""The refs that guests are shown, from a snapshot: asking git for each guest costs more than the answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo
from appliance.core.serving.pktline import FLUSH, packet

FRESH_FOR = 1.0
"""Seconds that a snapshot is believed when nothing of ours moved a ref."""

AGENTS = b"refs/agents/"
ARCHIVE = b"refs/gitmirror/archive/"
"""Where idle sessions are kept, out of the way of pushes."""

MOST_RENDERED = 64
MOST_PREFIXES = 65536
"""More ref-prefix lines than so are as good as none (git's own rule, ls-refs.c)."""


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
    """All refs that guests see, HEAD first. `tags` is one value for the state of all tags."""

    refs: tuple[ShownRef, ...]
    taken_at: float
    tags: str
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
        if len(prefixes) > MOST_PREFIXES:
            prefixes = ()
        # Archived sessions are there for whoever names one, and no weight to all others.
        resumed = any(prefix.startswith(AGENTS) for prefix in prefixes)
        lines = []
        for ref in self.refs:
            if prefixes and not ref.name.startswith(prefixes):
                continue
            if ref.archived and not resumed:
                continue
            if ref.oid is None and not unborn:
                continue
            line = (ref.oid or b"unborn") + b" " + ref.name
            if ref.target and (symrefs or ref.oid is None):
                line += b" symref-target:" + ref.target
            if peel and ref.peeled:
                line += b" peeled:" + ref.peeled
            lines.append(packet(line + b"\n"))
        return b"".join(lines) + FLUSH


class RefSnapshots:
    """Snapshots by repository id. `invalidate` is called before whoever moved a ref is told that it is done."""

    def __init__(self, mirror_of: Callable[[str], Mirror]) -> None:
        self._mirror_of = mirror_of
        self._taken: dict[int, RefSnapshot] = {}
        self._generation: dict[int, int] = {}
        self._loading: dict[int, tuple[int, asyncio.Task[RefSnapshot]]] = {}

    def invalidate(self, repo_id: int) -> None:
        """A ref of this repository moved: no snapshot from before is shown again."""
        self._generation[repo_id] = self._generation.get(repo_id, 0) + 1
        self._taken.pop(repo_id, None)

    async def get(self, repo: Repo) -> RefSnapshot:
        """A snapshot that is current. Raises GitError."""
        taken = self._taken.get(repo.id)
        if taken is not None and time.monotonic() - taken.taken_at < FRESH_FOR:
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
            taken_at = time.monotonic()
            snapshot = await take_snapshot(self._mirror_of(repo.name), taken_at)
            if self._generation.get(repo.id, 0) == generation:
                self._taken[repo.id] = snapshot
            return snapshot
        finally:
            if self._loading.get(repo.id, (None,))[0] == generation:
                del self._loading[repo.id]


async def take_snapshot(mirror: Mirror, taken_at: float) -> RefSnapshot:
    """Reads the refs of a mirror; private ones are left out. Raises GitError."""
    listed = await mirror.listed_refs()
    refs = [ShownRef(name, oid, peeled) for name, oid, peeled in listed if not name.startswith(b"refs/gitmirror/")]
    named = {ref.name for ref in refs}
    archived = [(AGENTS + name.removeprefix(ARCHIVE), oid) for name, oid, _ in listed if name.startswith(ARCHIVE)]
    refs += [ShownRef(name, oid, archived=True) for name, oid in archived if name not in named]
    refs.sort(key=lambda ref: ref.name)
    target = (mirror.head() or "").encode("utf-8", "surrogateescape")
    if target:
        at = next((ref.oid for ref in refs if ref.name == target), None)
        refs.insert(0, ShownRef(b"HEAD", at, target=target))
    digest = hashlib.sha256()
    for ref in refs:
        if ref.name.startswith(b"refs/tags/"):
            digest.update(b"%s %s\n" % (ref.name, ref.oid or b""))
    return RefSnapshot(tuple(refs), taken_at, digest.hexdigest())
