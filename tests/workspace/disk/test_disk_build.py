"""A disk is what a clone is: the same files, the same history, and a clean status."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.disk.images import DiskForm
from tests.support.gitutil import git, git_bytes
from tests.support.serve import ROOT
from tests.workspace.conftest import ROUNDS
from tests.workspace.disk.disk_lab import DiskLab, Entry, check, clone, fast_import, files_of, nasty_entries


@pytest.mark.parametrize("history", ["full", "tip"])
@pytest.mark.parametrize("form", [DiskForm.EROFS, DiskForm.SINGLE])
def test_a_nasty_repository_comes_out_as_a_clone_does(
    lab: DiskLab, tmp_path: Path, history: str, form: DiskForm
) -> None:
    """Every kind of entry, odd names, links, conversions by attributes."""
    fast_import(lab.bare, [{b"first": (b"100644", b"1\n")}, nasty_entries()])
    lab.history, lab.form = history, form
    workspace = check(lab, lab.build(), tmp_path / "out")
    assert (workspace / "a.crlf").read_bytes() == b"one\r\ntwo\r\n"
    assert (workspace / "sub" / "a.crlf").read_bytes() == b"one\ntwo\n"
    assert (workspace / "e.ident").read_bytes().startswith(b"$Id: ")
    assert (workspace / "c.utf16").read_bytes() == "gr\u00fc\u00dfe\n".encode("utf-16-le")
    assert git("rev-list", "--count", "HEAD", cwd=workspace) == ("2" if history == "full" else "1")


def test_the_whole_history_is_there_with_tags_on_the_branch(lab: DiskLab, tmp_path: Path) -> None:
    """Both kinds of tags on the branch, none of another branch, nothing shallow, no promisor."""
    first, second = fast_import(lab.bare, [{b"a": (b"100644", b"1\n")}, {b"a": (b"100644", b"2\n")}])
    [other] = fast_import(lab.bare, [{b"b": (b"100644", b"3\n")}], branch="other")
    git("tag", "light", first, cwd=lab.bare)
    git("tag", "-m", "annotated", "heavy", second, cwd=lab.bare)
    git("tag", "elsewhere", other, cwd=lab.bare)
    workspace = check(lab, lab.build(), tmp_path / "out")
    assert git("tag", "--list", cwd=workspace).split() == ["heavy", "light"]
    assert git("cat-file", "-t", "heavy", cwd=workspace) == "tag"
    assert git("rev-parse", "--is-shallow-repository", cwd=workspace) == "false"
    assert git("blame", "--porcelain", "a", cwd=workspace).startswith(second)
    assert git("merge-base", "HEAD", first, cwd=workspace) == first
    code, _, _ = git_bytes("cat-file", "-e", other, cwd=workspace)
    assert code != 0


def test_a_tag_of_a_tag_is_peeled_to_its_commit(lab: DiskLab, tmp_path: Path) -> None:
    """As a clone does it; older versions of git peel one level only where they list refs."""
    [commit] = fast_import(lab.bare, [{b"a": (b"100644", b"1\n")}])
    git("tag", "-m", "one", "one", "main", cwd=lab.bare)
    git("tag", "-m", "two", "two", "one", cwd=lab.bare)
    workspace = check(lab, lab.build(), tmp_path / "out")
    assert f"{commit} refs/tags/two^{{}}" in git("show-ref", "-d", cwd=workspace)


@pytest.mark.parametrize(
    ("attributes", "mode"),
    [
        (b"*.txt eol=crlf\n", b"100644"),
        (b"# ident, eol=crlf\n*.txt diff=identifiers\n", b"100644"),
        (b"*.txt eol=crlf", b"120000"),
        (b"*.txt -ident\n*.txt text\n", b"100644"),
    ],
)
def test_attributes_mean_what_they_mean_to_git(lab: DiskLab, tmp_path: Path, attributes: bytes, mode: bytes) -> None:
    """In a comment, as a part of a word, and as the target of a symbolic link."""
    fast_import(lab.bare, [{b".gitattributes": (mode, attributes), b"a.txt": (b"100644", b"$Id$\none\n")}])
    to = tmp_path / "out"
    to.mkdir()
    image = lab.build()
    workspace = lab.unpack(image, to / "disk")
    assert files_of(workspace) == files_of(clone(lab.bare, to / "clone", image.commit))
    assert git("status", "--porcelain", cwd=workspace) == ""


def test_what_git_does_not_check_out_has_no_disk(lab: DiskLab) -> None:
    """An encoding without a name ends a checkout."""
    fast_import(lab.bare, [{b".gitattributes": (b"100644", b"a working-tree-encoding\n"), b"a": (b"100644", b"x\n")}])
    with pytest.raises(GitmirrorError, match="working-tree-encoding"):
        lab.build()


def test_a_tip_has_one_commit_and_is_shallow(lab: DiskLab, tmp_path: Path) -> None:
    """Also the second one of a branch, whose pack has only what is new."""
    lab.history = "tip"
    fast_import(lab.bare, [{b"a": (b"100644", b"1\n"), b"d/x": (b"100644", b"x\n")}])
    lab.build()
    fast_import(lab.bare, [{b"a": (b"100644", b"2\n")}, {b"d/x": (b"120000", b"../a"), b"m": (b"160000", b"")}])
    workspace = check(lab, lab.build(), tmp_path / "out")
    assert git("rev-parse", "--is-shallow-repository", cwd=workspace) == "true"
    assert git("rev-list", "--count", "HEAD", cwd=workspace) == "1"


def random_changes(rng: random.Random, tree: dict[bytes, Entry]) -> dict[bytes, Entry | None]:
    """Changes of one commit: contents, modes, additions, deletions, renames, a file to a directory and back."""
    changes: dict[bytes, Entry | None] = {}

    def put(path: bytes, entry: Entry) -> None:
        for old in [p for p in tree if p == path or p.startswith(path + b"/") or path.startswith(p + b"/")]:
            del tree[old]
            changes.pop(old, None)
            if old != path:
                changes[old] = None
        tree[path] = changes[path] = entry

    for _ in range(rng.randint(1, 6)):
        # fsck objects to a `.gitattributes` that is no file.
        path = rng.choice(sorted(tree.keys() - {b".gitattributes"}))
        mode, content = tree[path]
        kind = rng.randrange(8)
        new = b"d%d/%s" % (rng.randrange(6), rng.choice([b"x", b"y/z", b"a.crlf", b"w" * 200, b"q\xff"]))
        if kind == 0:
            put(path, (b"100644", rng.randbytes(rng.choice([0, 1, 50, 4096, 5000]))))
        elif kind == 1:
            put(path, (b"100755" if mode == b"100644" else b"100644", content))
        elif kind == 2:
            put(new, (b"100644", b"%d\n" % rng.randrange(1000)))
        elif kind == 3 and len(tree) > 4:
            del tree[path]
            changes[path] = None
        elif kind == 4:
            put(path + b"/below", (b"100644", b"%d\n" % rng.randrange(5)))
        elif kind == 5:
            put(path.rpartition(b"/")[0] or path, (b"120000", b"target%d" % rng.randrange(5)))
        elif kind == 6:
            put(new, (mode, content))
        else:
            put(b".gitattributes", (b"100644", rng.choice([b"*.crlf eol=crlf\n", b"*.crlf -text\n", b"x ident\n"])))
    return changes


def tips(lab: DiskLab, seed: int, count: int) -> list[str]:
    """Random successive commits of a branch."""
    rng = random.Random(seed)
    tree: dict[bytes, Entry] = {b"start": (b"100644", b"0\n"), b"d1/a.crlf": (b"100644", b"1\n2\n")}
    commits: list[dict[bytes, Entry | None]] = [dict(tree)]
    commits += [random_changes(rng, tree) for _ in range(count - 1)]
    return fast_import(lab.bare, commits)


@pytest.mark.parametrize(
    ("seed", "history", "count"),
    [
        (1, "full", 24),
        (2, "tip", 12),
        # More than the packs that are kept.
        pytest.param(3, "full", 30 * ROUNDS, marks=pytest.mark.slow),
        pytest.param(4, "tip", 30 * ROUNDS, marks=pytest.mark.slow),
    ],
)
def test_successive_tips_equal_those_built_anew(
    lab: DiskLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, history: str, count: int
) -> None:
    """Each is built on the one before. It has the same files, index and refs as one from nothing, and git likes it."""
    # Otherwise only the listings of large trees are remembered.
    monkeypatch.setattr("appliance.core.workspace.disk.member.WORTH_REMEMBERING", 0)
    lab.history = history
    commits, generations = tips(lab, seed, count), set()
    for number, commit in enumerate(commits):
        git("update-ref", "refs/heads/main", commit, cwd=lab.bare)
        image = lab.build()
        generations.add(image.generation)
        assert image.commit == commit
        found = {path: one for path, one in lab.read(image).items() if not path.startswith(b".git/objects")}
        if number % 6 == 0 or number == count - 1:
            other = lab.anew(f"anew-{number}")
            expected = other.read(other.build())
            assert found == {path: one for path, one in expected.items() if not path.startswith(b".git/objects")}
            check(lab, image, tmp_path / f"out-{number}")
    packs = [path for path in lab.read(image) if path.endswith(b".pack")]
    assert len(packs) <= 20 and len(generations) == 1


@pytest.mark.slow
def test_the_first_image_stays_right_through_all_later_ones(lab: DiskLab, tmp_path: Path) -> None:
    """The blob file only grows, so a drive in use never changes."""
    commits = tips(lab, 5, 15 * ROUNDS)
    git("update-ref", "refs/heads/main", commits[0], cwd=lab.bare)
    first = lab.build()
    tree, data = lab.place.tree(first).read_bytes(), lab.data(first)
    for commit in commits[1:]:
        git("update-ref", "refs/heads/main", commit, cwd=lab.bare)
        last = lab.build()
    assert lab.place.tree(first).read_bytes() == tree
    assert lab.data(last).startswith(data)
    check(lab, first, tmp_path / "out")


@pytest.mark.parametrize("damage", ["wrong", "short", "empty", "other"])
def test_a_remembered_listing_that_is_damaged_is_not_used(
    lab: DiskLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """It is only a memory: the build lists the tree instead."""
    monkeypatch.setattr("appliance.core.workspace.disk.member.WORTH_REMEMBERING", 0)
    commits = tips(lab, 10, 4)
    git("update-ref", "refs/heads/main", commits[0], cwd=lab.bare)
    image = lab.build()
    [listing] = lab.place.generation(image.generation).glob("listing-*")
    data = bytearray(listing.read_bytes())
    if damage == "wrong":
        data[len(data) // 2] ^= 1
    elif damage == "other":
        monkeypatch.setattr("appliance.core.workspace.disk.last_listing._VERSION", b"2")
    listing.write_bytes({"short": bytes(data[:-5]), "empty": b""}.get(damage, bytes(data)))
    git("update-ref", "refs/heads/main", commits[3], cwd=lab.bare)
    check(lab, lab.build(), tmp_path / "out")


def test_a_name_that_comes_with_a_later_commit_is_looked_at(lab: DiskLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is new is checked, so it must be."""
    monkeypatch.setattr("appliance.core.workspace.disk.member.WORTH_REMEMBERING", 0)
    fast_import(lab.bare, [{b"a": (b"100644", b"1\n")}])
    lab.build()
    fast_import(lab.bare, [{b"d/%s" % (b"n" * 256): (b"100644", b"2\n")}])
    with pytest.raises(GitmirrorError, match="longer than 255 bytes"):
        lab.build()


