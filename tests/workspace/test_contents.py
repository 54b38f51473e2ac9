"""What a turn has besides files: contents of LFS files, and submodules, which else end with the guest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_bytes, refs
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED, SHELLS, Guest, Node

LIB = "acme/lib"
LFS_CONFIG = """\
[filter "lfs"]
    clean = git-lfs clean -- %f
    smudge = git-lfs smudge -- %f
    process = git-lfs filter-process
    required = true
[protocol "file"]
    allow = always
[user]
    name = me
    email = me@example.com
"""
needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="there is no git-lfs")


@dataclass(frozen=True)
class Work:
    """A guest whose git has git-lfs, with a workspace."""

    node: Node
    guest: Guest
    workspace: Path

    def git(self, *args: str, cwd: Path | None = None) -> str:
        """Run git as the agent does."""
        return git(*args, cwd=cwd or self.workspace, env=self.guest.environment())

    def write(self, name: str, data: bytes) -> bytes:
        """Write a file of the workspace."""
        (self.workspace / name).parent.mkdir(exist_ok=True)
        (self.workspace / name).write_bytes(data)
        return data

    def recorded_bytes(self, commit: str, name: str, repo: str = WIDGETS) -> bytes:
        """A file of a commit, from the mirror."""
        return git_bytes("show", f"{commit}:{name}", cwd=self.node.serve.mirror(repo))[1]


def guest_of(node: Node, home: Path, shell: str = "dash") -> Guest:
    """A guest with an identity and with git-lfs, where there is one."""
    guest = node.guest(home, shell=shell)
    text = LFS_CONFIG if shutil.which("git-lfs") else LFS_CONFIG.partition("[protocol")[2].join(["[protocol", ""])
    (home / ".gitconfig").write_text(text)
    return guest


@pytest.fixture(scope="module")
def lfs_node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node whose `acme/widgets` has an LFS file and two submodules: `lib`, which is mirrored too, and `far`."""
    base = tmp_path_factory.mktemp("lfs")
    with HttpUpstream(base / "upstream") as upstream:
        bare = upstream.add(WIDGETS, generated_bare)
        links = []
        for name, repo in (("lib", LIB), ("far", "acme/far")):
            commit = add_commit(upstream.add(repo), "main", {"lib.txt": f"{name}\n"})
            links.append((name, repo, commit))
        modules = "".join(
            f'[submodule "{name}"]\n\tpath = {name}\n\turl = {upstream.url(repo)}\n' for name, repo, _ in links
        )
        work = base / "work"
        git("clone", "--quiet", str(bare), str(work))
        (work / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
        (work / ".gitmodules").write_text(modules)
        old = hashlib.sha256(b"old").hexdigest()
        (work / "old.bin").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{old}\nsize 3\n")
        git("add", ".", cwd=work)
        for name, _, commit in links:
            git("update-index", "--add", "--cacheinfo", f"160000,{commit},{name}", cwd=work)
        git("commit", "--quiet", "-m", "lfs and submodules", cwd=work)
        git("push", "--quiet", "origin", "HEAD:refs/heads/main", cwd=work)
        urls = [upstream.url(WIDGETS), upstream.url(LIB)]
        with Serve(base / "state", repos=urls, refresh=SETTLED).start() as serve:
            for repo in (WIDGETS, LIB):
                serve.wait_for_repo(repo)
            made = Node(serve, upstream)
            made.wait_for_snapshot()
            yield made


@pytest.fixture
def work(lfs_node: Node, tmp_path: Path) -> Work:
    """A workspace of it."""
    guest = guest_of(lfs_node, tmp_path / "home")
    guest.hydrate(guest.home / "ws").hydrated(via="snapshot")
    return Work(lfs_node, guest, guest.home / "ws")


@pytest.mark.slow
@needs_lfs
def test_contents_of_lfs_files_go_along(work: Work, tmp_path: Path) -> None:
    """New ones, those the agent has committed, one in a directory with an odd name: the next guest has the bytes."""
    old = (work.workspace / "old.bin").read_bytes()
    data = {name: work.write(name, f"{name}\0".encode() * 999) for name in ("one.bin", 'ü "d"/two.bin', "run.bin")}
    (work.workspace / "run.bin").chmod(0o755)
    work.git("add", "one.bin")
    work.git("commit", "--quiet", "-m", "by hand", "one.bin")
    turn = work.guest.record("lfs", work.workspace).recorded("lfs")
    for name, expected in data.items():
        assert work.recorded_bytes(turn, name) == expected
    assert work.recorded_bytes(turn, "old.bin") == old
    mirror = work.node.serve.mirror(WIDGETS)
    assert git("ls-tree", turn, "run.bin", cwd=mirror).startswith("100755")

    # The agent goes on with pointers, as git-lfs wants them.
    assert work.git("status", "--porcelain") == ""
    assert work.git("show", "HEAD:one.bin").startswith("version https://git-lfs")
    assert not list((work.workspace / ".git").glob("gitmirror.index*"))
    assert git("rev-parse", f"{turn}~1", cwd=mirror) == work.git("rev-parse", "HEAD")
    assert work.guest.record("lfs", work.workspace).out == "recorded nothing\n"

    for number, other in enumerate((guest_of(work.node, tmp_path / "a"), work.node.guest(tmp_path / "b"))):
        again = other.home / "again"
        assert other.hydrate(again, "session:lfs").hydrated(via="snapshot") == turn
        for name, expected in data.items():
            assert (again / name).read_bytes() == expected
        assert other.record("lfs", again).out == "recorded nothing\n", number
        (again / "more.txt").write_text("more\n")
        more = other.record(f"lfs{number}", again).recorded(f"lfs{number}")
        assert work.recorded_bytes(more, "more.txt") == b"more\n"
        for name, expected in data.items():
            assert work.recorded_bytes(more, name) == expected


@needs_lfs
def test_a_git_lfs_that_fails_loses_no_turn(work: Work) -> None:
    """Its files go as they are."""
    broken = work.guest.home / "broken"
    broken.mkdir()
    (broken / "git-lfs").write_text("#!/bin/sh\nexit 1\n")
    (broken / "git-lfs").chmod(0o755)
    work.write("big.bin", b"x" * 1000)
    path = f"{broken}:{work.guest.environment()['PATH']}"
    turn = work.guest.with_(PATH=path).record("broken", work.workspace).recorded("broken")
    assert work.recorded_bytes(turn, "big.bin") == b"x" * 1000


@pytest.mark.slow
@needs_lfs
def test_contents_that_the_mirror_refuses_are_named(lfs_node: Node, work: Work, tmp_path: Path) -> None:
    """They are larger than it takes: the turn is recorded with their pointers, and code 3 says so."""
    urls = [lfs_node.upstream.url(WIDGETS)]
    with Serve(tmp_path / "small", repos=urls, refresh=SETTLED, recording={"max_push": "200KiB"}).start() as serve:
        serve.wait_for_repo(WIDGETS)
        work.write("big.bin", os.urandom(400_000))
        here = work.guest.with_(GITMIRROR_HTTP=serve.http_url, GITMIRROR_GIT=serve.git_url)
        done = here.record("big", work.workspace)
        turn = done.recorded("big", code=3)
        assert "contents of new LFS files" in done.err
        assert b"git-lfs" in git_bytes("show", f"{turn}:big.bin", cwd=serve.mirror(WIDGETS))[1]


def check_out(work: Work, name: str) -> Path:
    """Check a submodule out."""
    work.git("submodule", "--quiet", "update", "--init", name)
    return work.workspace / name


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_submodule_is_recorded_in_its_own_mirror(lfs_node: Node, tmp_path: Path, shell: str) -> None:
    """Its commits and what is not committed, under the session's name; the workspace has the link to them."""
    guest = guest_of(lfs_node, tmp_path / "home", shell)
    guest.hydrate(guest.home / "ws").hydrated(via="snapshot")
    work = Work(lfs_node, guest, guest.home / "ws")
    session = f"sub-{shell}"
    lib = check_out(work, "lib")
    assert guest.record(session, work.workspace).out == "recorded nothing\n"
    (lib / "mine.txt").write_text("mine\n")
    work.git("add", "-A", cwd=lib)
    work.git("commit", "--quiet", "-m", "by hand", cwd=lib)
    (lib / "lib.txt").write_text("changed\n")
    turn = guest.record(session, work.workspace).recorded(session)
    inner = refs(lfs_node.serve.mirror(LIB))[f"refs/agents/{session}"]
    assert work.recorded_bytes(inner, "mine.txt", LIB) == b"mine\n"
    assert work.recorded_bytes(inner, "lib.txt", LIB) == b"changed\n"
    assert inner in git("ls-tree", turn, "lib", cwd=lfs_node.serve.mirror(WIDGETS))
    assert work.git("status", "--porcelain", "--ignore-submodules=none") == ""
    assert work.git("rev-parse", "HEAD", cwd=lib) == inner
    assert guest.record(session, work.workspace).out == "recorded nothing\n"

    # Committed as a whole by the agent itself.
    (lib / "third.txt").write_text("3\n")
    work.git("add", "-A", cwd=lib)
    work.git("commit", "--quiet", "-m", "third", cwd=lib)
    work.git("commit", "--quiet", "-a", "-m", "moved")
    guest.record(session, work.workspace).recorded(session)
    assert refs(lfs_node.serve.mirror(LIB))[f"refs/agents/{session}"] == work.git("rev-parse", "HEAD", cwd=lib)


def test_a_submodule_that_is_not_mirrored_is_named(work: Work) -> None:
    """Untouched it is no matter; with a change code 3 says which, and nothing is committed in it."""
    far = check_out(work, "far")
    head = work.git("rev-parse", "HEAD", cwd=far)
    assert work.guest.record("far", work.workspace).out == "recorded nothing\n"
    (far / "mine.txt").write_text("mine\n")
    done = work.guest.record("far", work.workspace)
    assert (done.code, done.out) == (3, "recorded nothing\n")
    assert "submodule far: its repository is not mirrored here" in done.err
    work.write("new.txt", b"new\n")
    work.guest.record("far", work.workspace).recorded("far", code=3)
    assert work.git("rev-parse", "HEAD", cwd=far) == head
    work.git("add", "-A", cwd=far)
    work.git("commit", "--quiet", "-m", "mine", cwd=far)
    done = work.guest.record("far", work.workspace)
    done.recorded("far", code=3)
    assert "submodule far" in done.err


def test_the_next_guest_gets_a_submodule_as_it_was_recorded(work: Work, tmp_path: Path) -> None:
    """By the redirect, since no upstream has that commit."""
    lib = check_out(work, "lib")
    (lib / "mine.txt").write_text("mine\n")
    work.guest.record("next", work.workspace).recorded("next")
    other = guest_of(work.node, tmp_path / "other")
    again = Work(work.node, other, other.home / "again")
    other.hydrate(again.workspace, "session:next").hydrated(via="snapshot")
    assert other.run("gitmirror_redirect").code == 0
    assert (check_out(again, "lib") / "mine.txt").read_text() == "mine\n"
