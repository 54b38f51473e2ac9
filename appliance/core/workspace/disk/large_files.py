"""Finds the files of a tree that git LFS keeps: those whose attributes say `filter=lfs` and whose blob is a pointer."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.core.lfs.pointers import LARGEST, Pointer, parse_pointer
from appliance.core.workspace.disk.checkout import ATTRIBUTES, LONGEST_ATTRIBUTES, empty_tree, index_of
from appliance.core.workspace.disk.mirror_reader import GITLINK, LINK, TREE, MirrorReader, TreeEntry


def find_large_files(reader: MirrorReader, commit: str) -> list[tuple[bytes, Pointer]]:
    """The LFS files of a commit with the objects they stand for, by path. Raises GitmirrorError, OSError.

    One of an empty object is none, because git takes an empty file for changed unless its blob is empty, too.
    """
    entries = reader.listing(commit)
    texts = reader.whole(_attributes(entries), LONGEST_ATTRIBUTES).values()
    if not any(text is None or b"filter" in text for text in texts):
        return []
    reader.run("read-tree", commit, environment=index_of(reader))
    # git itself applies the attributes: nested files, macros and exceptions.
    words = ("ls-files", "-z", "--", ":(top,attr:filter=lfs)")
    listed = reader.run(*words, environment=index_of(reader), before=empty_tree(reader))
    named = set(listed.split(b"\0"))
    files = [(path, oid) for mode, oid, path in entries if path in named and mode not in (TREE, LINK, GITLINK)]
    texts_of = reader.whole((oid for _, oid in files), LARGEST - 1)
    found = []
    for path, oid in files:
        text = texts_of[oid]
        pointer = parse_pointer(text) if text is not None else None
        if pointer is not None and pointer.size:
            found.append((path, pointer))
    return found


def _attributes(entries: Iterable[TreeEntry]) -> list[bytes]:
    return [
        oid
        for mode, oid, path in entries
        if path.endswith(ATTRIBUTES) and mode not in (TREE, GITLINK) and path.rpartition(b"/")[2] == ATTRIBUTES
    ]
