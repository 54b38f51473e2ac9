"""Clones through the cache have the same content as clones from a stock `git daemon` on the same mirror."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import Node
from tests.serving.fetch.conftest import Counting, GatedNode, a_cold_shape, contents_of, guest_env, wait_kept
from tests.support.gitutil import fsck, git, wait_until
from tests.support.serve import Serve
from tests.support.upstream import GitDaemonUpstream

SINCE = "--shallow-since=2020-09-14T02:00:00+0000"
SHAPES: dict[str, tuple[str, ...]] = {
    "full": (),
    "mirror": ("--mirror",),
    "depth 1": ("--depth=1",),
    "depth 1, blob:none": ("--depth=1", "--filter=blob:none"),
    "blob:none": ("--filter=blob:none",),
    "blob:none, no checkout": ("--filter=blob:none", "--no-checkout"),
    "tree:0": ("--filter=tree:0", "--no-checkout"),
    "blob:limit": ("--filter=blob:limit=1k", "--no-checkout"),
    "combined filters": ("--filter=combine:blob:limit=1k+tree:3", "--no-checkout"),
    "single branch": ("--single-branch", "--branch=develop"),
    "single branch, no tags": ("--single-branch", "--no-tags", "--branch=release/1.0"),
    "depth 3": ("--depth=3", "--no-single-branch"),
    "shallow since": (SINCE,),
    "a tag": ("--depth=1", "--branch=v0.2"),
}


def clone(url: str, path: Path, options: Sequence[str]) -> Path:
    """Clone in protocol v2, whatever the machine's git would take."""
    git("-c", "protocol.version=2", "clone", "--quiet", *options, url, str(path), timeout=120)
    return path


