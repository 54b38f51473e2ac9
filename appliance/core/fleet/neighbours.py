"""Updates a mirror from the port of another node, to exactly the refs and HEAD that this node was told of.

The objects come first, by their ids, and no ref moves before all of them are here. Then the refs move at once to what
was told. So nothing else that the other node has, such as what it learns meanwhile, comes along.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import LINE, Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.git.ref_memory import refs_digest
from appliance.core.git.ref_sets import FOLLOWED, beside, changes_between, parse_remote, unholdable
from appliance.core.git.ref_traces import take_traces
from appliance.core.models import RefChange, RemoteRefs, Repo
from appliance.core.refresh.refresher import Refresher, followed_ref
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.upstream import parse_upstream, read_upstream

log = logging.getLogger(__name__)

ANSWERS_IN = 4.0
"""Seconds that a neighbour may take to list its refs."""
QUIET_FOR = 15.0
"""Seconds without progress after which a fetch from a neighbour is given up."""


class NotAsTold(GitmirrorError):
    """A neighbour does not have what this node was told of, or this disk cannot hold it."""


@dataclass(frozen=True)
class OwnState:
    """What the mirror of this node has: its digest, and its facts as after a refresh that found nothing new."""

    repo: Repo
    refs: bytes
    head: str | None
    digest: str
    facts: MirrorFacts


def digest_of(refs: Mapping[str, str], head: str | None) -> str:
    """The SHA-256 of a mirror's branches and tags, and of the branch that HEAD names, if there is one."""
    return _digest(refs_digest(refs), head if head in refs else None)


def _digest(refs: bytes, head: str | None) -> str:
    return hashlib.sha256(refs + (head or "").encode("utf-8", "surrogateescape")).hexdigest()


