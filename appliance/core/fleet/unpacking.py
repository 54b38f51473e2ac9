"""Unpacks the bundle of a turn that another node took into a mirror, no less strictly than a push. It moves no ref.

Bundle, pack and objects count as hostile: whoever can write to NATS can write any of them. They are unpacked in
quarantine and moved into the mirror after the last check.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.downloads import ObjectRefused, fetch_object
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import TurnRow
from appliance.core.fleet.quarantine import PUSHES, connect, quarantine, unheard
from appliance.core.git.command import GitError
from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.units import format_size

LARGEST_BUNDLE = PUSHES * 256 * 2**20
"""Bytes of a bundle."""
MOST_OBJECTS = PUSHES * 50_000
"""Objects in the pack of a bundle."""
_LONGEST_HEADER = 2**20
"""Bytes of the lines before the pack. A row has at most 10,000 prerequisites, which take 670 kB."""
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class NeedsCommits(GitmirrorError):
    """The mirror lacks commits that a turn builds on: `missing`."""

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = tuple(sorted(set(missing)))
        more = f" and {len(self.missing) - 1} more" if len(self.missing) > 1 else ""
        super().__init__(f"the mirror lacks the commit {self.missing[0]}{more}, which the turn builds on")


@dataclass(frozen=True)
class BundleHeader:
    """The lines before the pack, and at which byte the pack begins."""

    needs: tuple[str, ...]
    refs: tuple[tuple[str, str], ...]
    length: int


async def unpack(link: FleetLink, mirror: Mirror, row: TurnRow, scratch: Path) -> None:
    """Adds the objects of a turn to the mirror; the bundle is downloaded into the directory `scratch`.

    Returns at once if the mirror has the commit and everything below it. The caller shares the mirror's lock, and sets
    a ref before it gives the lock back. Raises NeedsCommits, FleetAway, NotInFleet, ObjectRefused, GitError, OSError;
    nothing was added then.
    """
    if await is_whole(mirror, row.commit):
        return
    if row.bundle is None or row.bundle_sha256 is None:
        raise NeedsCommits([row.commit])
    if row.bundle_size > LARGEST_BUNDLE:
        raise ObjectRefused(
            f"the bundle of {row.uid[:12]} has {format_size(row.bundle_size)}, "
            f"at most {format_size(LARGEST_BUNDLE)} are taken"
        )
    if missing := await lacking(mirror, row.needs):
        raise NeedsCommits(missing)
    path = Path(tempfile.mkdtemp(prefix="bundle-", dir=scratch)) / row.bundle
    try:
        await fetch_object(link, row.bundle, row.bundle_size, row.bundle_sha256, path)
        await unpack_file(mirror, row, path)
    finally:
        await asyncio.to_thread(shutil.rmtree, path.parent, True)


async def unpack_file(mirror: Mirror, row: TurnRow, path: Path) -> None:
    """Like `unpack`, of a bundle that is in the file `path`."""
    with await asyncio.to_thread(path.open, "rb", buffering=0) as file:
        header = read_header(await asyncio.to_thread(file.read, _LONGEST_HEADER), len(row.commit))
        if [oid for oid, _ in header.refs] != [row.commit]:
            raise ObjectRefused(f"the bundle of {row.uid[:12]} has other refs than {row.commit}")
        if missing := await lacking(mirror, header.needs):
            raise NeedsCommits(missing)
        await asyncio.to_thread(_check_pack, file, header.length)
        file.seek(header.length)
        async with quarantine(mirror) as aside:
            await aside.run(
                "index-pack", "--stdin", "--fix-thin", "--strict", f"--max-input-size={LARGEST_BUNDLE}", source=file
            )
            await aside.accept(row.commit)


def read_header(data: bytes, width: int) -> BundleHeader:
    """Parses the beginning of a bundle of version 2 or 3, whose ids have `width` digits. Raises ObjectRefused."""
    head, end, _ = data.partition(b"\n\n")
    lines = head.decode("utf-8", "surrogateescape").split("\n")
    expected = ["# v2 git bundle"] if width == 40 else ["# v3 git bundle", "@object-format=sha256"]
    if not end or lines[: len(expected)] != expected:
        raise ObjectRefused("a bundle does not begin as one")
    needs, refs = [], []
    for line in lines[len(expected) :]:
        oid, _, name = line.removeprefix("-").partition(" ")
        if not _OID.fullmatch(oid) or len(oid) != width:
            raise ObjectRefused("a bundle has a line without an object id")
        if line.startswith("-"):
            needs.append(oid)
        else:
            refs.append((oid, name))
    return BundleHeader(tuple(needs), tuple(refs), len(head) + len(end))


async def is_whole(mirror: Mirror, commit: str) -> bool:
    """Whether the mirror has a commit and everything that it reaches. Raises nothing."""
    try:
        await connect(unheard(mirror), mirror.path, commit)
    except GitError:
        return False
    return True


async def lacking(mirror: Mirror, commits: Iterable[str]) -> list[str]:
    """Those of `commits` that the mirror does not have as commits. Raises GitError."""
    asked = sorted(set(commits))
    if not asked:
        return []
    output = await mirror.git.run(
        "cat-file", "--batch-check=%(objecttype)", cwd=mirror.path, deadline=QUICK,
        stdin="".join(f"{each}\n" for each in asked).encode(),
    )  # fmt: skip
    kinds = output.stdout.decode("ascii", "replace").splitlines()
    return [each for each, kind in zip(asked, kinds, strict=True) if kind != "commit"]


def _check_pack(file: IO[bytes], begin: int) -> None:
    file.seek(begin)
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"PACK":
        raise ObjectRefused("a bundle holds no pack")
    [count] = struct.unpack(">I", head[8:])
    if count > MOST_OBJECTS:
        raise ObjectRefused(f"a bundle holds {count} objects, at most {MOST_OBJECTS} are taken")