def url_of(serve: Serve, protocol: str, repo: str = WIDGETS) -> str:
    """Where guests find a repository."""
    return f"{serve.git_url if protocol == 'git' else serve.http_url}/{repo}"


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_a_clone_equals_one_from_git_daemon(
    node: Node, stock: GitDaemonUpstream, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Refs, objects, shallow commits and index are those that git daemon gives; first and hit, git:// and HTTP."""
    expected = contents_of(clone(stock.url(f"{WIDGETS}.git"), tmp_path / "stock", options))
    # Whoever made the first answers of this shape: those that follow are hits alone.
    assert contents_of(clone(url_of(node.serve, "http"), tmp_path / "first", options)) == expected
    wait_kept(node.serve)
    counting = Counting(node.serve)
    for number, protocol in enumerate(("git", "http")):
        path = clone(url_of(node.serve, protocol), tmp_path / f"hit{number}", options)
        fsck(path)
        assert contents_of(path) == expected
        if "--no-checkout" not in options and "--mirror" not in options:
            assert git("status", "--porcelain", cwd=path) == ""
    fsck(tmp_path / "first")
    assert counting.since().keys() == {"hits"}


@pytest.mark.parametrize(("kind", "depth"), [("main~7", "1"), ("main~7", "0"), ("v0.0", "2"), ("main:README.md", "0")])
def test_a_fetch_by_object_id_equals_one_from_git_daemon(
    node: Node, stock: GitDaemonUpstream, tmp_path: Path, kind: str, depth: str
) -> None:
    """An old commit, a tag and a blob, asked for by id: the same objects and the same shallow commits."""
    oid = git("rev-parse", kind, cwd=node.mirror)
    options = [f"--depth={depth}"] if depth != "0" else []
    urls = [stock.url(f"{WIDGETS}.git"), url_of(node.serve, "git"), url_of(node.serve, "http")]
    found = []
    counting = Counting(node.serve)
    for number, url in enumerate(urls):
        work = tmp_path / f"work{number}"
        git("init", "--quiet", "--bare", str(work))
        git("-c", "protocol.version=2", "fetch", "--quiet", *options, url, f"{oid}:refs/kept/it", cwd=work)
        fsck(work)
        found.append(contents_of(work))
    assert found[1] == found[0] == found[2]
    assert counting.since().keys() <= {"hits", "misses", "joined"}


@pytest.mark.parametrize("protocol", ["git", "http"])
@pytest.mark.parametrize("version", [0, 1])
def test_older_protocols_give_the_same_clones(
    node: Node, stock: GitDaemonUpstream, tmp_path: Path, version: int, protocol: str
) -> None:
    """v0 and v1 are handed to git, on both ports."""
    for name in ("full", "shallow since"):
        urls = {"stock": stock.url(f"{WIDGETS}.git"), "ours": url_of(node.serve, protocol)}
        for whose, url in urls.items():
            options = ("-c", f"protocol.version={version}", "clone", "--quiet", *SHAPES[name])
            git(*options, url, str(tmp_path / name / whose))
        assert contents_of(tmp_path / name / "ours") == contents_of(tmp_path / name / "stock")
        fsck(tmp_path / name / "ours")


@pytest.mark.parametrize("protocol", ["git", "http"])
@pytest.mark.slow
def test_what_follows_a_clone_is_right_too(node: Node, stock: GitDaemonUpstream, tmp_path: Path, protocol: str) -> None:
    """Deepening, unshallowing, fetching more branches and old blobs: responses that depend on the guest's objects."""
    urls = {"stock": stock.url(f"{WIDGETS}.git"), "ours": url_of(node.serve, protocol)}
    for whose, url in urls.items():
        # The maintenance that a fetch of git 2.55 leaves in the background rewrites .git/shallow under the next fetch,
        # which then dies ("shallow file has changed since we read it"), whoever serves.
        shallow = clone(url, tmp_path / whose / "shallow", ("--depth=1", "--config=maintenance.auto=false"))
        git("fetch", "--quiet", "--deepen=3", cwd=shallow)
        git("fetch", "--quiet", "--shallow-exclude=v0.2", "origin", "main", cwd=shallow)
        git("fetch", "--quiet", "origin", "refs/heads/*:refs/remotes/origin/*", cwd=shallow)
        git("fetch", "--quiet", "--unshallow", cwd=shallow)
        lazy = clone(url, tmp_path / whose / "lazy", ("--filter=tree:0",))
        git("checkout", "--quiet", "HEAD~9", cwd=lazy)
        git("fetch", "--quiet", "--no-auto-maintenance", "--refetch", "--filter=blob:limit=500", cwd=lazy)
    for name in ("shallow", "lazy"):
        fsck(tmp_path / "ours" / name)
        assert contents_of(tmp_path / "ours" / name) == contents_of(tmp_path / "stock" / name)


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_guests_that_join_an_answer_get_the_same_bytes(gated_node: GatedNode, tmp_path: Path, protocol: str) -> None:
    """One upload-pack, stopped midway; who comes then joins, on either port, and all clones are whole and equal."""
    node, shape = gated_node, a_cold_shape()
    node.gate.close()
    before, counting = node.gate.packing(), Counting(node.serve)
    protocols = [protocol, "git", "http"]
    guests = []
    for number, each in enumerate(protocols):
        argv = ["git", "clone", "--quiet", shape, url_of(node.serve, each), str(tmp_path / f"clone{number}")]
        guests.append(subprocess.Popen(argv, env=guest_env(tmp_path), stderr=subprocess.PIPE))
        wait_until(lambda: sum(counting.since().values()) > number, message="it has asked")  # noqa: B023
    assert counting.since() == {"misses": 1, "joined": 2}
    assert [each.poll() for each in guests] == [None] * 3
    node.gate.open()
    assert [(each.communicate(timeout=60)[1], each.returncode) for each in guests] == [(b"", 0)] * 3
    assert len(node.gate.packing() - before) == 1, "one upload-pack"
    reference = contents_of(clone(str(node.mirror), tmp_path / "reference", ("--no-local", "--single-branch")))
    for number in range(3):
        fsck(tmp_path / f"clone{number}")
        assert contents_of(tmp_path / f"clone{number}") == reference