class Neighbours:
    """Reads and updates the mirrors of `refresher`; its locks are those of `mirrors`."""

    def __init__(self, mirrors: Mirrors, refresher: Refresher) -> None:
        self._mirrors = mirrors
        self._refresher = refresher
        self._own: dict[int, OwnState] = {}

    async def own(self, repo: Repo) -> OwnState | None:
        """What the mirror has, or None if there is none that guests get. Runs git only if a ref may have moved."""
        mirror, memory = self._mirrors(repo.name), self._refresher.memory
        if not self._mirrors.has(repo):
            return None
        known, refs = self._own.get(repo.id), await asyncio.to_thread(memory.digest, mirror.path)
        if known is not None and known.repo == repo and known.refs == refs and known.head == mirror.head():
            return known
        traces = await asyncio.to_thread(take_traces, mirror.path, time.time(), *FOLLOWED)
        local, head = await mirror.local_refs(), mirror.head()
        await beside(len(local), memory.learn, mirror.path, traces, local)
        refs = await beside(len(local), refs_digest, local)
        facts = self._refresher.same(mirror, repo, local)
        own = OwnState(repo, refs, head, _digest(refs, head if head in local else None), facts)
        self._own[repo.id] = own
        return own

    async def copy(self, run: RefreshRun, node_url: str, digest: str) -> MirrorFacts:
        """Brings the mirror to the state of this digest from the node at `node_url`. Raises GitmirrorError, OSError.

        If it raises, no ref has moved, or the old values of those that have are anchored.
        """
        # Whatever another node says of itself: only a URL of these schemes reaches git.
        node = parse_upstream(f"{node_url.rstrip('/')}/{run.repo.name}", allow_local=False)
        mirror = self._mirrors(run.repo.name)
        if mirror.is_there():
            return await self._update(mirror, run, node.url, digest)
        return await self._clone(run, node.url, digest)

    async def _clone(self, run: RefreshRun, url: str, digest: str) -> MirrorFacts:
        repo, layout = run.repo, self._mirrors.layout
        growing = Mirror(layout.incoming(repo.name), self._mirrors.git)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, growing.path)
        await growing.initialise(repo.url)
        with_credential = self._has_credential(repo)
        if with_credential:
            growing.mark(repo.url)
        offered = await self._offered(growing, url, digest)
        run.fetching = True
        await self._fetch(growing, url, offered.refs.values(), run)
        await growing.update_refs(f"create {ref} {oid}\n" for ref, oid in offered.refs.items())
        await self._refresher.follow_head(growing, offered)
        async with self._mirrors.locks.shared(repo.name):
            if with_credential and not self._has_credential(repo):
                # As in a clone from the upstream: the reload found no mark on a mirror that did not exist yet.
                raise NotAsTold(f"the [[credentials]] entry for {repo.url} was removed during the first clone")
            mirror = growing.rename_to(layout.mirror(repo.name))
        return await self._refresher.facts(mirror, repo, before={})

    async def _update(self, mirror: Mirror, run: RefreshRun, url: str, digest: str) -> MirrorFacts:
        repo = run.repo
        if self._has_credential(repo):
            mirror.mark(repo.url)
        mirror.configure(repo.url)
        offered = await self._offered(mirror, url, digest)
        before = await mirror.local_refs()
        changes = await beside(len(offered.refs), changes_between, before, offered.refs)
        run.fetching = bool(changes)
        async with self._mirrors.locks.shared(repo.name):
            await self._fetch(mirror, url, (change.new for change in changes if change.new is not None), run)
            branch = followed_ref(repo, mirror.head())
            await mirror.anchor(changes, branch)
            # In one transaction refs may not trade places with directories, so what stands in the way goes first.
            await mirror.make_way(offered.refs, before)
            left = await mirror.local_refs()
            await mirror.update_refs(await beside(len(changes), _moves, changes, left))
            await self._refresher.follow_head(mirror, offered)
        mirror.caught_up()
        return await self._refresher.facts(mirror, repo, before=before)

    def _has_credential(self, repo: Repo) -> bool:
        return self._refresher.current_keyring().entry(read_upstream(repo.url)) is not None

    async def _offered(self, mirror: Mirror, url: str, digest: str) -> RemoteRefs:
        """The refs of the neighbour, which must be those of the digest. Raises GitError, NotAsTold."""
        output = await mirror.git.run("ls-remote", "--quiet", "--symref", url, cwd=mirror.path, deadline=ANSWERS_IN)
        offered = await beside(len(output.stdout) // LINE, parse_remote, output.stdout)
        if await beside(len(offered.refs), digest_of, offered.refs, offered.head) != digest:
            raise NotAsTold(f"{url} has other refs than the news of it")
        if await beside(len(offered.refs), unholdable, mirror.path, offered.refs):
            raise NotAsTold(f"{url} has refs that this disk cannot hold")
        return offered

    async def _fetch(self, mirror: Mirror, url: str, oids: Iterable[str], run: RefreshRun) -> None:
        """Fetches objects with all that they refer to; moves no ref. Raises GitError."""
        wanted = "".join(f"{oid}\n" for oid in dict.fromkeys(oids))
        if not wanted:
            return
        async with _while_it_moves() as moved:

            def progress(line: str) -> None:
                moved()
                run.told(line)

            await mirror.git.run(
                "fetch",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--no-recurse-submodules",
                "--progress",
                "--stdin",
                url,
                cwd=mirror.path,
                deadline=self._refresher.timeout,
                stdin=wanted.encode(),
                on_progress=progress,
            )


def _moves(changes: Iterable[RefChange], local: Mapping[str, str]) -> list[str]:
    """The lines for `update-ref` that make the changes, given what the refs are now."""
    lines = []
    for change in changes:
        now = local.get(change.ref)
        if change.new is None:
            lines += [f"delete {change.ref} {now}\n"] if now is not None else []
        else:
            lines.append(f"update {change.ref} {change.new} {now or '0' * len(change.new)}\n")
    return lines


@contextlib.asynccontextmanager
async def _while_it_moves() -> AsyncIterator[Callable[[], None]]:
    """Ends the block with NotAsTold once what it gives was not called for QUIET_FOR seconds."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(QUIET_FOR) as patience:
            yield lambda: patience.reschedule(loop.time() + QUIET_FOR)
    except TimeoutError:
        raise NotAsTold(f"the neighbour sent nothing for {QUIET_FOR:g}s") from None