def test_the_same_order_again_writes_nothing(lab: DiskLab) -> None:
    """Neither do tags that do not touch the branch."""
    tips(lab, 6, 3)
    image = lab.build()
    before = lab.place.tree(image).stat(), (lab.newest / "data").stat()
    assert lab.build() == image
    assert (lab.place.tree(image).stat(), (lab.newest / "data").stat()) == before


def test_a_new_tag_makes_another_image_of_the_same_commit(lab: DiskLab, tmp_path: Path) -> None:
    """It belongs to the workspace, and its object is new."""
    tips(lab, 7, 3)
    first = lab.build()
    git("tag", "-m", "late", "late", "refs/heads/main", cwd=lab.bare)
    second = lab.build()
    assert (second.generation, second.commit) == (first.generation, first.commit)
    assert git("tag", "--list", cwd=check(lab, second, tmp_path / "out")) == "late"


@pytest.mark.parametrize(
    "name", [b".git", b".GIT", b"git~1", b".git ", b".git::x", b"a\\.git", b"s/.Git/x", b"x" * 256]
)
def test_names_that_git_or_linux_refuse_are_refused(lab: DiskLab, name: bytes) -> None:
    """What is there stays as it was."""
    tips(lab, 8, 2)
    image = lab.build()
    before = lab.place.tree(image).read_bytes(), lab.data(image)
    blob = git("hash-object", "-w", "--stdin", cwd=lab.bare, input="x")
    tree = blob
    for part in reversed(name.split(b"/")):
        kind = b"40000" if tree != blob else b"100644"
        raw = kind + b" " + part + b"\0" + bytes.fromhex(tree)
        code, out, _ = git_bytes("hash-object", "-w", "-t", "tree", "--literally", "--stdin", cwd=lab.bare, input=raw)
        assert code == 0
        tree = out.decode().strip()
    parent = git("rev-parse", "main", cwd=lab.bare)
    commit = git("commit-tree", "-m", "x", "-p", parent, tree, cwd=lab.bare)
    git("update-ref", "refs/heads/main", commit, cwd=lab.bare)
    with pytest.raises(GitmirrorError, match="cannot build a disk of this commit"):
        lab.build()
    assert (lab.place.tree(image).read_bytes(), lab.data(image)) == before
    if len(name) < 256:
        code, _, said = git_bytes("read-tree", "--index-output=/dev/null", commit, cwd=lab.bare)
        assert code != 0 and b"invalid path" in said, "git takes this name"


