"""Mends the files of a mirror in place: HEAD, config, refs, and the files that git derives from packs.

Every file is copied into evidence before it is changed or removed. A kill in between loses nothing: recorded refs come
from the database, branches from the upstream, and an index from its pack.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from appliance.core.backup.bundles import LONG, present
from appliance.core.backup.directory import NewFile
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror, mirror_config
from appliance.core.git.ref_sets import FOLLOWED
from appliance.core.integrity.evidence import Evidence
from appliance.core.integrity.inspection import is_of_the_machine, lost_of, those_that_fail
from appliance.core.integrity.mirror_files import (
    RefFiles,
    derived_faults,
    empty_objects,
    file_faults,
    pack_faults,
    read_ref_files,
)
from appliance.core.integrity.recorded_refs import RecordedRefs
from appliance.core.process.atomic_file import write_atomically

AT_ONCE = 500
"""Refs per transaction. git syncs a file for each ref, and a transaction has a deadline."""
_USUAL = ("refs/heads/main", "refs/heads/master")


async def repair_files(mirror: Mirror, url: str, head: str | None, evidence: Evidence) -> list[str]:
    """Mends the files of a mirror that exists; returns what was done. Raises GitError, OSError.

    `url` is its upstream and `head` the branch that HEAD pointed at, if known. Nobody else may work on the mirror.
    """
    done = await asyncio.to_thread(_repair_frame, mirror, url, evidence)
    done += await asyncio.to_thread(_repair_refs, mirror, head, evidence)
    done += await asyncio.to_thread(_remove_what_misleads, mirror.path, evidence)
    return done + await _make_indexes(mirror)


def _repair_frame(mirror: Mirror, url: str, evidence: Evidence) -> list[str]:
    """Creates what git needs to recognise a repository, except HEAD, which is set with the refs."""
    done = []
    for name in ("objects/pack", "objects/info", "refs"):
        path = mirror.path / name
        if not path.is_dir():
            if os.path.lexists(path):
                evidence.take(path)
            path.mkdir(parents=True)
            done.append(f"the directory {name} was created")
    config = mirror.path / "config"
    if any("config" in fault for fault in file_faults(mirror.path)):
        evidence.copy(config)
        write_atomically(config, mirror_config(url))
        done.append("the config was rewritten")
    return done


def _repair_refs(mirror: Mirror, head: str | None, evidence: Evidence) -> list[str]:
    done = []
    files = read_ref_files(mirror.path)
    if files.packed is not None:
        packed = mirror.path / "packed-refs"
        evidence.copy(packed)
        _write_packed_refs(packed, files.packed)
        done.append(f"packed-refs was rewritten with the refs that could be read: {len(_sorted(files.packed))}")
    for ref, path in files.broken.items():
        evidence.take(path, ref.replace("/", "."))
        done.append(f"the file of {ref}, which held no ref, was removed")
    if any("HEAD" in fault for fault in file_faults(mirror.path)):
        branch = _branch(head, read_ref_files(mirror.path).refs)
        evidence.copy(mirror.path / "HEAD")
        write_atomically(mirror.path / "HEAD", f"ref: {branch}\n")
        done.append(f"HEAD was pointed at {branch}")
    return done


def _write_packed_refs(path: Path, lines: Iterable[bytes]) -> None:
    """Without the `peeled` header, git finds out by itself what a tag points at."""
    with NewFile(path) as new:
        new.write(b"# pack-refs with: sorted \n" + b"".join(line + b"\n" for line in _sorted(lines)))


def _sorted(lines: Iterable[bytes]) -> list[bytes]:
    by_name = {line[41:]: line for line in lines if not line.startswith(b"^")}
    return [by_name[name] for name in sorted(by_name)]


def _branch(head: str | None, refs: Mapping[str, str]) -> str:
    known = [head] if head and head.startswith("refs/heads/") else []
    branches = sorted(ref for ref in refs if ref.startswith("refs/heads/"))
    return next((ref for ref in (*known, *_USUAL, *branches) if ref in refs), (known or [_USUAL[0]])[0])


def _remove_what_misleads(repository: Path, evidence: Evidence) -> list[str]:
    """Removes damaged derived files, those of a pack that is gone, and empty objects, because git would rely on them.

    The commit-graphs are a chain, and the multi-pack-index names packs, so each of these is removed entirely.
    """
    info, pack = repository / "objects" / "info", repository / "objects" / "pack"
    doomed = {**derived_faults(repository), **dict.fromkeys(empty_objects(repository), "is empty")}
    for path, fault in pack_faults(repository).items():
        if path.suffix == ".idx":
            doomed |= {path.with_suffix(suffix): fault for suffix in (".idx", ".rev", ".bitmap", ".mtimes")}
    if any(path.parent == pack for path in doomed):
        doomed |= {path: "may name a pack that is gone" for path in pack.glob("multi-pack-index*")}
    if any(path.parent.name == "commit-graphs" for path in doomed):
        doomed = {path: fault for path, fault in doomed.items() if path.parent.name != "commit-graphs"}
        doomed[info / "commit-graphs"] = "is damaged"
    done = []
    for path, fault in sorted(doomed.items()):
        if os.path.lexists(path):
            evidence.take(path)
            done.append(f"{path.name}, which {fault}, was removed")
    return done


async def _make_indexes(mirror: Mirror) -> list[str]:
    done = []
    for path, fault in (await asyncio.to_thread(pack_faults, mirror.path)).items():
        if path.suffix == ".pack" and fault.startswith("lacks"):
            # git reads the whole pack, and refuses a damaged one.
            with contextlib.suppress(GitError):
                await mirror.git.run("index-pack", "--no-rev-index", str(path), cwd=mirror.path, deadline=LONG)
                done.append(f"the index of {path.name} was rebuilt")
    return done


async def put_refs_back(mirror: Mirror, recorded: RecordedRefs) -> list[str]:
    """Sets recorded refs that are lost, if their objects are there; returns what was done. Raises GitError, OSError.

    A turn's ref that points at a different object than the database says is left alone, because it may be a turn that
    the database does not know.
    """
    files = await asyncio.to_thread(read_ref_files, mirror.path)
    lost = await lost_of(mirror, recorded, files)
    there = await present(mirror, lost.values())
    back = await set_refs_that_can(mirror, {ref: oid for ref, oid in lost.items() if oid in there})
    return [f"{ref} was put back" for ref in sorted(back)]


async def set_refs_that_can(mirror: Mirror, refs: Mapping[str, str]) -> set[str]:
    """Sets refs, and returns those that git accepted: it refuses a ref whose commit is damaged. Raises GitError."""

    async def works(names: Collection[str]) -> bool:
        try:
            await mirror.update_refs(f"update {ref} {refs[ref]}\n" for ref in names)
        except GitError as error:
            if is_of_the_machine(error):
                raise
            return False
        return True

    names, failed = sorted(refs), set[str]()
    for first in range(0, len(names), AT_ONCE):
        failed |= await those_that_fail(names[first : first + AT_ONCE], works)
    return set(names) - failed


def has_followed(files: RefFiles) -> bool:
    """Whether any branch or tag is left."""
    return any(ref.startswith(FOLLOWED) for ref in files.refs)
