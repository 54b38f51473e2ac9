"""Finds out whether a mirror is damaged: `look` after each refresh, `inspect` at longer intervals."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from appliance.core.backup.bundles import present
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.integrity.mirror_files import RefFiles, derived_faults, file_faults, read_ref_files, unreadable
from appliance.core.integrity.recorded_refs import RecordedRefs, twin
from appliance.core.text import storable

_T = TypeVar("_T")

MOST_FAULTS = 20
DEADLINE = 6 * 3600.0
"""The deadline for one fsck at idle priority, in seconds. A full fsck of a large mirror takes an hour."""
MOST_OUTPUT = 2**20
"""How many bytes of fsck's output are read. One lost pack makes fsck print a line for each object."""
SETTLING = 1.0
"""Seconds after which a pack without an index is checked again, because git writes and removes the two one by one."""
LONGEST_FAULT = 300
MOST_TRIES = 500
"""The most runs of git to find the recorded refs that lack objects. Halving finds ten of ten thousand in 250 runs."""

_NO_DAMAGE = re.compile(
    r"^(?:notice: |warning: |dangling |unreachable |Checking |\s+to\s"
    # The content breaks a rule of newer versions of git, and does so at the upstream too.
    r"|(?:error|warning) in (?:commit|tree|blob|tag) "
    r"|error: refs/heads/.*: not a commit$)"
)
_MISSING = re.compile(r"missing \w+ ([0-9a-f]{40,64})$")
_CRASH = re.compile(r"exit code -(?:4|6|7|8|11)$")
"""Signals that kill git because of the data it reads: ILL, ABRT, BUS (the disk cannot deliver a page), FPE, SEGV."""
_NOT_OF_THE_MIRROR = re.compile(
    r"out of memory|cannot allocate|unable to (?:create thread|fork|mmap)|mmap failed|too many open files"
    r"|no space left|quota exceeded|permission denied|dubious ownership|cannot open shared object"
    r"|unable to create temporary",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Inspection:
    """What an inspection of one mirror found.

    `faults` has at most MOST_FAULTS sentences for an operator; it is empty if the mirror is not damaged. `lost_refs`
    are the recorded refs that are missing or damaged in the mirror, with the object id that each must have.
    """

    faults: tuple[str, ...] = ()
    lost_refs: Mapping[str, str] = field(default_factory=dict)

    @property
    def damage(self) -> str | None:
        """The line for `damage` of `status`: the first fault and how many more there are. None without a fault."""
        if not self.faults:
            return None
        more = len(self.faults) - 1
        return self.faults[0] + (f" (and {more} more)" if more else "")


@dataclass(frozen=True)
class Findings:
    """Everything that was found, unbounded: `faults` of files and objects, and recorded refs that are `lost`."""

    faults: list[str]
    lost: dict[str, str]

    def in_words(self) -> list[str]:
        """All findings as sentences to show, each once. Faults of files come first."""
        words = [*self.faults, *(f"{ref} is lost" for ref in sorted(self.lost))]
        return list(dict.fromkeys(storable(word)[:LONGEST_FAULT] for word in words))

    def summary(self) -> Inspection:
        """The first MOST_FAULTS of them."""
        return Inspection(tuple(self.in_words()[:MOST_FAULTS]), self.lost)


class Depth(IntEnum):
    """How much is read: the ends of files, all of the derived files, which objects exist, or all objects' content."""

    ENDS = 1
    FILES = 2
    OBJECTS = 3
    CONTENT = 4


async def look(mirror: Mirror, recorded: RecordedRefs) -> Inspection:
    """Compares the refs and files with what must exist; reads no objects.

    `recorded` must be read before the call. A session that is ended in between seems to be lost, so read `recorded`
    again and look again before you count it as lost. Raises GitError if the mirror cannot be read now, which is not
    damage.
    """
    return (await examine(mirror, recorded, Depth.ENDS)).summary()


async def inspect(mirror: Mirror, recorded: RecordedRefs, *, full: bool) -> Inspection:
    """Does the same as `look`, and has git check that every object that a ref reaches exists.

    With `full`, git also reads every object and computes its hash. Hold the mirror's shared lock, so that no repack
    removes packs meanwhile. Runs at idle priority. Raises GitError if git could not be run, or had not finished after
    DEADLINE, which is not damage.
    """
    return (await examine(mirror, recorded, Depth.CONTENT if full else Depth.OBJECTS)).summary()


async def examine(mirror: Mirror, recorded: RecordedRefs, depth: Depth) -> Findings:
    """Finds everything that is wrong with a mirror, down to `depth`. Raises GitError if it cannot be read now."""
    if not await _read(_is_there, mirror.path):
        return Findings(["the mirror is missing"], dict(recorded))
    files = await _read(read_ref_files, mirror.path)
    faults = await _read(file_faults, mirror.path)
    if any("lacks its" in fault for fault in faults):
        await asyncio.sleep(SETTLING)
        again = await _read(file_faults, mirror.path)
        faults = [fault for fault in faults if fault in again]
    faults += files.faults
    lost = _missing(recorded, files)
    if not faults:
        # git may not run at all while files are damaged.
        try:
            lost = await lost_of(mirror, recorded, files)
        except GitError as error:
            if is_of_the_machine(error):
                raise
            faults.append(f"git cannot read the mirror: {error.message}")
    if depth >= Depth.FILES:
        faults += await _read(_changed_files, mirror.path)
    if depth >= Depth.OBJECTS and (mirror.path / "HEAD").exists():
        idle = Mirror(mirror.path, Git(mirror.git.children, mirror.git.environment, nice=19))
        if found := await _confirmed(idle, await _fsck(idle, full=depth is Depth.CONTENT)):
            if path := await _read(unreadable, mirror.path):
                raise GitError(f"{path} cannot be read: permission denied")
            there = {ref: oid for ref, oid in recorded.items() if ref not in lost and files.refs.get(ref) == oid}
            broken = await _unreachable(idle, there)
            lost |= broken
            faults += [f"{ref} lacks objects" for ref in sorted(broken)] + found
    return Findings(faults, lost)


async def lost_of(mirror: Mirror, recorded: RecordedRefs, files: RefFiles) -> dict[str, str]:
    """The recorded refs that the mirror lacks, or that name an object which it lacks. Raises GitError.

    A ref that a push moved meanwhile names an object that exists; a damaged line of packed-refs does not.
    """
    lost, moved = _missing(recorded, files), _moved(recorded, files)
    there = await present(mirror, moved.values())
    return lost | {ref: recorded[ref] for ref, oid in moved.items() if oid not in there}


def _is_there(repository: Path) -> bool:
    try:
        os.listdir(repository)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _missing(recorded: RecordedRefs, files: RefFiles) -> dict[str, str]:
    """Recorded refs that do not exist, and sessions that have fallen back to an earlier turn.

    A session may be in the archive or not, because it is moved before the database is updated. git falls back to an
    older value in `packed-refs` when the loose file is lost.
    """
    refs, lost = files.refs, {}
    known = set(recorded.values())
    for ref, oid in recorded.items():
        other = twin(ref)
        found = refs.get(ref) or (refs.get(other) if other else None)
        if found is None or (found != oid and other is not None and found in known):
            lost[ref] = oid
    return lost


def _moved(recorded: RecordedRefs, files: RefFiles) -> dict[str, str]:
    """Recorded refs that point at a different object, with that object."""
    found = {ref: files.refs.get(ref) for ref in recorded}
    return {ref: oid for ref, oid in found.items() if oid is not None and oid != recorded[ref]}


def _changed_files(repository: Path) -> list[str]:
    return [f"{path.name} {fault}" for path, fault in derived_faults(repository).items()]


async def _fsck(mirror: Mirror, *, full: bool) -> list[str]:
    """What git finds, in git's own words. Raises GitError."""
    reading, writing = os.pipe()
    output = asyncio.create_task(asyncio.to_thread(_read_some, reading))
    how = ("--full",) if full else ("--connectivity-only",)
    error: GitError | None = None
    try:
        with os.fdopen(writing, "wb") as into:
            # Reflogs are not checked, because they name commits of failed pushes, which do not exist.
            await mirror.git.run(
                "fsck", *how, "--no-dangling", "--no-reflogs", "--no-progress",
                cwd=mirror.path, deadline=DEADLINE, into=into,
            )  # fmt: skip
    except GitError as failure:
        error = failure
    finally:
        printed = await asyncio.shield(output)
    if error is None:
        return []
    if is_of_the_machine(error):
        raise error
    lines = [*printed.decode("utf-8", "replace").splitlines(), *error.stderr.splitlines()]
    found = [line.strip() for line in lines if line.strip() and not _NO_DAMAGE.match(line)]
    if not found and _CRASH.search(error.message):
        return [f"it makes git crash: {error.message}"]
    if not found and not any(_NO_DAMAGE.match(line) for line in lines):
        raise error
    # Missing objects come first, because a broken link to one says less.
    return sorted(
        dict.fromkeys(found), key=lambda line: (line.startswith("broken link"), not line.startswith("missing "))
    )


async def _confirmed(mirror: Mirror, found: list[str]) -> list[str]:
    """What fsck found, but for missing objects that are there. Raises GitError.

    fsck lists the loose objects first and reads the refs last, so it calls missing what a push or a fetch brought in
    between.
    """
    missing = {line: match[1] for line in found if (match := _MISSING.match(line))}
    try:
        there = await present(mirror, missing.values())
    except GitError as error:
        if is_of_the_machine(error):
            raise
        return found
    return [line for line in found if missing.get(line) not in there]


def is_of_the_machine(error: GitError) -> bool:
    """Whether git failed for a reason that says nothing about the repository: memory, descriptors, disk, time."""
    return error.timed_out or bool(_NOT_OF_THE_MIRROR.search(error.stderr))


def _read_some(descriptor: int) -> bytes:
    """The first MOST_OUTPUT bytes. Closing the pipe then ends the writer."""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MOST_OUTPUT)