def test_a_branch_and_a_tag_may_have_names_of_any_bytes(lab: DiskLab, tmp_path: Path) -> None:
    """Git does not ask for UTF-8."""
    name = os.fsdecode(b'caf\xe9/\xf0\x9f\x90\x99"x')
    tips(lab, 9, 2)
    git("branch", name, "main", cwd=lab.bare)
    git("tag", name, "main", cwd=lab.bare)
    workspace = check(lab, lab.build(name), tmp_path / "out")
    assert git_bytes("tag", "--list", cwd=workspace)[1] == os.fsencode(name) + b"\n"


def test_a_path_that_linux_cannot_open_is_refused(lab: DiskLab) -> None:
    """Git could not check it out either."""
    fast_import(lab.bare, [{b"/".join([b"d" * 200] * 21): (b"100644", b"x")}])
    with pytest.raises(GitmirrorError, match="longer than 4095 bytes"):
        lab.build()


def test_a_commit_with_an_empty_directory_comes_out_as_git_checks_it_out(lab: DiskLab, tmp_path: Path) -> None:
    """Git makes no directory for a tree without entries."""
    empty = git("hash-object", "-w", "-t", "tree", "--stdin", cwd=lab.bare, input="")
    blob = git("hash-object", "-w", "--stdin", cwd=lab.bare, input="x")
    tree = git("mktree", cwd=lab.bare, input=f"100644 blob {blob}\ta\n040000 tree {empty}\tempty\n")
    commit = git("commit-tree", "-m", "x", tree, cwd=lab.bare)
    git("update-ref", "refs/heads/main", commit, cwd=lab.bare)
    to = tmp_path / "out"
    to.mkdir()
    workspace = lab.unpack(lab.build(), to / "disk")
    assert files_of(workspace) == files_of(clone(lab.bare, to / "clone", commit))
    assert git("status", "--porcelain", cwd=workspace) == ""


