"""Finds the commit that a name from outside means. Names are refs and commit ids; git's expressions are refused."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from appliance.core.errors import NotFound, UsageError
from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.git.ref_sets import AGENTS, archived
from appliance.core.text import escape

READABLE = ("refs/heads/", "refs/tags/", AGENTS)
"""Prefixes of the refs that can be read by name: the upstream's, and the sessions. Not ours below `refs/gitmirror/`."""

FULL_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHORT_ID = re.compile(r"[0-9a-f]{7,63}")
_EMPTY_TREES = {
    40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    64: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""By the length of an id. git knows the empty tree of either hash algorithm without storing it."""
_LONGEST = 4096
"""Bytes of a name; a ref is a path on disk."""
# The rules of git-check-ref-format; they also rule out every expression of gitrevisions, and line ends.
_NO_NAME = re.compile(
    rb"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|^[-./]|[./]$|^@?$",
)
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def raw_text(text: str) -> bytes:
    """The bytes of a name or path from outside, where surrogates of `os.fsdecode` are bytes that are not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half a character, as JSON can hold it; nothing has such a name.
        return text.encode("utf-8", "surrogatepass")


def raw_name(name: str) -> bytes:
    """The bytes of a ref name, also of one that `storable` wrote: no ref has a backslash, so `\\xNN` is a byte."""
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), raw_text(name))


def is_ref_name(name: str) -> bool:
    """Whether git allows a ref of this name, or of this name below `refs/heads/`."""
    raw = raw_name(name)
    return len(raw) <= _LONGEST and not _NO_NAME.search(raw)


def empty_tree_like(oid: str) -> str:
    """The id of the empty tree in the hash algorithm of `oid`."""
    return _EMPTY_TREES[len(oid)]


async def commit_of(mirror: Mirror, name: str | None) -> str:
    """The full id of the commit that `name` means; None means HEAD.

    `name` is a full ref name, a short one of a branch or tag (a branch goes first), or a commit id of at least seven
    digits. Raises UsageError for anything else, such as `a..b` or `main@{1}`; NotFound; GitError.
    """
    name = name or "HEAD"
    if not is_ref_name(name):
        raise UsageError(
            f"{escape(name)} is no name of a branch, tag or session and no commit id",
            hint="give a name as the list of refs has it, or a commit's id; no expression such as a..b",
        )
    oid = await _object_of(mirror, name)
    if oid is None:
        raise _unknown(name)
    return (await commits_of(mirror, [oid], shown=name))[0]


async def commits_of(mirror: Mirror, oids: Sequence[str], *, shown: str | None = None) -> list[str]:
    """The ids of the commits that the object ids mean, tags peeled, in one git process. Raises NotFound, GitError.

    `shown` is what an error calls the object.
    """
    asked = "".join(f"{oid}^{{commit}}\n" for oid in oids).encode()
    output = await mirror.git.run(
        "cat-file", "--batch-check=%(objectname) %(objecttype)", cwd=mirror.path, deadline=QUICK, stdin=asked
    )
    lines = output.stdout.decode("ascii").splitlines()
    for oid, line in zip(oids, lines, strict=True):
        if not line.endswith(" commit"):
            raise _unknown(shown or oid)
    return [line.split()[0] for line in lines]


async def _object_of(mirror: Mirror, name: str) -> str | None:
    if FULL_ID.fullmatch(name):
        return name
    if name == "HEAD":
        target = mirror.head()
        if target is None:
            # Nothing but an id can be there if it is no ref.
            return (mirror.path / "HEAD").read_text(encoding="ascii").strip()
        name = target
    raw = raw_name(name)
    candidates = [raw] if raw.startswith(b"refs/") else [b"refs/heads/" + raw, b"refs/tags/" + raw, b"refs/" + raw]
    readable = [each for each in candidates if each.startswith(tuple(prefix.encode() for prefix in READABLE))]
    # After its own name, because a push may have put a session back that is in the archive still.
    readable += [name for name in map(archived, readable) if name is not None]
    if readable:
        # A list of refs, because `rev-parse` would also take the branch `refs/heads/x` for the ref of this name.
        output = await mirror.git.run(
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            *map(os.fsdecode, readable),
            cwd=mirror.path,
            deadline=QUICK,
        )
        found = {ref: oid for oid, _, ref in (line.partition(b" ") for line in output.stdout.splitlines())}
        oid = next((found[each] for each in readable if each in found), None)
        if oid is not None:
            return oid.decode("ascii")
    return name if _SHORT_ID.fullmatch(name) else None


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"the mirror has no commit {escape(name)}",
        hint="list its refs; a commit that no ref, session or anchor holds any more is removed after some days",
    )