async def _unreachable(mirror: Mirror, refs: Mapping[str, str]) -> dict[str, str]:
    """Those of `refs` whose commit, or an object that the branches and tags do not reach, is missing.

    After MOST_TRIES, all that are left count, because something that they are based on is missing.
    """
    tries = 0

    async def are_whole(oids: Collection[str]) -> bool:
        nonlocal tries
        tries += 1
        if tries > MOST_TRIES:
            return False
        try:
            await mirror.git.run(
                "rev-list", "--objects", "--quiet", "--stdin", "--not", "--branches", "--tags",
                cwd=mirror.path, deadline=DEADLINE, stdin="".join(f"{oid}\n" for oid in oids).encode(),
            )  # fmt: skip
        except GitError as error:
            if is_of_the_machine(error):
                raise
            return False
        return True

    failing = await those_that_fail(sorted(set(refs.values())), are_whole)
    return {ref: oid for ref, oid in refs.items() if oid in failing}


async def those_that_fail(each: list[str], works: Callable[[Collection[str]], Awaitable[bool]]) -> set[str]:
    """Those of `each` for which `works` is false. All are tried at once first, then in halves."""
    if not each or await works(each):
        return set()
    if len(each) == 1:
        return set(each)
    middle = len(each) // 2
    return await those_that_fail(each[:middle], works) | await those_that_fail(each[middle:], works)


async def _read(work: Callable[[Path], _T], repository: Path) -> _T:
    """Runs `work`, which reads the disk, in a thread. Raises GitError instead of OSError."""
    try:
        return await asyncio.to_thread(work, repository)
    except OSError as error:
        raise GitError(f"the mirror cannot be read: {error.strerror} ({error.filename})") from error
