"""Reads refs, commits and files of a mirror for those who have no git. Bounded: what is large is paged or streamed.

What a name from outside may be is in `revisions`. Names of refs and paths that are not UTF-8 are shown as `storable`
writes them, with `\\xNN` for such a byte.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import NotFound, TooLarge, UsageError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.git.objects import StoredText, stored_texts
from appliance.core.git.ref_sets import archived, beside, shown
from appliance.core.git.revisions import FULL_ID, READABLE, commit_of, commits_of, raw_name, raw_text
from appliance.core.text import escape, storable

MOST_ITEMS = 1000
"""Items of one page, whatever limit is asked for."""
MOST_TEXT = 4 * 2**20
"""Bytes of commits in one page: after the commit that exceeds them, the page ends."""
MOST_ENTRIES = 10_000
"""Entries of a directory that is listed."""
WALK = 30.0
"""Seconds for a walk through history, and for reading the commits of a page."""
STREAMED = 600.0
"""Seconds that git may take for a file, the time that its reader takes not counted."""

_CURSOR = re.compile(rf"(?P<commit>{FULL_ID.pattern}):(?P<skip>[0-9]{{1,9}})")
_KINDS = {"100755": "executable", "120000": "symlink", "040000": "directory", "160000": "submodule"}
_LONGEST_PATH = 64 * 2**10
"""Bytes of a path: what fits into an argument of a process."""
_STREAMING = "core.bigFileThreshold=1m"
"""From this size on, git does not read a blob as a whole before it prints it, unless it is stored as a delta."""


@dataclass(frozen=True)
class Page:
    """A part of a list. `next` is the `after` of the next part; None when nothing follows."""

    items: list[dict[str, Any]]
    next: str | None


@dataclass(frozen=True)
class FileAtRef:
    """A file in the tree of `commit`. `mode` is octal as git writes it; `kind` is file, executable or symlink.

    `chunks` yields the `size` bytes of the content (of a symlink: its target) once, in pieces of at most 64 KiB, and
    raises GitError if they cannot all be read. git starts at the first piece, and ends when `chunks` is closed: close
    it (`aclose`) when you leave before its end.
    """

    oid: str
    size: int
    mode: str
    kind: str
    commit: str
    chunks: AsyncGenerator[bytes, None]


async def list_refs(mirror: Mirror, prefix: str = "", after: str | None = None, limit: int = 100) -> Page:
    """A page of branches, tags and sessions by name: `{ref, oid, peeled, at, subject}`. Raises GitError.

    `prefix` is how their full names begin, letter by letter; the page starts behind the name `after`, which need not
    exist. `peeled` is the commit of an annotated tag, else None. `at` (RFC 3339, or None) and `subject` are those of
    the tag or commit itself. Names are sorted by their bytes.
    """
    chosen, more = await _names(mirror, raw_name(prefix), raw_name(after or ""), _bounded(limit))
    kinds = await _kinds(mirror, [oid for oid, _ in chosen])
    texts: dict[str, StoredText] = {}
    readable = list(dict.fromkeys(oid for oid, _ in chosen if kinds[oid][0] in ("commit", "tag")))
    async with aclosing(stored_texts(mirror, readable, deadline=WALK)) as found:
        async for text in found:
            texts[text.oid] = text
    items = [_ref_document(oid, ref, kinds[oid], texts.get(oid)) for oid, ref in chosen]
    return Page(items, items[-1]["ref"] if more else None)


def _ref_document(oid: str, ref: str, kind: tuple[str, str | None], text: StoredText | None) -> dict[str, Any]:
    return {
        "ref": storable(ref),
        "oid": oid,
        "peeled": kind[1] if kind[0] == "tag" else None,
        "at": text.at if text else None,
        "subject": text.subject if text else "",
    }


async def _names(mirror: Mirror, prefix: bytes, after: bytes, limit: int) -> tuple[list[tuple[str, str]], bool]:
    """At most `limit` refs as (oid, name), and whether there are more. Reads no object, so it is quick with many."""
    begins = [max(prefix, each.encode(), key=len) for each in READABLE if _overlap(prefix, each.encode())]
    if not begins or any(byte in prefix for byte in b"*?[\\"):
        return [], False
    below = [begin[: begin.rindex(b"/") + 1] for begin in begins]
    below += [name for name in map(archived, below) if name is not None]
    output = await mirror.git.run(
        "for-each-ref", "--format=%(objectname) %(refname)", *map(os.fsdecode, below), cwd=mirror.path, deadline=QUICK
    )

    def choose() -> tuple[list[tuple[str, str]], bool]:
        oids: dict[bytes, bytes] = {}
        for line in output.stdout.split(b"\n"):
            oid, _, name = line.partition(b" ")
            ref = shown(name)
            if ref > after and ref.startswith(prefix):
                # git sorts, so the ref of a session that is in the archive still comes before the one there.
                oids.setdefault(ref, oid)
        chosen = sorted(oids)
        return [(oids[ref].decode(), os.fsdecode(ref)) for ref in chosen[:limit]], len(chosen) > limit

    return await beside(len(output.stdout) // 64, choose)


def _bounded(limit: int) -> int:
    return max(1, min(limit, MOST_ITEMS))


def _overlap(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


async def _kinds(mirror: Mirror, oids: list[str]) -> dict[str, tuple[str, str | None]]:
    """The type of each object, and the commit that it is or, as a tag, leads to."""
    if not oids:
        return {}
    asked = "".join(f"{oid}\n{oid}^{{commit}}\n" for oid in oids).encode()
    output = await mirror.git.run(
        "cat-file",
        "--batch-check=%(objecttype) %(objectname)",
        "--buffer",
        cwd=mirror.path,
        deadline=QUICK,
        stdin=asked,
    )
    lines = [line.split() for line in output.stdout.decode("ascii").splitlines()]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return {
        oid: (own[0], peeled[1] if peeled[0] == "commit" else None)
        for oid, (own, peeled) in zip(oids, pairs, strict=True)
    }


async def list_commits(mirror: Mirror, ref: str | None = None, after: str | None = None, limit: int = 100) -> Page:
    """A page of the history of `ref`, newest first: `{oid, parents, author, committer, subject, message}`.

    `author` and `committer` are `{name, email, at}`. `ref` is as in `commit_of`. A cursor (`next`) holds the commit
    that the list began with, so pages fit together also when the ref has moved since; `ref` is not read then. A page
    may be shorter than `limit`, when messages are long. Raises UsageError, NotFound, and GitError, also when a walk
    takes longer than WALK seconds.
    """
    if after is None:
        commit, skip = await commit_of(mirror, ref), 0
    elif match := _CURSOR.fullmatch(after):
        commit, skip = (await commits_of(mirror, [match["commit"]]))[0], int(match["skip"])
    else:
        raise UsageError(f"{escape(after)} is no cursor", hint="give `next` of the page before, unchanged")
    limit = _bounded(limit)
    # The order depends on nothing but the history of the commit, so a count is a place in it.
    output = await mirror.git.run(
        "rev-list", f"--skip={skip}", f"--max-count={limit + 1}", commit, "--", cwd=mirror.path, deadline=WALK
    )
    oids = output.stdout.decode("ascii").split()
    items: list[dict[str, Any]] = []
    size = 0
    async with aclosing(stored_texts(mirror, oids[:limit], deadline=WALK)) as found:
        async for text in found:
            items.append(text.commit_document())
            size += len(text.raw)
            if size > MOST_TEXT:
                break
    return Page(items, f"{commit}:{skip + len(items)}" if len(items) < len(oids) else None)


async def open_file(mirror: Mirror, ref: str | None, path: str) -> FileAtRef | dict[str, Any]:
    """What is at `path` in the tree of `ref` (as in `commit_of`): a file, or a document of what is none.

    `path` is relative to the top, which is the empty path; bytes that are not UTF-8 are surrogates (`os.fsdecode`).
    A directory: `{kind: "directory", mode, oid, commit, entries: [{name, mode, kind, oid, size}]}`; the size of what is
    no file, or is missing in a damaged mirror, is None. A submodule: `{kind: "submodule", mode, oid, commit}`, where
    `oid` is its own commit. `commit` is always the one that was read. Raises NotFound, UsageError, GitError, and
    TooLarge past MOST_ENTRIES entries.
    """
    commit = await commit_of(mirror, ref)
    wanted = path.rstrip("/")
    entry = await _entry(mirror, commit, wanted)
    if entry["kind"] == "submodule":
        return {"kind": "submodule", "mode": entry["mode"], "oid": entry["oid"], "commit": commit}
    if entry["kind"] != "directory":
        if entry["size"] is None:
            raise GitError(f"the mirror lacks the content of {escape(path)}: missing blob {entry['oid']}")
        chunks = _content(mirror, entry["oid"], entry["size"])
        return FileAtRef(entry["oid"], entry["size"], entry["mode"], entry["kind"], commit, chunks)
    entries: list[dict[str, Any]] = []
    async with aclosing(_entries(mirror, entry["oid"])) as found:
        async for each in found:
            if len(entries) == MOST_ENTRIES:
                raise TooLarge(
                    f"the directory {escape(wanted) or '/'} has more than {MOST_ENTRIES:,} entries",
                    hint="ask for a directory or a file below it, or read it with git",
                )
            entries.append(each)
    return {"kind": "directory", "mode": entry["mode"], "oid": entry["oid"], "commit": commit, "entries": entries}


async def _entry(mirror: Mirror, commit: str, path: str) -> dict[str, Any]:
    """The entry of a tree at `path`, as in a listing."""
    if not path:
        output = await mirror.git.run("rev-parse", f"{commit}^{{tree}}", cwd=mirror.path, deadline=QUICK)
        return {"name": "", "mode": "040000", "kind": "directory", "oid": output.stdout.decode().strip(), "size": None}
    # git would normalise such a path, and no tree holds one.
    raw = raw_text(path)
    strange = b"\0" in raw or len(raw) > _LONGEST_PATH or {b"", b".", b".."} & set(raw.split(b"/"))
    if not strange:
        async with aclosing(_entries(mirror, commit, os.fsdecode(raw))) as found:
            async for entry in found:
                # For a path below a submodule, git lists the submodule.
                if entry["name"] == storable(raw.decode("utf-8", "surrogateescape")):
                    return entry
    raise NotFound(
        f"{commit} has no file {escape(path[:1000])}", hint="list the directory above it, and mind upper case"
    )


async def _entries(mirror: Mirror, tree: str, *paths: str) -> AsyncGenerator[dict[str, Any], None]:
    stream = mirror.git.stream(
        "--literal-pathspecs", "ls-tree", "-l", "-z", "--full-tree", tree, "--", *paths, cwd=mirror.path, deadline=WALK
    )
    async with aclosing(stream):
        rest = b""
        async for piece in stream:
            *records, rest = (rest + piece).split(b"\0")
            for record in records:
                facts, _, name = record.partition(b"\t")
                mode, _, oid, size = facts.decode("ascii").split()
                yield {
                    "name": storable(name.decode("utf-8", "surrogateescape")),
                    "mode": mode,
                    "kind": _KINDS.get(mode, "file"),
                    "oid": oid,
                    "size": int(size) if size.isdigit() else None,
                }


async def _content(mirror: Mirror, oid: str, size: int) -> AsyncGenerator[bytes, None]:
    stream = mirror.git.stream("-c", _STREAMING, "cat-file", "blob", oid, cwd=mirror.path, deadline=STREAMED)
    async with aclosing(stream):
        async for piece in stream:
            size -= len(piece)
            yield piece
    if size:
        raise GitError(f"the content of {oid} has another size than its header says")
