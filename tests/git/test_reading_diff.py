"""A diff as text is git's own; as a document it says the same, whatever is in the files and their names."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import NotFound, TooLarge, UsageError
from appliance.core.git.command import GitError
from appliance.core.git.diff_document import BYTES_OF_A_LINE, diff_document, diff_text
from appliance.core.git.mirror import Mirror
from appliance.core.text import storable
from tests.git.lab import Lab
from tests.git.reads import counting, left_early, plain, whole
from tests.support.generate import create_repository
from tests.support.gitutil import git, git_bytes

Tree = Mapping[bytes, tuple[bytes, bytes]]
"""Mode and content of each path; the content of a submodule is its commit."""

FLAGS = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
STATUS = {b"A": "added", b"D": "deleted", b"M": "modified", b"R": "renamed", b"T": "type-changed"}
LINES = b"".join(b"line %d\n" % number for number in range(40))
SPOOF = b"-- a/x\n++ b/x\ndiff --git a/x b/x\n@@ -1 +1 @@\nBinary files a and b differ\n\\ No newline at end of file\n"

BEFORE: Tree = {
    b"changed": (b"100644", LINES),
    b"gone": (b"100644", b"was here\n"),
    b"mode": (b"100644", b"#!/bin/sh\n"),
    b"mode and text": (b"100644", LINES),
    b"moved": (b"100644", b"moved\n" + LINES),
    b"moved and changed": (b"100644", b"moved too\n" + LINES),
    b"to a link": (b"100644", b"text\nof two lines\n"),
    b"to a file": (b"120000", b"target"),
    b"to a submodule": (b"100644", b"text\n"),
    b"sub": (b"160000", b"a" * 40),
    b"link": (b"120000", b"old"),
    b"binary": (b"100644", b"a\0b" * 100),
    b"binary gone": (b"100644", b"\0"),
    b"binary to text": (b"100644", b"\0\n"),
    b"no end": (b"100644", b"a\nb\nc"),
    b"gets an end": (b"100644", b"a\nb"),
    b"loses its end": (b"100644", b"a\nb\n"),
    b"emptied": (b"100644", b"a\n"),
    b"filled": (b"100644", b""),
    b"empty gone": (b"100644", b""),
    b"crlf": (b"100644", b"a\r\nb\r\nc\rd\n"),
    b"latin": (b"100644", b"caf\xe9\nx\n"),
    b"utf-8": (b"100644", "näive ☃\x85\u2028x\nx\n".encode()),
    b"spoof": (b"100644", SPOOF + LINES),
    b"unspoof": (b"100644", LINES + SPOOF),
    b"function.py": (b"100644", b"def f():\n" + LINES.replace(b"line", b"    line") + b"end\n"),
    b"caf\xe9": (b"100644", b"x\n"),
    b"a\nb": (b"100644", b"x\n"),
    b'"q"\t\\': (b"100644", b"x\n"),
    b"untouched": (b"100644", LINES),
    b"to\xff": (b"100644", b"to\xff\n" + LINES),
    b"--- a": (b"100644", b"x\n"),
}
AFTER: Tree = {
    b"changed": (b"100644", LINES.replace(b"line 3\n", b"").replace(b"line 30\n", b"line thirty\nand\n")),
    b"new": (b"100644", b"new\n"),
    b"new and empty": (b"100644", b""),
    b"mode": (b"100755", b"#!/bin/sh\n"),
    b"mode and text": (b"100755", LINES + b"more\n"),
    b"dir/moved": (b"100644", b"moved\n" + LINES),
    b"dir/moved and changed": (b"100755", b"moved too\n" + LINES + b"more\n"),
    b"to a link": (b"120000", b"target"),
    b"to a file": (b"100644", b"target\n"),
    b"to a submodule": (b"160000", b"b" * 40),
    b"sub": (b"160000", b"b" * 40),
    b"link": (b"120000", b"new"),
    b"binary": (b"100644", b"a\0c" * 100),
    b"binary new": (b"100644", b"\0" * 5000),
    b"binary to text": (b"100644", b"text\n"),
    b"no end": (b"100644", b"a\nB\nc"),
    b"gets an end": (b"100644", b"a\nb\n"),
    b"loses its end": (b"100644", b"a\nb"),
    b"emptied": (b"100644", b""),
    b"filled": (b"100644", b"a"),
    b"crlf": (b"100644", b"a\r\nB\r\nc\rd\r\n"),
    b"latin": (b"100644", b"caf\xe9\ny\n"),
    b"utf-8": (b"100644", "näive ☃\x85\u2028y\ny\n".encode()),
    b"spoof": (b"100644", LINES),
    b"unspoof": (b"100644", SPOOF.replace(b"\n", b"\n\n") + LINES + SPOOF),
    b"function.py": (b"100644", b"def f():\n" + LINES.replace(b"line", b"    line") + b"END\n"),
    b"caf\xe9": (b"100644", b"y\n"),
    b"a\nb": (b"100644", b"y\n"),
    b'"q"\t\\': (b"100644", b"y\n"),
    b"untouched": (b"100644", LINES),
    b"moved to\xfe": (b"100644", b"to\xff\n" + LINES),
    b"--- a": (b"100644", b"y\n"),
}


def commit_tree(repository: Path, tree: Tree) -> str:
    """Commit exactly these files, without a parent."""
    parts = [b"commit refs/heads/scratch\nmark :1\ncommitter A <a@b> 1 +0000\ndata 1\nx\n"]
    for path, (mode, content) in tree.items():
        quoted = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
        if mode == b"160000":
            parts.append(b'M 160000 %s "%s"\n' % (content, quoted))
        else:
            parts.append(b'M %s inline "%s"\ndata %d\n%s\n' % (mode, quoted, len(content), content))
    parts.append(b"get-mark :1\nreset refs/heads/scratch\nfrom 0000000000000000000000000000000000000000\n\n")
    code, stdout, stderr = git_bytes("fast-import", "--quiet", "--force", cwd=repository, input=b"".join(parts))
    assert code == 0, stderr
    return stdout.decode().strip()


@pytest.fixture
def mirror(lab: Lab, tmp_path: Path) -> Mirror:
    """An empty repository."""
    return Mirror(create_repository(tmp_path / "odd.git"), lab.git)


async def text(mirror: Mirror, old: str | None, new: str) -> bytes:
    """The whole patch."""
    return await whole(await diff_text(mirror, old, new))


def apply(content: bytes, hunks: list[dict[str, Any]]) -> bytes:
    """Apply the hunks of a document to what they were made from, strictly."""
    old = content.decode("utf-8", "replace").split("\n")
    ends = old.pop()
    lines = [f"{line}\n" for line in old] + ([ends] if ends else [])
    result: list[str] = []
    at = 0
    for hunk in hunks:
        start = hunk["old_start"] - (hunk["old_lines"] > 0)
        result += lines[at:start]
        assert len(result) == hunk["new_start"] - (hunk["new_lines"] > 0)
        at = start
        body = [f"{line}\n" for line in hunk["lines"]]
        for line, following in pairwise([*body, ""]):
            if line.startswith("\\"):
                assert line == "\\ No newline at end of file\n"
                continue
            said = line[1:-1] if following.startswith("\\") else line[1:]
            if line[0] in " -":
                assert lines[at] == said
                at += 1
            if line[0] in " +":
                result.append(said)
        assert sum(line[0] in " -" for line in body) == hunk["old_lines"]
        assert sum(line[0] in " +" for line in body) == hunk["new_lines"]
    return "".join([*result, *lines[at:]]).encode()


def checked(mirror: Mirror, document: dict[str, Any], before: Tree, after: Tree, old: str, new: str) -> None:
    """Compare a document with what git lists and counts, and with the contents of both trees."""
    fields = plain(mirror.path, "diff", *FLAGS, "--name-status", "-z", old, new).split(b"\0")[:-1]
    numbers = plain(mirror.path, "diff", *FLAGS, "--numstat", "-z", old, new).split(b"\0")[:-1]
    for file in document["files"]:
        letter = fields.pop(0)[:1]
        was = fields.pop(0)
        now = fields.pop(0) if letter == b"R" else was
        count = numbers.pop(0).split(b"\t")
        if letter == b"R":
            del numbers[:2]
        added, removed = (0 if number == b"-" else int(number) for number in count[:2])
        assert file["status"] == STATUS[letter]
        assert file["path"] == storable(os.fsdecode(now))
        assert file["before"] == (storable(os.fsdecode(was)) if letter == b"R" else None)
        assert file["binary"] == (count[0] == b"-")
        if letter != b"T":
            assert (file["insertions"], file["deletions"]) == (added, removed)
        old_mode, old_content = before.get(was, (None, b""))
        new_mode, new_content = after.get(now, (None, b""))
        assert (file["old_mode"], file["new_mode"]) == (old_mode and old_mode.decode(), new_mode and new_mode.decode())
        if file["binary"]:
            assert not file["hunks"]
            continue
        if old_mode == b"160000":
            old_content = b"Subproject commit %s\n" % old_content
        if new_mode == b"160000":
            new_content = b"Subproject commit %s\n" % new_content
        texts = [was, now, *(line.encode() for hunk in file["hunks"] for line in hunk["lines"])]
        assert file["lossy"] == any("\ufffd" in each.decode("utf-8", "replace") for each in texts)
        if letter == b"T":
            gone, come = file["hunks"]
            assert (apply(old_content, [gone]), apply(b"", [come])) == (b"", new_content)
        else:
            assert apply(old_content, file["hunks"]).decode() == new_content.decode("utf-8", "replace")
    assert not fields and not numbers
    assert document["files_changed"] == len(document["files"])
    for key in ("insertions", "deletions"):
        assert document[key] == sum(file[key] for file in document["files"])


def test_every_kind_of_change(lab: Lab, mirror: Mirror) -> None:
    """In both directions and from nothing: the document and the text say what git says, and the text applies."""
    old, new = commit_tree(mirror.path, BEFORE), commit_tree(mirror.path, AFTER)
    empty = plain(mirror.path, "hash-object", "-t", "tree", "/dev/null").decode().strip()
    for before, after, one, other in [(BEFORE, AFTER, old, new), (AFTER, BEFORE, new, old), ({}, AFTER, None, new)]:
        patch = lab.run(text(mirror, one, other))
        assert patch == plain(mirror.path, "diff", *FLAGS, "--binary", one or empty, other)
        assert applied(mirror.path, one or empty, patch) == git("rev-parse", f"{other}^{{tree}}", cwd=mirror.path)
        document = lab.run(diff_document(mirror, one, other))
        checked(mirror, document, before, after, one or empty, other)
    statuses = {file["status"] for file in lab.run(diff_document(mirror, old, new))["files"]}
    assert statuses == {"added", "deleted", "modified", "renamed", "type-changed"}


def applied(repository: Path, tree: str, patch: bytes) -> str:
    """Apply a patch to a tree with plain git, and return the tree that this makes."""
    environment = {**os.environ, "GIT_INDEX_FILE": str(repository / "scratch-index")}
    for args, data in [(("read-tree", tree), b""), (("apply", "--cached", "-"), patch)] if patch else []:
        code, _, stderr = git_bytes(*args, cwd=repository, env=environment, input=data)
        assert code == 0, stderr
    return git("write-tree", cwd=repository, env=environment)


def test_a_hunk_names_its_function(lab: Lab, mirror: Mirror) -> None:
    """As after the second @@ of a patch."""
    old, new = commit_tree(mirror.path, BEFORE), commit_tree(mirror.path, AFTER)
    files = {file["path"]: file for file in lab.run(diff_document(mirror, old, new))["files"]}
    assert files["function.py"]["hunks"] == [
        {
            "old_start": 39,
            "old_lines": 4,
            "new_start": 39,
            "new_lines": 4,
            "section": "def f():",
            "lines": ["     line 37", "     line 38", "     line 39", "-end", "+END"],
        }
    ]
    assert files["caf\\xe9"]["lossy"] and files["latin"]["lossy"] and not files["utf-8"]["lossy"]
    assert files["moved to\\xfe"]["before"] == "to\\xff"


def test_a_long_function_is_cut_between_characters(lab: Lab, mirror: Mirror) -> None:
    """git sees to it, so it is no sign of another encoding."""
    name = "def " + "☃" * 40
    lines = name.encode() + b"\n" + LINES.replace(b"line", b" line")
    old = commit_tree(mirror.path, {b"f": (b"100644", lines)})
    new = commit_tree(mirror.path, {b"f": (b"100644", lines + b" end\n")})
    (file,) = lab.run(diff_document(mirror, old, new))["files"]
    assert 20 < len(file["hunks"][0]["section"]) < len(name) and name.startswith(file["hunks"][0]["section"])
    assert not file["lossy"]


def test_random_contents(lab: Lab, mirror: Mirror) -> None:
    """Hundreds of files of lines that could be taken for something else."""
    rng = random.Random(5)
    words = [
        b"a",
        b"b",
        b"",
        b"-",
        b"+",
        b" ",
        b"\\",
        b"--- a/f1",
        b"+++ b/f1",
        b"@@ -1,2 +3,4 @@",
        b"diff --git a/f1 b/f1",
    ]
    words += [
        b"\r",
        b"\t",
        b"Binary files a/f1 and b/f1 differ",
        "☃".encode(),
        b"\xff",
        b"rename from x",
        b"\\ No newline",
    ]

    def content() -> bytes:
        return b"\n".join(rng.choices(words, k=rng.randint(0, 12))) + rng.choice([b"", b"\n"])

    def tree() -> dict[bytes, tuple[bytes, bytes]]:
        return {b"f%d" % n: (rng.choice([b"100644", b"100755"]), content()) for n in range(400) if rng.random() < 0.9}

    before, after = tree(), tree()
    old, new = commit_tree(mirror.path, before), commit_tree(mirror.path, after)
    checked(mirror, lab.run(diff_document(mirror, old, new)), before, after, old, new)


def test_an_ordinary_diff(lab: Lab, widgets_bare: Path) -> None:
    """By names, in two processes when both are ids."""
    lab.refresh(lab.repo(widgets_bare))
    mirror = lab.mirror()
    old, new = (git("rev-parse", name, cwd=mirror.path) for name in ("main~10", "main"))
    document = lab.run(diff_document(mirror, old, "main"))
    listed = plain(mirror.path, "diff", *FLAGS, "--name-only", old, new).decode().splitlines()
    assert [file["path"] for file in document["files"]] == listed
    assert counting(lab, lambda: diff_document(mirror, old, new)) == 2
    assert counting(lab, lambda: text(mirror, old, new)) == 2


def test_no_difference(lab: Lab, mirror: Mirror) -> None:
    """An empty patch, and a document without files."""
    old = commit_tree(mirror.path, BEFORE)
    assert lab.run(text(mirror, old, old)) == b""
    empty = {"files": [], "insertions": 0, "deletions": 0, "files_changed": 0}
    assert lab.run(diff_document(mirror, old, old)) == empty
    nothing = commit_tree(mirror.path, {})
    assert lab.run(diff_document(mirror, None, nothing)) == empty


def test_a_repository_with_sha256(lab: Lab, tmp_path: Path) -> None:
    """Its empty tree has another id."""
    path = tmp_path / "sha256.git"
    git("init", "--quiet", "--bare", "--object-format=sha256", str(path))
    mirror = Mirror(path, lab.git)
    stream = b"commit refs/heads/x\ncommitter A <a@b> 1 +0000\ndata 1\nx\nM 100644 inline f\ndata 2\nhi\nget-mark :1\n"
    code, _, stderr = git_bytes("fast-import", "--quiet", cwd=path, input=stream.replace(b"get-mark :1\n", b""))
    assert code == 0, stderr
    assert lab.run(text(mirror, None, "x")).endswith(b"@@ -0,0 +1 @@\n+hi\n\\ No newline at end of file\n")
    assert lab.run(diff_document(mirror, None, "x"))["insertions"] == 1


def test_commits_that_are_not_there(lab: Lab, mirror: Mirror) -> None:
    """An error before anything is streamed, and no expression reaches git."""
    new = commit_tree(mirror.path, AFTER)
    blob = git("rev-parse", f"{new}:new", cwd=mirror.path)
    for old in ("a" * 40, blob, "nothing"):
        with pytest.raises(NotFound):
            lab.run(diff_text(mirror, old, new))
        with pytest.raises(NotFound):
            lab.run(diff_document(mirror, new, old))
    for old in ("--output=/tmp/x", f"{new}..", ":x"):
        with pytest.raises(UsageError):
            lab.run(diff_text(mirror, old, new))


def test_a_damaged_mirror_is_an_error(lab: Lab, mirror: Mirror) -> None:
    """Not a diff that lacks a file."""
    new = commit_tree(mirror.path, {b"f": (b"100644", LINES)})
    blob = git("rev-parse", f"{new}:f", cwd=mirror.path)
    (mirror.path / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(GitError):
        lab.run(text(mirror, None, new))
    with pytest.raises(GitError):
        lab.run(diff_document(mirror, None, new))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("many", "content", "words"),
    [
        (1, b"x" * 99 + b"\n", "larger than 1.0 MiB"),
        (1, b"\xff" * 99 + b"\n", "larger than 1.0 MiB"),
        (1, b"x", "larger than 1.0 MiB"),
        (1, b"a\n", "more than 65,536 lines"),
        (1, b"\n", "more than 65,536 lines"),
        (20_000, b"a\n", "larger than 1.0 MiB"),
    ],
    ids=["long", "latin", "one", "short", "empty", "files"],
)
def test_a_large_diff_is_refused_before_it_takes_memory(
    lab: Lab, mirror: Mirror, many: int, content: bytes, words: str
) -> None:
    """Long lines, short lines, one line, many files: the limit is named, and the text is there at any size."""
    limit = 2**20
    files = {b"f%d" % n: (b"100644", content if many > 1 else content * (2**22 // len(content))) for n in range(many)}
    new = commit_tree(mirror.path, files)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=words) as raised:
            lab.run(diff_document(mirror, None, new, most_bytes=limit))
        assert tracemalloc.get_traced_memory()[1] < 8 * limit
    finally:
        tracemalloc.stop()
    assert "text/x-diff" in raised.value.hint
    assert lab.running == 0

    async def size() -> int:
        return sum([len(piece) async for piece in await diff_text(mirror, None, new)])

    assert lab.run(size()) > 2 * 2**20


@pytest.mark.parametrize(("many", "length"), [(1, 40), (1, BYTES_OF_A_LINE - 1), (5000, 1)])
def test_a_document_takes_a_few_times_its_limit(lab: Lab, mirror: Mirror, many: int, length: int) -> None:
    """Just below the limit; so does the work."""
    limit = 2**20
    size = limit * 7 // 8 - 1000
    text_of_one = (b"x" * length + b"\n") * (size // (length + 2) if many == 1 else 1)
    new = commit_tree(mirror.path, {b"f%d" % n: (b"100644", text_of_one) for n in range(many)})
    tracemalloc.start()
    try:
        document = lab.run(diff_document(mirror, None, new, most_bytes=limit))
        assert tracemalloc.get_traced_memory()[1] < 8 * limit
    finally:
        tracemalloc.stop()
    assert document["insertions"] == many * (text_of_one.count(b"\n"))


def test_a_reader_that_leaves_ends_git(lab: Lab, mirror: Mirror) -> None:
    """A diff of 32 MiB, of which one piece is read."""
    new = commit_tree(mirror.path, {b"f": (b"100644", b"x" * 63 + b"\n" * 2**19 + b"y" * 2**24)})

    async def leave() -> None:
        stream = await diff_text(mirror, None, new)
        assert lab.running == 0
        assert (await left_early(stream)).startswith(b"diff --git a/f b/f\n")
        assert lab.running == 0

    lab.run(leave())
