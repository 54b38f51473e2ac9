"""What a checkout of a commit has at each path: which names git refuses, and which contents it converts.

Most files are the bytes of their blob. `.gitattributes` may ask for CRLF line endings, for another encoding, or for
expanded `$Id$`. git itself then writes these files, and its bytes are kept by object id and attributes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape
from appliance.core.workspace.disk.mirror_reader import GITLINK, LINK, TREE, MirrorReader, TreeEntry

ATTRIBUTES = b".gitattributes"
_CONVERTS = re.compile(rb"^[^#\n]*(?:eol=crlf|(?<![\w-])ident\b|working-tree-encoding)", re.MULTILINE)
"""What stands in the attributes of every repository in which a checkout on Linux converts a file. Filters do not run,
because no config names one, and `text` alone means LF."""
LONGEST_ATTRIBUTES = 2**22
"""Bytes of a `.gitattributes` that are searched; git itself is asked about a larger one."""
_ASKED = ("eol", "ident", "text", "crlf", "working-tree-encoding")
_DOT_GIT = re.compile(rb"(?:\.git|git~1)[ .]*(?::.*)?", re.IGNORECASE | re.DOTALL)
"""What Windows, too, may take for `.git` (`is_ntfs_dotgit` of git). A backslash separates names there."""
_SUSPECT = re.compile(rb"//|/\.|^\.|^/|/$|[gG][iI][tT7]")
"""A path without this has no name that git refuses. It is plain, because it looks at every path of every commit."""
_DOT_GITMODULES = (b".gitmod", b"gitmod~", b"gi7eba~")
LONGEST_NAME = 255
LONGEST_TARGET = 4095
"""Bytes of a path, and so of a link's target."""


def refuse_hostile_names(entries: Iterable[TreeEntry]) -> None:
    """Raises GitmirrorError for a tree that git refuses to check out, or that Linux cannot hold."""
    before, suspect = b"", _SUSPECT.search
    for mode, _, path in entries:
        if mode != TREE:
            # git writes trees in the order of the index; another order may hide a second entry of the same name.
            if path <= before:
                raise _refused(path, "its tree is not sorted")
            before = path
        if len(path) > LONGEST_NAME or suspect(path):
            _look_closely(mode, path)


def _look_closely(mode: int, path: bytes) -> None:
    if len(path) > LONGEST_TARGET:
        raise _refused(path, f"its path is longer than {LONGEST_TARGET} bytes")
    for name in path.split(b"/"):
        if len(name) > LONGEST_NAME:
            raise _refused(path, f"a name in it is longer than {LONGEST_NAME} bytes")
        if name in (b"", b".", b"..") or any(_DOT_GIT.fullmatch(part) for part in name.split(b"\\")):
            raise _refused(path, "git does not check out such a name")
    if mode == LINK and path.rpartition(b"/")[2].lower().startswith(_DOT_GITMODULES):
        raise _refused(path, "it is a symbolic link")


def _refused(path: bytes, why: str) -> GitmirrorError:
    return GitmirrorError(f"cannot build a disk of this commit: {escape(path.decode('utf-8', 'replace'))}: {why}")


def conversions(reader: MirrorReader, commit: str, entries: Sequence[TreeEntry]) -> dict[bytes, bytes]:
    """The keys in the catalogue of the files that a checkout may write differently from their blobs, by path.

    A key is the object id and the attributes, so it is longer than that of other contents, which is the id alone.
    """
    attributes = [
        oid
        for mode, oid, path in entries
        # git reads a symbolic link here, too: the text of its target.
        if path.endswith(ATTRIBUTES) and mode not in (TREE, GITLINK) and path.rpartition(b"/")[2] == ATTRIBUTES
    ]
    texts = reader.whole(attributes, LONGEST_ATTRIBUTES).values()
    if not any(text is None or _CONVERTS.search(text) for text in texts):
        return {}
    files = [entry for entry in entries if entry[0] not in (TREE, LINK, GITLINK)]
    reader.run("read-tree", commit, environment=index_of(reader))
    paths = (b"%s\0" % path for _, _, path in files)
    words = ("check-attr", "--cached", "--stdin", "-z", *_ASKED)
    output = reader.run(*words, stdin=paths, environment=index_of(reader), before=empty_tree(reader))
    found: dict[bytes, bytes] = {}
    fields = output.split(b"\0")
    for (_, oid, path), at in zip(files, count(0, 3 * len(_ASKED)), strict=False):
        answers = fields[at : at + 3 * len(_ASKED)]
        values = dict(zip(_ASKED, answers[2::3], strict=True))
        if (
            values["eol"] == b"crlf"
            or values["ident"] == b"set"
            # "set", without a value, makes git refuse the checkout.
            or values["working-tree-encoding"] not in (b"unspecified", b"unset")
        ):
            found[path] = oid + b"\0".join(answers[2::3])
    return found


def check_out(reader: MirrorReader, paths: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, Path]]:
    """Has git write these paths (with a key each) from the index that `conversions` left, and yields key and file.

    The files are gone after the last one.
    """
    if not paths:
        return
    top = reader.scratch / "checkout"
    listed = (b"%s\0" % path for path in paths)
    reader.run(
        "checkout-index",
        "--force",
        "-z",
        "--stdin",
        stdin=listed,
        environment=index_of(reader),
        before=empty_tree(reader),
    )
    for path, key in paths.items():
        yield key, Path(str(top) + "/" + path.decode("utf-8", "surrogateescape"))
    shutil.rmtree(top)


def index_of(reader: MirrorReader) -> dict[str, str]:
    """The environment of a git that uses the index of this reader."""
    return {"GIT_INDEX_FILE": str(reader.scratch / "index")}


def empty_tree(reader: MirrorReader) -> tuple[str, ...]:
    """Options of a git that has an empty working tree and runs nothing that a config names."""
    top = reader.scratch / "checkout"
    top.mkdir(exist_ok=True)
    harmless = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null", "core.bare=false")
    return (f"--work-tree={top}", *(word for setting in harmless for word in ("-c", setting)))
