"""Parts of a tree, compared with what real git makes of the same directories."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.cone import outermost, patterns
from appliance.core.workspace.history import History
from appliance.core.workspace.parts import MOST_DIRECTORIES, read_directories
from tests.git.lab import Lab
from tests.support.generate import add_commit, copy_repository, create_repository
from tests.support.gitutil import clean_env, fsck, git, git_bytes, run_process
from tests.workspace.conftest import ROUNDS
from tests.workspace.lab import Builder, tree_of


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The room that runs git."""
    made = Lab(tmp_path_factory.mktemp("parts") / "state")
    yield made
    made.close()


# What guests may name


@pytest.mark.parametrize(
    ("values", "only"),
    [
        ([], ()),
        (["src/"], ("src",)),
        (["./src//server/."], ("src/server",)),
        (["b", "a", "b", "a/c"], ("a", "b")),
        (["...", "a b", "-x", 'q"', "\\", "\udcff"], ("-x", "...", "\\", "a b", 'q"', "\udcff")),
    ],
)
def test_directories_are_normalised(values: list[str], only: tuple[str, ...]) -> None:
    """Slashes, dots, duplicates and nested ones."""
    assert read_directories(values) == tuple(sorted(only, key=os.fsencode))


@pytest.mark.parametrize("value", ["", ".", "./", "/", "/src", "..", "a/../b", "a\0b", "a\nb", "\x7f", "a/" * 2100])
def test_what_is_no_directory_is_refused(value: str) -> None:
    """In words."""
    with pytest.raises(GitmirrorError, match="only="):
        read_directories(["src", value])


def test_too_many_directories_are_refused() -> None:
    """The most are named."""
    with pytest.raises(GitmirrorError, match=str(MOST_DIRECTORIES)):
        read_directories([f"d{number}" for number in range(MOST_DIRECTORIES + 1)])


# What git makes of the same

_ODD = [
    b"a",
    b"b",
    b"ab",
    b"a*",
    b"x y",
    b" ",
    b'q"',
    b"[z]",
    b"\\",
    b"?",
    b"\xff",
    b"#c",
    b"!n",
    b"a\\*",
    "\u00e4".encode(),
]
_NAME = st.sampled_from(_ODD)
_DIRECTORY = st.lists(_NAME, min_size=1, max_size=3).map(b"/".join)
_TREES = st.lists(st.tuples(_DIRECTORY, _NAME.map(lambda name: name + b".x")), min_size=1, max_size=12)


def repository_of(path: Path, files: list[tuple[bytes, bytes]]) -> list[str]:
    """Make a bare repository with these files, of which some are links and submodules; return what may be named."""
    create_repository(path)
    entries: dict[bytes, bytes] = {b"top": b"100644"}
    directories: set[bytes] = set()
    for number, (directory, name) in enumerate(files):
        words = directory.split(b"/")
        directories.update(b"/".join(words[: count + 1]) for count in range(len(words)))
        entries[directory + b"/" + name] = (b"100644", b"100755", b"120000", b"160000")[number % 4]
    lines = b""
    for number, (name, mode) in enumerate(entries.items()):
        blob = git("hash-object", "-w", "--stdin", cwd=path, input=f"{number % 4}")
        lines += mode + b" " + (b"1" * 40 if mode == b"160000" else blob.encode()) + b"\t" + name + b"\0"
    git("update-index", "-z", "--index-info", cwd=path, input=lines)
    tree = git("write-tree", cwd=path)
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "made", tree, cwd=path), cwd=path)
    directories.update(name for name, mode in entries.items() if mode == b"160000")
    return [os.fsdecode(directory) for directory in directories]


def raw(*words: str, cwd: Path) -> bytes:
    """What git prints, with names that are not UTF-8."""
    code, out, error = git_bytes(*words, cwd=cwd)
    assert code == 0, error
    return out