def test_modes_of_old_trees_are_what_git_makes_of_them(lab: DiskLab, tmp_path: Path) -> None:
    """Early versions of git wrote group bits, and fsck complains about them to this day."""
    blob = git("hash-object", "-w", "--stdin", cwd=lab.bare, input="x")
    raw = b"".join(
        b"%s %s\0" % (mode, name) + bytes.fromhex(blob) for mode, name in [(b"100664", b"a"), (b"100775", b"b")]
    )
    code, out, _ = git_bytes("hash-object", "-w", "-t", "tree", "--literally", "--stdin", cwd=lab.bare, input=raw)
    assert code == 0
    commit = git("commit-tree", "-m", "x", out.decode().strip(), cwd=lab.bare)
    git("update-ref", "refs/heads/main", commit, cwd=lab.bare)
    to = tmp_path / "out"
    to.mkdir()
    workspace = lab.unpack(lab.build(), to / "disk")
    assert files_of(workspace) == files_of(clone(lab.bare, to / "clone", commit))
    assert git("status", "--porcelain", cwd=workspace) == ""
    assert git("ls-files", "--stage", cwd=workspace) == git("ls-files", "--stage", cwd=to / "clone")


def test_a_commit_without_files_has_a_disk(lab: DiskLab, tmp_path: Path) -> None:
    """Such commits begin many repositories."""
    tree = git("hash-object", "-w", "-t", "tree", "--stdin", cwd=lab.bare, input="")
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "x", tree, cwd=lab.bare), cwd=lab.bare)
    check(lab, lab.build(), tmp_path / "out")


