"""Writes git bundles of chosen objects, which no ref of the mirror needs to name, and reads them again.

The header is written here and the pack by git, so that refs may move during the write. `git bundle` and `git fetch`
can read the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO

from appliance.core.backup.directory import BackupDirectory, digest
from appliance.core.backup.manifest import Bundle, StoredFile
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import ANCHORS

SIGNATURE = b"# v2 git bundle\n"
LONG = 6 * 3600.0
"""The deadline for packing and unpacking, in seconds. It is long because a history may be large and nobody waits."""
_TRAILER = 20
"""The bytes of SHA-1 at the end of a pack."""


async def present(mirror: Mirror, oids: Iterable[str]) -> set[str]:
    """Returns those of `oids` that the mirror has. Raises GitError."""
    asked = sorted(set(oids))
    if not asked:
        return set()
    output = await mirror.git.run(
        "cat-file", "--batch-check", "--buffer", cwd=mirror.path, deadline=LONG, stdin=_lines(asked)
    )
    lines = (line.split(" ") for line in output.stdout.decode("ascii").splitlines())
    return {words[0] for words in lines if words[-1] != "missing"}


async def reachable(mirror: Mirror, oids: Iterable[str]) -> set[str]:
    """Returns those of `oids` whose commits and trees can all be read, tried one by one because some are damaged."""
    found = set()
    for oid in sorted(oids):
        with contextlib.suppress(GitError):
            await mirror.git.run("rev-list", "--objects", "--quiet", oid, "--", cwd=mirror.path, deadline=LONG)
            found.add(oid)
    return found


async def bases_of(mirror: Mirror, commits: Collection[str]) -> set[str]:
    """Returns the commits of the upstream below the recorded `commits`. A commit of the upstream is its own base.

    Raises GitError.
    """
    output = await mirror.git.run(
        "rev-list", "--boundary", "--stdin", "--not", "--branches", "--tags", f"--glob={ANCHORS}*", "--",
        cwd=mirror.path, deadline=LONG, stdin=_lines(commits),
    )  # fmt: skip
    listed = set(output.stdout.decode("ascii").split())
    return {line[1:] for line in listed if line.startswith("-")} | {each for each in commits if each not in listed}


async def write_bundle(
    mirror: Mirror, directory: BackupDirectory, path: str, kind: str, refs: Mapping[str, str], without: Iterable[str]
) -> Bundle:
    """Writes and checks a bundle of all that `refs` reach and `without` do not. Raises GitmirrorError, OSError."""
    excluded = await present(mirror, without)
    revisions = _lines([*refs.values(), *(f"^{oid}" for oid in excluded)])
    needs: list[str] = []
    if excluded:
        output = await mirror.git.run(
            "rev-list", "--boundary", "--stdin", cwd=mirror.path, deadline=LONG, stdin=revisions
        )
        needs = sorted({line[1:] for line in output.stdout.decode("ascii").split() if line.startswith("-")})
    header = SIGNATURE + "".join(f"-{oid} \n" for oid in needs).encode()
    header += "".join(f"{oid} {ref}\n" for ref, oid in sorted(refs.items())).encode() + b"\n"
    # Run in threads, because the directory may be on a network file system that hangs.
    new = await asyncio.to_thread(directory.begin, path)
    try:
        await asyncio.to_thread(new.write, header)
        await mirror.git.run(
            "pack-objects", "--revs", "--thin", "--delta-base-offset", "--stdout", "--quiet",
            cwd=mirror.path, deadline=LONG, stdin=revisions, into=new.file,
        )  # fmt: skip
        await asyncio.to_thread(new.commit)
    except BaseException:
        await asyncio.to_thread(new.discard)
        raise
    stored = await asyncio.to_thread(_check, directory, path)
    # git copies objects from pack to pack without checking them. Damaged ones must not count as backed up.
    with await asyncio.to_thread((directory.path / path).open, "rb", buffering=0) as file:
        await asyncio.to_thread(file.seek, len(header))
        await mirror.git.run("unpack-objects", "-n", "-q", "--strict", cwd=mirror.path, deadline=LONG, source=file)
    return Bundle(stored, kind, tuple(sorted(set(refs.values()))), tuple(needs))


def _check(directory: BackupDirectory, path: str) -> StoredFile:
    """Reads a bundle back after writing it: its pack must end in its own SHA-1. Raises GitmirrorError."""
    whole = directory.path / path
    with whole.open("rb") as file:
        length = header_length(file, path)
    pack, held, skip = hashlib.sha1(usedforsecurity=False), b"", length

    def take(piece: bytes) -> None:
        nonlocal held, skip
        piece, skip = piece[skip:], max(0, skip - len(piece))
        held += piece
        pack.update(held[:-_TRAILER])
        held = held[-_TRAILER:]

    size, sha256 = digest(whole, take)
    if held != pack.digest():
        raise GitmirrorError(
            f"{whole} does not have the content that was written to it", hint="check the disk of the backup directory"
        )
    return StoredFile(path, size, sha256)


def header_length(file: IO[bytes], name: str) -> int:
    """Returns at which byte of a bundle its pack begins. Raises GitmirrorError if it is not a bundle."""
    if file.readline() == SIGNATURE:
        while line := file.readline():
            if line == b"\n":
                return file.tell()
    raise GitmirrorError(f"{name} is not a git bundle, or is cut off")


async def unbundle(repository: Mirror, path: Path) -> None:
    """Adds the objects of a bundle to a repository. Raises GitError, GitmirrorError, OSError.

    `git bundle unbundle` would demand refs that reach the objects of earlier bundles, so it would take four processes
    for each bundle instead of one. Whether an object is missing is for `set_refs` to find out.
    """
    with path.open("rb") as file:
        length = header_length(file, path.name)
    with path.open("rb", buffering=0) as file:
        file.seek(length)
        await repository.git.run("index-pack", "--stdin", "--fix-thin", cwd=repository.path, deadline=LONG, source=file)


async def set_refs(repository: Mirror, refs: Mapping[str, str]) -> None:
    """Gives a repository exactly `refs`, and proves that everything they reach exists. Raises GitError."""
    present_refs = await repository.local_refs("refs/")
    lines = [f"update {ref} {oid}\n" for ref, oid in refs.items() if present_refs.get(ref) != oid]
    gone = [f"delete {ref}\n" for ref in present_refs if ref not in refs]
    await repository.update_refs(lines)
    await repository.update_refs(gone)
    try:
        await repository.git.run(
            "rev-list", "--objects", "--quiet", "--stdin", cwd=repository.path, deadline=LONG,
            stdin=_lines(refs.values()),
        )  # fmt: skip
    except GitError as error:
        raise GitmirrorError(f"the bundles lack objects that they should contain: {error.message}") from error


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()
