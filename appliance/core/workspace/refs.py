"""The refs of a workspace: its branch, and the tags on that branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TAGS_FORMAT = "%(refname)%00%(objectname)%00%(*objectname)%00%(*objecttype)"
"""The `--format` of `for-each-ref` that `read_tags` reads."""


class Tag(NamedTuple):
    """A tag of the workspace; `peeled` is the commit that an annotated one names, else empty."""

    ref: str
    oid: str
    peeled: str


def read_tags(output: bytes) -> tuple[list[Tag], list[str]]:
    """The tags that `for-each-ref` printed, and the ids of those that name another tag.

    `peeled` of the latter is that other tag: before 2.45, git peels one level here. `peel_nested` corrects it.
    """
    fields = [line.split("\0") for line in output.decode("utf-8", "surrogateescape").split("\n") if line]
    tags = [Tag(ref, oid, peeled) for ref, oid, peeled, _ in fields]
    return tags, [oid for _, oid, _, kind in fields if kind == "tag"]


def peel_nested(tags: Sequence[Tag], nested: Sequence[str], peeled: Sequence[str]) -> list[Tag]:
    """The tags by name, where `peeled` has the commit of each of the `nested` ones."""
    commits = dict(zip(nested, peeled, strict=True))
    return sorted(Tag(ref, oid, commits.get(oid, one_level)) for ref, oid, one_level in tags)


def packed_refs(branch: str, commit: str, tags: Sequence[Tag]) -> bytes:
    """The `packed-refs` of a workspace: its branch, the same branch of `origin`, and tags."""
    return _packed([Tag(f"refs/heads/{branch}", commit, ""), Tag(f"refs/remotes/origin/{branch}", commit, ""), *tags])


def packed_tags(tags: Sequence[Tag]) -> bytes:
    """The `packed-refs` of a repository that is at no branch, with these tags."""
    return _packed(tags)


def _packed(lines: Sequence[Tag]) -> bytes:
    text = "# pack-refs with: peeled fully-peeled sorted \n"
    for ref, oid, peeled in sorted(lines, key=lambda line: line[0].encode("utf-8", "surrogateescape")):
        text += f"{oid} {ref}\n" + (f"^{peeled}\n" if peeled else "")
    return text.encode("utf-8", "surrogateescape")