def test_an_edit_of_the_same_size_is_seen(lab: DiskLab, tmp_path: Path) -> None:
    """Each content has an mtime of its own, so not even a swap of two files escapes git."""
    fast_import(lab.bare, [{b"a": (b"100644", b"1\n"), b"b": (b"100644", b"2\n"), b"c": (b"120000", b"a")}])
    workspace = check(lab, lab.build(), tmp_path / "out")
    (workspace / "a").rename(workspace / "t")
    (workspace / "b").rename(workspace / "a")
    (workspace / "t").rename(workspace / "b")
    assert git("status", "--porcelain", cwd=workspace).split() == ["M", "a", "M", "b"]


@pytest.mark.slow
def test_real_repositories_come_out_as_clones_do(homelab_bare: Path, sqlite_utils_bare: Path, tmp_path: Path) -> None:
    """Whatever is in them. This checkout's own repository is one of them."""
    sources = {"homelab": homelab_bare, "sqlite-utils": sqlite_utils_bare}
    if git_bytes("rev-parse", "--git-dir", cwd=ROOT)[0] == 0:
        sources["own"] = ROOT
    if not sources:
        pytest.skip("the real repositories are not here")
    for name, source in sources.items():
        bare = tmp_path / f"{name}.git"
        git("clone", "--quiet", "--bare", str(source), str(bare))
        if git("rev-parse", "--is-shallow-repository", cwd=bare) == "true":
            continue
        lab = DiskLab(bare, tmp_path / f"disks-{name}")
        branch, tip = "built", git("rev-parse", "HEAD", cwd=bare)
        git("update-ref", f"refs/heads/{branch}", "HEAD~3", cwd=bare)
        lab.build(branch)
        git("update-ref", f"refs/heads/{branch}", tip, cwd=bare)
        check(lab, lab.build(branch), tmp_path / f"out-{name}")
