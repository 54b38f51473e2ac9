"""Heals one mirror: repairs its files in place, then if needed builds a new mirror with everything that can be read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.backup.bundles import present
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import MARK, QUICK, Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.git.ref_sets import ANCHORS, FOLLOWED, TIPS
from appliance.core.integrity.evidence import Evidence, prune
from appliance.core.integrity.exchange import NEW, UNFINISHED, building, replace, settle
from appliance.core.integrity.file_repairs import has_followed, put_refs_back, repair_files, set_refs_that_can
from appliance.core.integrity.inspection import Depth, Findings, Inspection, examine, is_of_the_machine, lost_of
from appliance.core.integrity.mirror_files import read_ref_files
from appliance.core.integrity.recorded_refs import RecordedRefs, recorded_refs
from appliance.core.integrity.salvage import Carrier, Sources
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.disk import LOW, room_of
from appliance.core.recording.policy import AGENTS
from appliance.core.store.stores import Stores
from appliance.core.units import format_size

log = logging.getLogger(__name__)

PRIVATE = "refs/gitmirror/"


@dataclass(frozen=True)
class Healing:
    """What healing one mirror did.

    `whole` means that an inspection afterwards found nothing; otherwise `remaining` is the damage that is left. `done`
    has a sentence for each step. `lost` are the recorded refs that could not be saved, with their object ids.
    `evidence` is where the damaged files are kept.
    """

    whole: bool
    done: tuple[str, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)
    evidence: Path | None = None
    remaining: str | None = None


class Healer:
    """Heals the mirrors of `layout`. `fetch` updates a mirror at any path from its upstream; it takes no lock.

    `backup` returns the directory of backups, or None without one. `fetch` raises GitmirrorError.
    """

    def __init__(
        self,
        mirrors: Mirrors,
        layout: Layout,
        stores: Stores,
        fetch: Callable[[Mirror, Repo], Awaitable[None]],
        backup: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self._mirrors = mirrors
        self._layout = layout
        self._stores = stores
        self._fetch = fetch
        self._backup = backup
        self._one_at_a_time = asyncio.Lock()

    async def heal(self, repo: Repo, found: Inspection) -> Healing:
        """Heals the damage `found` in the mirror of `repo`, step by step, as far as needed.

        Guests are served meanwhile. Pushes wait only while files are mended in place, and for the exchange. Raises
        GitmirrorError if the machine prevents it (no database, no space, git cannot be run). A kill at any moment does
        no harm, and the next heal reaches the same result.
        """
        async with self._one_at_a_time:
            try:
                return await self._heal(repo, found)
            except OSError as error:
                raise GitmirrorError(
                    f"the mirror of {repo.name} cannot be healed: {error.strerror} ({error.filename})",
                    hint="make room on the disk of the state directory, and check who may write there",
                ) from error

    async def _heal(self, repo: Repo, found: Inspection) -> Healing:
        # The remains of a killed heal may be the only copy of something, and would be in the way of this one.
        for settled in await asyncio.to_thread(settle, self._layout):
            log.warning("%s", settled)
        evidence = Evidence(self._layout, repo.name)
        mirror, done = self._mirrors(repo.name), list[str]()
        after, failure = Findings(["the mirror is missing"], {}), ""
        if await asyncio.to_thread(os.path.isdir, mirror.path):
            after = await self._heal_in_place(repo, mirror, found, evidence, done)
        if after.faults:
            try:
                await self._replace(repo, mirror, evidence, done)
            except GitmirrorError as error:
                log.warning("%s: no new mirror can be made: %s", repo.name, error.message)
                # Objects that cannot be read now may come from the upstream later, so nothing counts as lost.
                after, failure = Findings(after.faults, {}), f"; no new mirror can be made: {error.message}"
            else:
                after = await self._examine(repo, mirror, Depth.OBJECTS)
        if after.lost and not after.faults and await self._take_from_elsewhere(repo, mirror, done):
            after = await self._examine(repo, mirror, Depth.OBJECTS)
        await asyncio.to_thread(prune, self._layout, evidence.path)
        left = after.summary().damage
        return Healing(left is None, tuple(done), after.lost, evidence.path, left and f"{left}{failure}")

    async def _recorded(self, repo: Repo) -> RecordedRefs:
        return await asyncio.to_thread(recorded_refs, self._stores, repo.name)

    async def _examine(self, repo: Repo, mirror: Mirror, depth: Depth) -> Findings:
        async with self._mirrors.locks.shared(repo.name):
            return await examine(mirror, await self._recorded(repo), depth)

    async def _lost(self, repo: Repo, mirror: Mirror) -> dict[str, str]:
        """The recorded refs that are lost, found without asking git whether everything they reach exists."""
        files = await asyncio.to_thread(read_ref_files, mirror.path)
        return await lost_of(mirror, await self._recorded(repo), files)

    # In place

    async def _heal_in_place(
        self, repo: Repo, mirror: Mirror, found: Inspection, evidence: Evidence, done: list[str]
    ) -> Findings:
        async with self._mirrors.locks.exclusive(repo.name):
            recorded = await self._recorded(repo)
            of_files = set((await examine(mirror, recorded, Depth.FILES)).in_words())
            await asyncio.to_thread(mirror.remove_leftovers)
            head = (await asyncio.to_thread(self._stores.health.get, repo.id)).head
            done += await repair_files(mirror, repo.url, head, evidence)
            try:
                done += await put_refs_back(mirror, recorded)
            except GitError as error:
                if is_of_the_machine(error):
                    raise
                log.warning("%s: refs cannot be put back in place: %s", repo.name, error.message)
            if not has_followed(await asyncio.to_thread(read_ref_files, mirror.path)):
                # Otherwise guests would see an empty repository until the next refresh.
                mirror.await_upstream()
        # Damage that was found by reading objects is not gone just because an inspection that does not read them finds
        # none.
        depth = Depth.OBJECTS if of_files.issuperset(found.faults) else Depth.CONTENT
        return await self._examine(repo, mirror, depth)

    # A new mirror

    async def _replace(self, repo: Repo, mirror: Mirror, evidence: Evidence, done: list[str]) -> None:
        """Builds a new mirror and replaces the old one with it. Raises GitmirrorError, OSError."""
        await asyncio.to_thread(self._require_room, mirror)
        async with self._new_mirror(repo, mirror) as new:
            await self._fetch(new, repo)
            sources = Sources(self._scratch)
            await sources.add_repository(mirror.path, new.git)
            carrier = Carrier(new, sources, set((await new.local_refs(*FOLLOWED)).values()))
            await self._carry(repo, mirror, carrier)
            if await self._lost(repo, new) and (at := await self._add_backup(repo, sources, new)):
                done.append(f"unreadable objects were looked for in the backup of {at}")
                await self._carry(repo, mirror, carrier)
            if faults := (await examine(new, await self._recorded(repo), Depth.OBJECTS)).faults:
                raise GitmirrorError(f"the new mirror is damaged: {faults[0]}")
            async with self._mirrors.locks.exclusive(repo.name):
                # Takes over what was pushed meanwhile.
                await self._carry(repo, mirror, carrier)
                await copy_reflogs(mirror.path, new)
                await asyncio.to_thread(replace, self._layout, repo.name, evidence)
        done.append("a new mirror was fetched from the upstream, with everything that could be read from the old one")

    @property
    def _scratch(self) -> Path:
        return self._layout.healing / "scratch"

    def _require_room(self, mirror: Mirror) -> None:
        needed, room = mirror.disk_size() + LOW, room_of(self._layout.state)
        if room is not None and room.bytes < needed:
            raise GitmirrorError(
                f"the disk has {format_size(room.bytes)} free, and it needs about {format_size(needed)}",
                hint="make room on the disk of the state directory",
            )

    @contextlib.asynccontextmanager
    async def _new_mirror(self, repo: Repo, mirror: Mirror) -> AsyncIterator[Mirror]:
        """A repository beside the mirror. If it is still there at the end, it is removed."""
        new = Mirror(building(self._layout, repo.name), mirror.git.gently())
        async with self._emptied():
            new.path.mkdir(parents=True)
            write_atomically(new.path / NEW, UNFINISHED)
            await new.git.run("init", "--quiet", "--bare", "--template=", ".", cwd=new.path, deadline=QUICK)
            new.configure(repo.url)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                shutil.copyfile(mirror.path / MARK, new.path / MARK)
            yield new

    @contextlib.asynccontextmanager
    async def _emptied(self) -> AsyncIterator[None]:
        """An empty directory to work in, which is removed at the end."""
        await asyncio.to_thread(shutil.rmtree, self._layout.healing, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        try:
            yield
        finally:
            await asyncio.to_thread(shutil.rmtree, self._layout.healing, ignore_errors=True)

    async def _carry(self, repo: Repo, mirror: Mirror, carrier: Carrier) -> None:
        """Gives the new mirror the refs of the old one and of the database, if everything that they reach can be read.

        The old mirror's values come first, because a push may not be in the database yet; then the database's values of
        lost refs; then anchors, including new ones for where the branches were. Refs of sessions that ended since an
        earlier call are removed.
        """
        new = carrier.target
        old = (await asyncio.to_thread(read_ref_files, mirror.path)).refs
        recorded = await self._recorded(repo)
        private = {ref: oid for ref, oid in old.items() if ref.startswith((AGENTS, PRIVATE))}
        anchors = {ref: oid for ref, oid in private.items() if ref.startswith((ANCHORS, TIPS))}
        present = await new.local_refs(*FOLLOWED)
        were = {oid for ref, oid in old.items() if ref.startswith(FOLLOWED)} - set(present.values())
        anchors |= {f"{ANCHORS}{oid}": oid for oid in were}
        await _take(carrier, {ref: oid for ref, oid in private.items() if ref not in anchors})
        await _take(carrier, await self._lost(repo, new))
        await _take(carrier, anchors)
        present = await new.local_refs(AGENTS, PRIVATE)
        ended = {ref: oid for ref, oid in present.items() if not (ref in old or ref in recorded or ref in anchors)}
        await new.update_refs(f"delete {ref} {oid}\n" for ref, oid in ended.items())

    # From elsewhere

    async def _take_from_elsewhere(self, repo: Repo, mirror: Mirror, done: list[str]) -> bool:
        """Copies lost recorded refs from the newest backup and from evidence into a mirror that is otherwise intact.

        Returns whether it could.
        """
        async with self._emptied():
            sources, gentle = Sources(self._scratch), Mirror(mirror.path, mirror.git.gently())
            at = await self._add_backup(repo, sources, gentle)
            where = [f"the backup of {at}"] if at else []
            for damaged in sorted(self._layout.evidence.glob(f"{repo.name}.*/mirror.git*")):
                await sources.add_repository(damaged, gentle.git)
                where.append(str(damaged))
            if not where:
                return False
            async with self._mirrors.locks.shared(repo.name):
                carrier = Carrier(gentle, sources, set((await mirror.local_refs(*FOLLOWED)).values()))
                taken = await _take(carrier, await self._lost(repo, mirror))
        done += [f"{ref} was taken from {' or '.join(where)}" for ref in sorted(taken)]
        return bool(taken)

    async def _add_backup(self, repo: Repo, sources: Sources, mirror: Mirror) -> str | None:
        """Adds the newest backup to the sources; returns when it was made, or None if no backup can be read."""
        directory = self._backup()
        if directory is None:
            return None
        try:
            return await sources.add_backup(directory, repo.name, mirror.git)
        except OSError as error:
            log.warning("the backups in %s cannot be read: %s", directory, error)
            return None


async def _take(carrier: Carrier, refs: Mapping[str, str]) -> set[str]:
    """Copies everything that `refs` reach and sets them; returns the refs for which both succeeded."""
    present = await carrier.target.local_refs(AGENTS, PRIVATE)
    wanted = {ref: oid for ref, oid in refs.items() if present.get(ref) != oid}
    failed = await carrier.carry(wanted)
    return await set_refs_that_can(carrier.target, {ref: oid for ref, oid in wanted.items() if ref not in failed})


async def copy_reflogs(old: Path, new: Mirror) -> None:
    """Copies the reflogs of session refs, because the outcome of a push that is still open is read from them.

    Lines that name an object that the new mirror lacks are left out, because git would report them as damage.
    """
    logs = await asyncio.to_thread(_read_reflogs, old / "logs")
    named = {oid for lines in logs.values() for line in lines for oid in _oids_of(line)}
    there = await present(new, named)
    await asyncio.to_thread(_write_reflogs, new.path / "logs", logs, there)


def _write_reflogs(directory: Path, logs: Mapping[str, list[bytes]], there: set[str]) -> None:
    for name, lines in logs.items():
        kept = [line for line in lines if there.issuperset(_oids_of(line))]
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(kept))


def _read_reflogs(directory: Path) -> dict[str, list[bytes]]:
    found = {}
    for parent, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                path = Path(parent, name)
                found[str(path.relative_to(directory))] = path.read_bytes().splitlines(keepends=True)
    return found


def _oids_of(line: bytes) -> set[str]:
    """The objects of one line: where the ref was, and where it went."""
    words = line[:81].decode("ascii", "replace").split(" ")
    return {word for word in words if word.strip("0")}
