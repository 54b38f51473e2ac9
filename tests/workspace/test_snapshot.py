"""What a snapshot is: a true checkout of one commit, in one tar, that git believes at once."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.process.checked_file import NotRight
from appliance.core.workspace.git_index import UnknownIndex, normalise_index
from appliance.core.workspace.history import History
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_place import SnapshotPlace
from appliance.core.workspace.times import FIRST_TIME, FIXED_TIME, INDEX_TIME, file_time
from tests.git.lab import Lab
from tests.support.generate import add_commit, copy_repository, create_repository, generate_repository
from tests.support.gitutil import fsck, git, git_bytes, run_process
from tests.workspace.lab import URL, Builder, tree_of


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The room that runs git."""
    made = Lab(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def widgets(lab: Lab, generated_bare: Path, tmp_path: Path) -> Builder:
    """Snapshots of a copy of the generated repository."""
    return Builder(lab, copy_repository(generated_bare, tmp_path / "widgets.git"), tmp_path / "snapshots")


def cloned(bare: Path, to: Path, branch: str = "main") -> Path:
    """What `git clone` makes of a branch."""
    git("clone", "--quiet", "--depth=1", "--no-tags", "--branch", branch, f"file://{bare}", str(to))
    return to


def test_a_snapshot_is_what_a_clone_is(widgets: Builder, tmp_path: Path) -> None:
    """Files, modes, links and odd names are those of `git clone --depth 1`, and git finds nothing wrong."""
    snapshot = widgets.build()
    guest = widgets.unpack(tmp_path / "guest")
    assert tree_of(guest) == tree_of(cloned(widgets.bare, tmp_path / "clone"))
    fsck(guest)
    assert git("status", "--porcelain=v2", "--branch", cwd=guest).splitlines() == [
        f"# branch.oid {snapshot.commit}",
        "# branch.head main",
        "# branch.upstream origin/main",
        "# branch.ab +0 -0",
    ]
    assert git("config", "remote.origin.url", cwd=guest) == URL
    assert git("config", "remote.origin.fetch", cwd=guest) == "+refs/heads/main:refs/remotes/origin/main"


def test_it_holds_exactly_the_objects_of_the_tip_in_one_pack(widgets: Builder, tmp_path: Path) -> None:
    """Also after it was brought forward over several commits: nothing of an older tip goes along."""
    widgets.build()
    for turn in range(3):
        add_commit(widgets.bare, "main", {"README.md": f"turn {turn}\n", f"new {turn}.txt": "x"})
        snapshot = widgets.build()
    guest = widgets.unpack(tmp_path / "guest")
    packs = sorted(path.suffix for path in (guest / ".git" / "objects" / "pack").iterdir())
    assert packs == [".idx", ".pack"]
    there = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=guest).split()
    tree = git("ls-tree", "-r", "-t", "--format=%(objectname)", snapshot.commit, cwd=widgets.bare).split()
    root = git("rev-parse", f"{snapshot.commit}^{{tree}}", cwd=widgets.bare)
    assert sorted(there) == sorted({snapshot.commit, root, *tree})


def test_nothing_of_the_node_goes_along(widgets: Builder, lab: Lab) -> None:
    """No path, hook or reflog of the node, and no entry that could land outside of the workspace."""
    widgets.build()
    with tarfile.open(widgets.tar()) as tar:
        entries = tar.getmembers()
        for entry in entries:
            assert not entry.name.startswith("/") and ".." not in entry.name.split("/")
            assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")
            if entry.name == ".git/index":
                assert entry.mtime == INDEX_TIME
            elif entry.isdir() or entry.name.startswith(".git/"):
                assert entry.mtime == FIXED_TIME
            assert entry.isdir() or entry.isfile() or entry.issym()
            if entry.name.startswith(".git/") and entry.isfile() and not entry.name.startswith(".git/objects/"):
                file = tar.extractfile(entry)
                assert file is not None and str(lab.layout.state).encode() not in file.read(), entry.name
    names = [entry.name for entry in entries]
    assert [name for name in names if name.startswith((".git/hooks", ".git/logs"))] == [".git/hooks"]
    assert len(set(names)) == len(names)
    at = {name: index for index, name in enumerate(names)}
    assert all(at[name.rpartition("/")[0]] < index for name, index in at.items() if "/" in name)