def compare(lab: Lab, directory: Path, files: list[tuple[bytes, bytes]], chosen: list[int], history: History) -> None:
    """Make a repository, and a part of it by gitmirror and by git, which are to be the same."""
    bare = directory / "up.git"
    directories = sorted(repository_of(bare, files))
    only = outermost(directories[number % len(directories)] for number in chosen)
    builder = Builder(lab, bare, directory / "snapshots", history, only)
    builder.build()
    guest, clone = builder.unpack(directory / "guest"), directory / "clone"
    git("clone", "--quiet", "--filter=blob:none", "--sparse", f"file://{bare}", str(clone))
    sparse = Path(".git/info/sparse-checkout")
    if all(path == path.strip() for path in only):
        # By its arguments git takes names with wildcards only if it is not to check them.
        git("sparse-checkout", "set", "--cone", "--skip-checks", *only, cwd=clone)
    else:
        # It trims its arguments, but not what it reads.
        (clone / sparse).write_bytes(patterns(only))
        git("sparse-checkout", "reapply", cwd=clone)
    assert tree_of(guest) == tree_of(clone)
    for words in (("sparse-checkout", "list"), ("ls-files", "-t", "-s", "-z"), ("status", "--porcelain", "-z")):
        assert raw(*words, cwd=guest) == raw(*words, cwd=clone), words
    assert (guest / sparse).read_bytes() == (clone / sparse).read_bytes()
    assert raw("status", "--porcelain", cwd=guest) == raw("diff", cwd=guest) == b""
    if history is not History.FULL:
        objects = ("cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
        assert raw(*objects, cwd=guest) == raw(*objects, cwd=clone)
    fsck(guest)
    git("sparse-checkout", "reapply", cwd=guest)
    assert tree_of(guest) == tree_of(clone)


@pytest.mark.slow
@settings(max_examples=10 * ROUNDS, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    files=_TREES, chosen=st.lists(st.integers(0, 40), min_size=1, max_size=4), history=st.sampled_from(list(History))
)
def test_a_part_is_what_git_makes_of_it(
    lab: Lab, files: list[tuple[bytes, bytes]], chosen: list[int], history: History
) -> None:
    """Files, index, patterns, the list, and the objects, of any tree and any directories."""
    with tempfile.TemporaryDirectory() as made:
        compare(lab, Path(made), files, chosen, history)


# What guests do with it


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with three commits, in which files outside of `src` change, too."""
    path = create_repository(tmp_path_factory.mktemp("parts") / "up.git")
    for turn in range(3):
        names = ("top", "src/a", "src/deep/b", "docs/c", "docs/deep/d", "tests/e")
        add_commit(path, "main", {name: f"{name} in {turn}\n" for name in names})
    git("branch", "other", "main~1", cwd=path)
    return path


def unpacked(lab: Lab, bare: Path, directory: Path, history: History = History.TREES) -> Path:
    """The part `src` as a guest has it whose origin can be reached."""
    builder = Builder(lab, bare, directory / "snapshots", history, ("src",))
    builder.build()
    guest = builder.unpack(directory / "guest")
    git("config", "remote.origin.url", f"file://{bare}", cwd=guest)
    return guest


CLIENTS = Path(os.environ.get("GITMIRROR_CLIENTS", Path.home() / ".cache" / "gitmirror" / "clients"))
_GITS = {name: str(CLIENTS / name / "bin" / "git") for name in ("git-oldest", "git-newest")} | {"git": "git"}


@pytest.mark.slow
@pytest.mark.parametrize("history", list(History))
@pytest.mark.parametrize("name", _GITS)
def test_every_git_works_in_a_part(lab: Lab, bare: Path, tmp_path: Path, name: str, history: History) -> None:
    """Its status, list, log, stash, merge and checkout are those of a clone, and it can be made larger and whole."""
    if shutil.which(_GITS[name]) is None:
        pytest.skip(f"there is no {name}: see scripts/get_clients.sh")
    guest = unpacked(lab, bare, tmp_path, history)
    trace = tmp_path / "trace"

    def run(*words: str) -> str:
        env = clean_env(tmp_path, GIT_TRACE=str(trace))
        done = run_process([_GITS[name], *words], cwd=guest, env=env)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.decode().strip()

    def fetches() -> int:
        found = len(re.findall(r"built-in: git fetch ", trace.read_text()))
        trace.unlink()
        return found

    assert run("status", "--porcelain") == run("diff") == ""
    assert run("sparse-checkout", "list") == "src"
    assert sorted(tree_of(guest)) == ["src", "src/a", "src/deep", "src/deep/b", "top"]
    assert fetches() == 0
    (guest / "src" / "a").write_text("changed\n")
    assert run("status", "--porcelain") == "M src/a"
    run("stash", "--quiet")
    run("stash", "pop", "--quiet")
    run("commit", "--quiet", "-am", "changed")
    assert run("diff", "--name-only", "HEAD~1", "HEAD") == "src/a" if history is not History.TIP else True
    assert fetches() == 0
    run("sparse-checkout", "add", "docs/deep")
    assert fetches() == (0 if history is History.FULL else 1)
    assert run("sparse-checkout", "list").split() == ["docs/deep", "src"]
    assert (guest / "docs" / "deep" / "d").exists() and not (guest / "tests").exists()
    if history is not History.TIP:
        assert run("log", "-p", "--format=%s", "--", "src").count("diff --git") >= 3
        run("fetch", "--quiet", "origin", "other")
        run("checkout", "--quiet", "FETCH_HEAD")
        assert (guest / "src" / "a").read_text() == "src/a in 1\n" and not (guest / "tests").exists()
        run("checkout", "--quiet", "main")
        assert run("log", "-1", "--format=%s", "origin/main")
    run("sparse-checkout", "disable")
    assert run("status", "--porcelain") == "" and (guest / "tests" / "e").exists()
    fsck(guest)


def test_nothing_is_rehashed(lab: Lab, bare: Path, tmp_path: Path) -> None:
    """git believes each file by its time and size, so the index stays as it is."""
    guest = unpacked(lab, bare, tmp_path)
    index = (guest / ".git" / "index").read_bytes()
    git("status", cwd=guest)
    git("update-index", "--refresh", cwd=guest)
    assert (guest / ".git" / "index").read_bytes() == index


@pytest.mark.slow
def test_a_merge_inside_the_part_and_outside(lab: Lab, bare: Path, tmp_path: Path) -> None:
    """What changed outside of it is merged without a file of it."""
    guest = unpacked(lab, bare, tmp_path)
    git("checkout", "--quiet", "-b", "mine", "main~1", cwd=guest)
    (guest / "src" / "new").write_text("mine\n")
    git("add", "src/new", cwd=guest)
    git("commit", "--quiet", "-m", "mine", cwd=guest)
    git("merge", "--quiet", "-m", "merged", "main", cwd=guest)
    assert git("rev-parse", "HEAD:tests/e", cwd=guest) == git("rev-parse", "main:tests/e", cwd=bare)
    assert git("status", "--porcelain", cwd=guest) == "" and not (guest / "tests").exists()


@pytest.mark.slow
@pytest.mark.parametrize("history", list(History))
def test_a_part_is_brought_forward(lab: Lab, bare: Path, tmp_path: Path, history: History) -> None:
    """Changes outside of it add no blob, and what its history has is shared with the branch's other shapes."""
    own = copy_repository(bare, tmp_path / "own.git")
    whole = Builder(lab, own, tmp_path / "snapshots", history)
    whole.build()
    builder = Builder(lab, own, tmp_path / "snapshots", history, ("src",))
    for turn in range(3):
        builder.build()
        add_commit(own, "main", {"docs/c": f"outside {turn}\n"})
        add_commit(own, "main", {"src/a": f"again {turn}\n"})
    builder.build()
    fresh = Builder(lab, own, tmp_path / "fresh", history, ("src",))
    fresh.build()
    guest, other = builder.unpack(tmp_path / "guest"), fresh.unpack(tmp_path / "other")
    assert tree_of(guest) == tree_of(other)
    assert git("status", "--porcelain", cwd=guest) == ""
    fsck(guest)
    if history is not History.TIP:
        shared = [path for path in whole.place().packs.glob("objects/pack/*.pack") if path.stat().st_nlink > 1]
        assert shared
    outside = git("rev-parse", "main:docs/c", cwd=own)
    there = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=guest).split()
    assert (outside in there) is (history is History.FULL)


def test_damaged_packs_of_another_shape_are_not_taken_over_for_ever(lab: Lab, bare: Path, tmp_path: Path) -> None:
    """The part is then packed anew."""
    whole = Builder(lab, bare, tmp_path / "snapshots", History.TREES)
    whole.build()
    for pack in whole.place().packs.glob("objects/pack/*.pack"):
        data = bytearray(pack.read_bytes())
        data[-1] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    builder = Builder(lab, bare, tmp_path / "snapshots", History.TREES, ("src",))
    builder.build()
    fsck(builder.unpack(tmp_path / "guest"))
