"""The packs of a generation: the objects that a workspace has.

With the whole history, the packs together hold everything reachable from the branches and tags that were built, and
each build adds one pack of what they lack. With the tip alone, a pack holds trees and blobs but no commit, because a
pack with a commit whose parent is missing looks damaged to git; the commit is a loose object of the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from appliance.core.workspace.consolidation import MOST_PACKS, newest_to_merge
from appliance.core.workspace.disk.generation import Extent, Generation, Pack
from appliance.core.workspace.disk.header import BLOCK
from appliance.core.workspace.disk.mirror_reader import MirrorReader
from appliance.core.workspace.refs import TAGS_FORMAT, Tag, peel_nested, read_tags

_ENTRY = re.compile(rb"^\d+ ([0-9a-f]{40}) ", re.MULTILINE)


def tags_on(reader: MirrorReader, commit: str) -> list[Tag]:
    """The tags on a commit and its ancestors, sorted by name."""
    output = reader.run("for-each-ref", f"--merged={commit}", f"--format={TAGS_FORMAT}", "refs/tags")
    tags, nested = read_tags(output)
    asked = [f"{oid}^{{}}" for oid in nested]
    answers = reader.run("cat-file", "--batch-check=%(objectname)", stdin=_lines(asked)) if nested else b""
    return peel_nested(tags, nested, answers.decode().split())


def dropped(reader: MirrorReader, packed: Iterable[tuple[str, str]]) -> str | None:
    """A ref of those packed whose object upstream no longer has on any branch or tag, if there is one."""
    refs = {oid: ref for ref, oid in packed}
    if not refs:
        return None
    output = reader.run("for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags")
    present = set(output.decode().split())
    gone = {oid: ref for oid, ref in refs.items() if oid not in present}
    if not gone:
        return None
    # A tag object that no ref names is gone. A commit that no ref names may still be on a branch.
    answers = reader.run("cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=_lines(gone))
    for line in answers.decode().splitlines():
        oid, kind = line.split()[:2]
        if kind != "commit":
            return gone[oid]
    # Older versions of git take no `--not --branches` from stdin.
    revisions = [*_lines(gone), *_lines(f"^{oid}" for oid in present)]
    if reader.run("rev-list", "--max-count=1", "--stdin", stdin=revisions):
        return next(iter(gone.values()))
    return None


def is_reached(reader: MirrorReader, old: str, new: str) -> bool:
    """Whether the commit `new` has the commit `old` among its ancestors, or is it."""
    return old == new or not reader.run("rev-list", "--max-count=1", old, f"^{new}")


def _lines(words: Iterable[str]) -> list[bytes]:
    return [f"{word}\n".encode() for word in words]


def pack_history(reader: MirrorReader, packed: Iterable[tuple[str, str]], tips: Iterable[str]) -> Path | None:
    """Packs what is reachable from `tips` and not from what is `packed` already. None if that is nothing."""
    # Tags need not be excluded, because they are on branches, and there may be a hundred thousand of them.
    known = {oid for ref, oid in packed if not ref.startswith("refs/tags/")}
    revisions = [*_lines(sorted(set(tips) - known)), *_lines(f"^{oid}" for oid in sorted(known))]
    return _pack(reader, revisions, "--revs")


def pack_objects(reader: MirrorReader, oids: Iterable[str]) -> Path | None:
    """Packs exactly these objects. None if there are none."""
    return _pack(reader, _lines(oids))


def _pack(reader: MirrorReader, stdin: Sequence[bytes], *options: str) -> Path | None:
    """Has git write a pack below the scratch directory; returns its path without the suffix."""
    output = reader.run(
        "-c", "pack.writeReverseIndex=false", "-c", "pack.packSizeLimit=0",
        "pack-objects", "--quiet", "--non-empty", "--delta-base-offset", *options, str(reader.packs / "pack"),
        stdin=stdin,
    )  # fmt: skip
    name = output.decode().strip()
    return reader.packs / f"pack-{name}" if name else None


def store_pack(generation: Generation, path: Path) -> tuple[str, Extent, Extent]:
    """Appends a pack and its index to the blob file, and removes the files."""
    files = [path.with_name(path.name + suffix) for suffix in (".pack", ".idx")]
    pack, index = (generation.append_file(file) for file in files)
    for file in files:
        file.unlink()
    return path.name, pack, index


def packs_to_merge(packs: Sequence[Pack], most: int = MOST_PACKS) -> Sequence[Pack]:
    """The newest of these packs that are to become one, so that there are never more than `most`; none if few."""
    return packs[len(packs) - newest_to_merge([pack.pack.size for pack in packs], most) :]


def merge_packs(reader: MirrorReader, generation: Generation, packs: Sequence[Pack]) -> Path | None:
    """Packs the objects of several packs of the generation into one."""
    oids: dict[str, None] = {}
    with generation.data.open("rb") as data:
        for pack in packs:
            data.seek(pack.idx.block * BLOCK)
            listed = reader.run("show-index", stdin=[data.read(pack.idx.size)])
            oids |= dict.fromkeys(oid.decode() for oid in _ENTRY.findall(listed))
    return pack_objects(reader, oids)