def test_two_builds_of_one_commit_have_the_same_entries(widgets: Builder, tmp_path: Path) -> None:
    """Names, modes, sizes and order are those of any other build."""

    def entries(tar: Path) -> list[tuple[str, int, str]]:
        with tarfile.open(tar) as opened:
            return [(entry.name, entry.mode, entry.linkname) for entry in opened if "/objects/pack/" not in entry.name]

    widgets.build()
    other = Builder(widgets.lab, widgets.bare, tmp_path / "other")
    other.build()
    assert entries(widgets.tar()) == entries(other.tar())


def children_seconds() -> float:
    """The processor time of all children so far that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_status_reads_no_file_of_five_thousand(lab: Lab, tmp_path: Path) -> None:
    """`git status` is clean by the index alone: of all files not one is opened, and it is quick."""
    bare = generate_repository(tmp_path / "big.git", files=5000, commits=2, bytes_per_file=200)
    builder = Builder(lab, bare, tmp_path / "snapshots")
    builder.build()
    guest = builder.unpack(tmp_path / "guest")
    trace = tmp_path / "trace"
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace to see which files git opens")
    argv = [strace, "-f", "-e", "trace=open,openat", "-o", str(trace), "git", "--no-optional-locks", "status"]
    done = run_process([*argv, "--porcelain"], cwd=guest)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    opened = re.findall(r'"([^"]+)", O_RDONLY', trace.read_text(errors="replace"))
    files = {name for name, (kind, _) in tree_of(guest).items() if kind != "directory"}
    # git looks for ignore rules in every directory.
    assert not [name for name in opened if name in files and not name.endswith((".gitignore", ".gitattributes"))]
    times = []
    for _ in range(5):
        start = children_seconds()
        git("status", "--porcelain", cwd=guest)
        times.append(children_seconds() - start)
    assert min(times) < 0.2, times


def test_an_edit_of_the_same_size_in_the_second_of_extraction_is_seen(widgets: Builder, tmp_path: Path) -> None:
    """Twenty times out of twenty."""
    widgets.build()
    for turn in range(20):
        guest = widgets.unpack(tmp_path / f"guest-{turn}")
        text = (guest / "README.md").read_bytes()
        (guest / "README.md").write_bytes(bytes([text[0] ^ 1]) + text[1:])
        assert git("status", "--porcelain", cwd=guest) == "M README.md", turn
        shutil.rmtree(guest)


def test_the_mtime_of_a_file_is_that_of_its_content(widgets: Builder, tmp_path: Path) -> None:
    """The same in every snapshot, another for another content, past, and older than the index, for links too."""

    def times(name: str) -> dict[str, int]:
        guest = widgets.unpack(tmp_path / name)
        assert (guest / ".git" / "index").stat().st_mtime == INDEX_TIME
        found = {}
        for line in git("ls-files", "-z", "--stage", cwd=guest).split("\0")[:-1]:
            entry, path = line.split("\t")
            mode, oid, _ = entry.split()
            found[path] = mtime = int((guest / path).lstat().st_mtime)
            assert mtime == file_time(bytes.fromhex(oid)), (path, mode)
            assert FIRST_TIME <= mtime < INDEX_TIME
        return found

    widgets.build()
    before = times("before")
    assert len(before) > 20 and any((tmp_path / "before" / path).is_symlink() for path in before)
    add_commit(widgets.bare, "main", {"README.md": "edited\n"})
    widgets.build()
    after = times("after")
    assert {path for path in before if before[path] != after[path]} == {"README.md"}


@given(st.binary(min_size=20, max_size=32), st.binary(min_size=20, max_size=32))
def test_another_object_id_is_another_time(one: bytes, other: bytes) -> None:
    """Of SHA-1 or SHA-256, first bit to last second of the range."""
    assert FIRST_TIME <= file_time(one) < INDEX_TIME
    # Ids are as good as random; hypothesis' are not.
    digests = [hashlib.sha256(oid).digest() for oid in (one, other)]
    assert one == other or file_time(digests[0]) != file_time(digests[1])


@pytest.mark.parametrize("tar", ["tar", "busybox tar"])
def test_everything_git_can_hold_arrives(lab: Lab, tmp_path: Path, tar: str) -> None:
    """Attributes, line endings, links out of the tree, executables, any name, submodules, LFS pointers."""
    if not shutil.which(tar.split()[0]):
        pytest.skip(f"there is no {tar}")
    bare = _plant_oddities(tmp_path / "odd.git")
    builder = Builder(lab, bare, tmp_path / "snapshots")
    builder.build()
    guest = builder.unpack(tmp_path / "guest", tar=tar)
    assert tree_of(guest) == tree_of(cloned(bare, tmp_path / "clone"))
    assert (guest / "dos.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert (guest / "big.bin").read_bytes() == _POINTER
    assert list((guest / "module").iterdir()) == []
    assert git("status", "--porcelain", cwd=guest) == ""
    fsck(guest)


def test_a_change_of_attributes_reaches_files_that_did_not_change(lab: Lab, tmp_path: Path) -> None:
    """What `.gitattributes` now says of a file holds for it, though its blob is the same."""
    bare = create_repository(tmp_path / "crlf.git")
    add_commit(bare, "main", {"deep/a.txt": "one\ntwo\n", "b.txt": "three\n"})
    builder = Builder(lab, bare, tmp_path / "snapshots")
    builder.build()
    add_commit(bare, "main", {"deep/.gitattributes": "*.txt text eol=crlf\n"})
    builder.build()
    guest = builder.unpack(tmp_path / "guest")
    assert (guest / "deep" / "a.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert (guest / "b.txt").read_bytes() == b"three\n"
    assert git("status", "--porcelain", cwd=guest) == ""
    add_commit(bare, "main", {"deep/.gitattributes": None})
    builder.build()
    assert (builder.unpack(tmp_path / "after") / "deep" / "a.txt").read_bytes() == b"one\ntwo\n"


def test_a_hostile_tree_runs_nothing(lab: Lab, tmp_path: Path) -> None:
    """Filters, hooks, fsmonitor and submodules that the tree names are not run, on the node or by it."""
    proof = tmp_path / "ran"
    script = f"#!/bin/sh\ntouch '{proof}'\n"
    bare = create_repository(tmp_path / "hostile.git")
    add_commit(
        bare,
        "main",
        {
            ".gitattributes": "* filter=evil diff=evil merge=evil\n",
            ".gitconfig": f'[filter "evil"]\n\tsmudge = touch {proof}\n\tclean = touch {proof}\n',
            ".gitmodules": f'[submodule "m"]\n\tpath = m\n\turl = ext::touch {proof}\n\tupdate = !touch {proof}\n',
            "hooks/post-checkout": script,
            "config": f"[core]\n\tfsmonitor = touch {proof}\n",
        },
    )
    builder = Builder(lab, bare, tmp_path / "snapshots")
    for turn in range(2):
        add_commit(bare, "main", {"a.txt": f"{turn}\n"})
        builder.build()
    guest = builder.unpack(tmp_path / "guest")
    assert git("status", "--porcelain", cwd=guest) == ""
    assert not proof.exists()


def test_a_branch_may_have_any_name(lab: Lab, tmp_path: Path) -> None:
    """Names longer than a file name may be, and names that differ in one odd character, have a place each."""
    bare = create_repository(tmp_path / "names.git")
    names = ["main", "a/" + "/".join("x" * 60 for _ in range(5)), "é1", "\u0e91", 'quote"and#hash', "a/b", "a_b"]
    builder = Builder(lab, bare, tmp_path / "snapshots")
    for name in names:
        git("fast-import", "--quiet", cwd=bare, input=_start(name))
        builder.build(name)
    for number, name in enumerate(names):
        guest = builder.unpack(tmp_path / f"guest-{number}", name)
        assert (guest / "name").read_text() == name
        assert git("symbolic-ref", "HEAD", cwd=guest) == f"refs/heads/{name}"
        assert git("rev-parse", "--abbrev-ref", "@{upstream}", cwd=guest) == f"origin/{name}"


# Brought forward


@pytest.mark.slow
def test_bringing_it_forward_comes_to_the_same_as_building_anew(widgets: Builder, tmp_path: Path) -> None:
    """Edits, deletions, moves, a file that becomes a directory and back: the tree is that of a fresh build."""
    changes: list[dict[str, str | bytes | None]] = [
        {"README.md": "edited\n", "run.sh": None},
        {"README.md": None, "README.md/inside.txt": "a directory now\n"},
        {"README.md/inside.txt": None, "README.md": "a file again\n", "docs/latest": "a file, not a link\n"},
    ]
    widgets.build()
    for number, change in enumerate(changes):
        add_commit(widgets.bare, "main", change)
        widgets.build()
        fresh = Builder(widgets.lab, widgets.bare, tmp_path / f"fresh-{number}")
        fresh.build()
        guest, other = widgets.unpack(tmp_path / f"guest-{number}"), fresh.unpack(tmp_path / f"other-{number}")
        assert tree_of(guest) == tree_of(other)
        assert git("status", "--porcelain", cwd=guest) == ""
        fsck(guest)


def test_it_touches_only_what_changed(widgets: Builder) -> None:
    """A file that is the same in the new tip is not written again."""
    widgets.build()
    tree = widgets.place().work / "tree"
    before = {path: path.lstat().st_ctime_ns for path in tree.rglob("*.py")}
    add_commit(widgets.bare, "main", {"README.md": "edited\n"})
    widgets.build()
    assert len(before) > 20
    assert {path: path.lstat().st_ctime_ns for path in tree.rglob("*.py")} == before


def test_what_a_kill_left_half_done_is_not_built_upon(widgets: Builder, tmp_path: Path) -> None:
    """A file that a killed checkout wrote before its index is in no later snapshot."""
    widgets.build()
    place = widgets.place()
    (place.work / "tree" / "stray.txt").write_text("of a commit that came to nothing\n")
    place.unfinished.touch()
    add_commit(widgets.bare, "main", {"README.md": "edited\n"})
    widgets.build()
    assert git("status", "--porcelain", cwd=widgets.unpack(tmp_path / "guest")) == ""


@pytest.mark.parametrize("harm", ["index", "objects", "tree", "config", "all", "file"])
def test_a_broken_work_directory_is_made_anew(widgets: Builder, tmp_path: Path, harm: str) -> None:
    """Whatever is missing or garbage in what was kept, the next snapshot is right."""
    widgets.build()
    work = widgets.place().work
    repository = work / "repository"
    if harm == "index":
        (repository / "index").write_bytes(b"garbage")
    elif harm == "objects":
        shutil.rmtree(widgets.place().packs / "objects" / "pack")
    elif harm == "tree":
        shutil.rmtree(work / "tree")
    elif harm == "config":
        (repository / "config").write_text("[garbage\n")
    elif harm == "file":
        (work / "tree" / "run.sh").write_text("not what it was\n")
    else:
        shutil.rmtree(work)
    add_commit(widgets.bare, "main", {"README.md": "edited\n"})
    widgets.build()
    guest = widgets.unpack(tmp_path / "guest")
    assert tree_of(guest) == tree_of(cloned(widgets.bare, tmp_path / "clone"))
    fsck(guest)


def test_only_a_whole_tar_of_this_upstream_is_taken_up_again(widgets: Builder) -> None:
    """A tar that is cut, changed or gone, or of another upstream or branch, is none."""
    snapshot = widgets.build()
    place = widgets.place()
    assert place.load(URL) == snapshot
    assert place.load("https://github.com/other/widgets") is None
    assert SnapshotPlace(widgets.directory, "other", Shape(History.TIP)).load(URL) is None
    tar = place.path(snapshot)
    whole = tar.read_bytes()
    assert snapshot.etag == f"{snapshot.commit}-{hashlib.sha256(whole).hexdigest()[:16]}"
    for changed in (whole[:-512], whole[:600] + bytes([whole[600] ^ 1]) + whole[601:]):
        tar.write_bytes(changed)
        with pytest.raises(NotRight):
            place.load(URL)
    tar.unlink()
    assert place.load(URL) is None
    tar.write_bytes(whole)
    place.description.write_text("{}")
    assert place.load(URL) is None


def test_an_index_that_is_not_known_is_not_rewritten(widgets: Builder) -> None:
    """A version other than 2 is refused rather than mangled; version 2 keeps all but the stat data."""
    widgets.build()
    data = (widgets.place().work / "repository" / "index").read_bytes()
    with pytest.raises(UnknownIndex):
        normalise_index(data[:4] + struct.pack(">L", 4) + data[8:])
    done, times = normalise_index(data)
    assert len(done) == len(data) and done != data
    assert normalise_index(done) == (done, times)


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def _plant_oddities(bare: Path) -> Path:
    create_repository(bare)
    blobs: list[tuple[bytes, str, bytes]] = [
        (b"100644", ".gitattributes", b"dos.txt text eol=crlf\n*.bin filter=lfs diff=lfs merge=lfs -text\n"),
        (b"100644", "dos.txt", b"one\ntwo\n"),
        (b"100644", "big.bin", _POINTER),
        (b"100755", "tool", b"#!/bin/sh\n"),
        (b"120000", "nowhere", b"no/such/file"),
        (b"120000", "out", b"../../etc/passwd"),
        (b"120000", "absolute", b"/etc/passwd"),
        (b"100644", "-n", b"leading dash\n"),
        (b"100644", "a\nb", b"newline\n"),
        (b"100644", "tab\there", b"tab\n"),
        (b"100644", "na\u00efve \u2603", b"unicode\n"),
        (b"100644", "deep/" + "/".join(["d" * 60] * 3) + "/file", b"long\n"),
        (b"100644", "n" * 200, b"long name\n"),
        (b"100644", "empty", b""),
    ]
    parts = [b"commit refs/heads/main\ncommitter T <t@example.com> 1700000000 +0000\ndata 1\nx"]
    for mode, name, data in blobs:
        escaped = name.replace("\n", "\\n").replace("\t", "\\t")
        parts.append(b'M %s inline "%s"\ndata %d\n%s' % (mode, escaped.encode(), len(data), data))
    parts.append(b"M 160000 %s module" % (b"1" * 40))
    code, _, stderr = git_bytes("fast-import", "--quiet", cwd=bare, input=b"\n".join(parts) + b"\n")
    assert code == 0, stderr
    # A name that is no UTF-8.
    odd = os.fsdecode(b"latin-\xe9")
    listing = git_bytes("ls-tree", "-z", "main", cwd=bare)[1]
    blob = git("hash-object", "-w", "--stdin", cwd=bare, input="latin\n")
    entries = listing + f"100644 blob {blob}\t{odd}".encode("utf-8", "surrogateescape") + b"\0"
    tree = git_bytes("mktree", "-z", "--missing", cwd=bare, input=entries)[1].decode().strip()
    commit = git("commit-tree", "-p", "main", "-m", "odd", tree, cwd=bare)
    git("update-ref", "refs/heads/main", commit, cwd=bare)
    return bare


def _start(branch: str) -> str:
    return (
        f"commit refs/heads/{branch}\ncommitter T <t@example.com> 1700000000 +0000\ndata 1\nx\n"
        f"M 100644 inline name\ndata {len(branch.encode())}\n{branch}\n"
    )
