"""Performs one refresh: lists the upstream's refs, fetches if something moved, follows its default branch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.failures import Kind, kind_of
from appliance.core.git.keyring import CredentialError, Keyring
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.git.ref_memory import RefMemory
from appliance.core.git.ref_sets import FOLLOWED, beside, changes_between
from appliance.core.git.ref_traces import take_traces
from appliance.core.layout import Layout
from appliance.core.models import RefChange, RemoteRefs, Repo
from appliance.core.process.disk import room_of
from appliance.core.refresh.left_out import LeftOutRefs
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.text import storable
from appliance.core.upstream import Upstream, parse_upstream

log = logging.getLogger(__name__)

ASKING_DEADLINE = 60.0
"""The deadline of ls-remote in seconds: an upstream that has not answered by then hangs."""

LONG = 10.0
"""Seconds from which a first clone is followed by another look at the upstream."""

_MAYBE_FULL = frozenset({Kind.OTHER, Kind.MIRROR, Kind.BROKEN})


class Refresher:
    """Refreshes mirrors below `layout`. `timeout` is the deadline of one refresh, in seconds.

    A reload replaces `keyring`; a running refresh keeps the keyring it began with.
    """

    def __init__(self, layout: Layout, git: Git, locks: MirrorLocks, keyring: Keyring, *, timeout: float) -> None:
        self._layout = layout
        self._git = git
        self._locks = locks
        self.keyring = keyring
        self.timeout = timeout
        self.memory = RefMemory()
        self.left_out = LeftOutRefs()

    def current_keyring(self) -> Keyring:
        """The keyring in use now."""
        return self.keyring

    async def refresh(self, run: RefreshRun) -> MirrorFacts:
        """Updates one mirror, or clones it if it is missing. Raises GitmirrorError.

        If it raises after refs have changed, the old values of these refs are anchored.
        """
        # Check the URL again, because a registered repository outlives a change of what the config allows.
        keyring = self.keyring
        upstream = parse_upstream(run.repo.url, allow_local=True, has_key=keyring.has_key)
        with_credential = keyring.entry(upstream) is not None
        try:
            mirror = Mirror(self._layout.mirror(run.repo.name), self._git)
            if with_credential and mirror.exists():
                # Mark before the first await: a reload may remove the entry meanwhile, and must find the mirror marked.
                mirror.mark(run.repo.url)
            async with asyncio.timeout(self.timeout) as deadline, keyring.open(upstream, self._git) as git:
                mirror = Mirror(self._layout.mirror(run.repo.name), git)
                if not mirror.is_there():
                    facts = await self._clone(run, git, upstream, with_credential)
                    deadline.reschedule(None)
                    return await self._caught_up(run, git, facts)
                facts = await self._update(mirror, run)
                mirror.caught_up()
                if not with_credential:
                    # Only a refresh without a credential proves that everybody may read the upstream.
                    mirror.unmark(run.repo.url)
                return facts
        except TimeoutError:
            raise GitError(f"the refresh took longer than {self.timeout:g}s and was ended", timed_out=True) from None
        except GitError as error:
            # git does not always give the reason for a failed write: for a ref, "couldn't write '….lock'" is all.
            room = room_of(self._layout.state)
            if kind_of(error.stderr or error.message) in _MAYBE_FULL and room is not None and room.is_full:
                raise GitmirrorError(f"{error.message} (no space left on device)") from error
            raise
        except OSError as error:
            raise GitmirrorError(f"the mirror of {run.repo.name} cannot be read or written: {error}") from error

    async def bring(self, mirror: Mirror, repo: Repo) -> None:
        """Fetches everything that the upstream has into `mirror`, at any path, and follows its default branch.

        For a heal: what the mirror seems to have is fetched too. Takes no lock; the caller has the mirror to itself.
        Raises GitmirrorError.
        """
        keyring = self.keyring
        upstream = parse_upstream(repo.url, allow_local=True, has_key=keyring.has_key)
        try:
            if keyring.entry(upstream) is not None:
                mirror.mark(repo.url)
            async with asyncio.timeout(self.timeout), keyring.open(upstream, self._git) as git:
                mirror = Mirror(mirror.path, git)
                mirror.configure(repo.url)
                offered = await mirror.remote_refs(self._asking_deadline())
                left_out = await beside(len(offered.refs), self.left_out.of, mirror, offered)
                remote = _without(offered, left_out)
                await mirror.fetch(self.timeout, without=left_out, anew=True)
                await self._require_brought(mirror, remote, before={})
                await self.follow_head(mirror, remote)
        except TimeoutError:
            raise GitError(f"the upstream took longer than {self.timeout:g}s", timed_out=True) from None
        except OSError as error:
            raise GitmirrorError(f"{mirror.path} cannot be read or written: {error}") from error

    async def fetch_commits(self, repo: Repo, commits: Sequence[str]) -> None:
        """Fetches commits by their ids, which no ref of the upstream may have any more; moves no ref.

        Takes no lock. Raises GitmirrorError, also if the upstream gives no commit by its id, as GitHub does.
        """
        keyring, mirror = self.keyring, Mirror(self._layout.mirror(repo.name), self._git)
        upstream = parse_upstream(repo.url, allow_local=True, has_key=keyring.has_key)
        try:
            if keyring.entry(upstream) is not None:
                mirror.mark(repo.url)
            async with keyring.open(upstream, self._git) as git:
                await git.run(
                    "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
                    "--no-recurse-submodules", "--stdin", "origin", cwd=mirror.path, deadline=self.timeout,
                    stdin="".join(f"{commit}\n" for commit in commits).encode(), asks_upstream=True,
                )  # fmt: skip
        except OSError as error:
            raise GitmirrorError(f"{mirror.path} cannot be read or written: {error}") from error

    async def _clone(self, run: RefreshRun, git: Git, upstream: Upstream, with_credential: bool) -> MirrorFacts:
        """Clones into a temporary directory and renames it when complete, so that a mirror is never half there."""
        growing = Mirror(self._layout.incoming(run.repo.name), git)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, growing.path)
        await growing.initialise(run.repo.url)
        if with_credential:
            growing.mark(run.repo.url)
        offered = await growing.remote_refs(self._asking_deadline())
        left_out = await beside(len(offered.refs), self.left_out.of, growing, offered)
        remote = _without(offered, left_out)
        run.fetching = True
        left_out = await self.left_out.fetch(growing, remote, list(remote.refs), left_out, self.timeout, run.told)
        remote = _without(offered, left_out)
        await self._require_brought(growing, remote, before={})
        _require_followed(run.repo, remote.head, left_out)
        await self.follow_head(growing, remote)
        async with self._locks.shared(run.repo.name):
            if with_credential and self.keyring.entry(upstream) is None:
                # Without the entry, the config makes the mirror public, and the reload found no mark on a mirror that
                # did not exist yet.
                raise CredentialError(
                    f"the [[credentials]] entry for {run.repo.url} was removed during the first clone"
                )
            mirror = growing.rename_to(self._layout.mirror(run.repo.name))
        self.left_out.renamed(growing.path, mirror.path)
        return replace(await self.facts(mirror, run.repo, before={}), left_out=left_out)

    async def _caught_up(self, run: RefreshRun, git: Git, cloned: MirrorFacts) -> MirrorFacts:
        """The facts of a mirror that was just cloned; after a LONG clone, with what the upstream got meanwhile.

        Its refs are as old as the clone took, so it would be stale from the start. If that fails, the clone stands.
        """
        asked_after, mirror = time.monotonic() - run.since, Mirror(self._layout.mirror(run.repo.name), git)
        if asked_after < LONG:
            return cloned
        try:
            async with asyncio.timeout(self.timeout):
                left_out = (await self._update(mirror, run)).left_out
        except (GitmirrorError, OSError, TimeoutError) as error:
            log.warning("%s was cloned, and could not be asked for what is new since: %s", run.repo.name, error)
            return cloned
        facts = await self.facts(mirror, run.repo, before={})
        return replace(facts, left_out=left_out, asked_after=asked_after)

    async def _update(self, mirror: Mirror, run: RefreshRun) -> MirrorFacts:
        mirror.configure(run.repo.url)
        offered = await mirror.remote_refs(self._asking_deadline())
        left_out = await beside(len(offered.refs), self.left_out.of, mirror, offered)
        remote = _without(offered, left_out)
        if await beside(len(remote.refs), self.memory.holds, mirror.path, remote.refs):
            _require_followed(run.repo, remote.head, left_out)
            await self.follow_head(mirror, remote)
            return replace(self.same(mirror, run.repo, remote.refs), left_out=left_out)
        traces = take_traces(mirror.path, time.time(), *FOLLOWED)
        # Left-out refs stay as they were, neither moved nor removed.
        before = {ref: oid for ref, oid in (await mirror.local_refs()).items() if ref not in left_out}
        changes = await beside(len(remote.refs), changes_between, before, remote.refs)
        if changes:
            run.fetching, tell = True, run.told if run.on_progress else None
            async with self._locks.shared(run.repo.name):
                branch = followed_ref(run.repo, mirror.head())
                await mirror.anchor(changes, branch)
                await mirror.make_way(remote.refs, before)
                changed = [change.ref for change in changes if change.new is not None]
                left_out = await self.left_out.fetch(mirror, remote, changed, left_out, self.timeout, tell)
                remote = _without(offered, left_out)
                # More refs may have moved since the upstream's refs were listed.
                now = await mirror.local_refs()
                await mirror.anchor(await beside(len(now), _further_changes, before, now, changes), branch)
            await self._require_brought(mirror, remote, before)
        _require_followed(run.repo, remote.head, left_out)
        await self.follow_head(mirror, remote)
        if not changes:
            await beside(len(before), self.memory.learn, mirror.path, traces, before)
            return replace(self.same(mirror, run.repo, before), left_out=left_out)
        return replace(await self.facts(mirror, run.repo, before=before), left_out=left_out)

    def _asking_deadline(self) -> float:
        return min(ASKING_DEADLINE, self.timeout)

    async def _require_brought(self, mirror: Mirror, remote: RemoteRefs, before: Mapping[str, str]) -> None:
        """Raises GitError if a successful fetch left refs out, as git does for a shallow upstream, with a warning.

        The upstream's refs are listed once more, because a ref may have moved or been deleted since they were listed.
        """
        left = await beside(len(remote.refs), _not_brought, remote.refs, before, await mirror.local_refs())
        if not left:
            return
        again, first = await mirror.remote_refs(self._asking_deadline()), set(left)
        left = await beside(len(again.refs), _not_brought, again.refs, before, await mirror.local_refs())
        left = [ref for ref in left if ref in first]
        if left:
            raise GitError(
                f"the upstream did not hand over {len(left)} refs, including {left[0]}: is it a shallow clone? "
                "A mirror needs the whole history"
            )

    async def follow_head(self, mirror: Mirror, remote: RemoteRefs) -> None:
        """Points HEAD where the upstream's points.

        If the upstream's HEAD is detached or unborn, ours stays as it is, unless it names no existing branch; then it
        moves to main, master or the first branch by name.
        """
        head = remote.head
        if head is None and mirror.head() not in remote.refs:
            branches = sorted(name for name in remote.refs if name.startswith("refs/heads/"))
            usual = [name for name in ("refs/heads/main", "refs/heads/master") if name in remote.refs]
            head = next(iter([*usual, *branches]), None)
        if head is not None and head != mirror.head():
            await mirror.set_head(head)

    @staticmethod
    def same(mirror: Mirror, repo: Repo, refs: Mapping[str, str]) -> MirrorFacts:
        """The facts of a refresh in which nothing moved; the mirror still has `refs`."""
        head = mirror.head()
        return MirrorFacts(tip=refs.get(followed_ref(repo, head) or ""), head=head, refs=len(refs), size=None)

    async def facts(self, mirror: Mirror, repo: Repo, *, before: dict[str, str]) -> MirrorFacts:
        refs = await mirror.local_refs()
        head = mirror.head()
        return MirrorFacts(
            tip=refs.get(followed_ref(repo, head) or ""),
            head=head,
            refs=len(refs),
            size=await asyncio.to_thread(mirror.disk_size),
            moved=await beside(len(refs) + len(before), changes_between, before, refs),
        )


def _further_changes(
    before: Mapping[str, str], now: Mapping[str, str], known: tuple[RefChange, ...]
) -> list[RefChange]:
    """The changes that are not among `known`."""
    # A set: searching the tuple for each of 60,000 rewritten branches stopped everything for two minutes.
    seen = set(known)
    return [change for change in changes_between(before, now) if change not in seen]


def _not_brought(remote: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return [ref for ref, oid in remote.items() if after.get(ref) == before.get(ref) != oid]


def _without(remote: RemoteRefs, left_out: Mapping[str, str]) -> RemoteRefs:
    return replace(remote, refs={ref: oid for ref, oid in remote.refs.items() if ref not in left_out})


def _require_followed(repo: Repo, head: str | None, left_out: Mapping[str, str]) -> None:
    """Raises GitError if the followed branch is left out: a mirror without it is not up to date."""
    followed = followed_ref(repo, head)
    if followed in left_out:
        raise GitError(f"{storable(followed or '')}: {left_out[followed or '']}")


def followed_ref(repo: Repo, head: str | None) -> str | None:
    """The branch used for snapshots, warming and visible anchors: the registered one, otherwise the upstream's HEAD."""
    return f"refs/heads/{repo.branch}" if repo.branch else head
