"""The parts that send: what a bundle leaves out, how an undone move is seen, and what a guest is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.core.fleet import bundles
from appliance.core.fleet.bundles import make_bundle
from appliance.core.fleet.pauses import Waits
from appliance.core.git.command import Git
from appliance.core.git.mirror import Mirror
from appliance.core.git.reflog import Move, put_back, read_moves, was_moved
from appliance.core.models import RefCommand
from appliance.core.process.children import Children
from appliance.core.serving.wire.requests import ReportReader
from tests.support.gitutil import commit_files, git, refs
from tests.support.pkt import FLUSH, pkt

ZERO, A, B, C = "0" * 40, "a" * 40, "b" * 40, "c" * 40


@pytest.mark.parametrize(
    ("moves", "current", "moved"),
    [
        ([Move(A, B, "p")], B, True),
        ([Move(A, B, "p"), Move(B, A, "undone.p")], A, False),
        # The line was written, and git was killed before the ref went back.
        ([Move(A, B, "p"), Move(B, A, "undone.p")], B, True),
        ([Move(A, B, "p"), Move(B, A, "undone.p"), Move(A, C, "q")], C, False),
        ([Move(A, B, "p"), Move(B, A, "undone.p"), Move(B, C, "q")], C, True),
        # A push that died before it moved the ref left a line in between.
        ([Move(A, B, "p"), Move(B, C, "q"), Move(B, A, "undone.p")], A, False),
        # The same commit was pushed again and stayed.
        ([Move(A, B, "p"), Move(B, A, "undone.p"), Move(A, B, "q")], B, False),
    ],
)
def test_a_move_that_was_undone_is_none(moves: list[Move], current: str, moved: bool) -> None:
    assert was_moved(moves, "p", B, current) is moved


def mirror_of(path: Path, *, home: Path) -> Mirror:
    """A bare clone, with git as `serve` runs it."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}
    home.mkdir(exist_ok=True)
    return Mirror(path, Git(Children(home / "children", os.open(home, os.O_RDONLY | os.O_CLOEXEC)), environment))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A repository with a branch beside its own."""
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", str(work), cwd=tmp_path)
    commit_files(work, {"a": "1\n"}, "one")
    git("checkout", "-q", "-b", "main-feature", cwd=work)
    commit_files(work, {"feature": "1\n"}, "feature")
    return work


def clone(work: Path, tmp_path: Path) -> Mirror:
    """Its mirror, whose HEAD is at `main`."""
    git("clone", "-q", "--mirror", str(work), str(tmp_path / "m.git"), cwd=tmp_path)
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=tmp_path / "m.git")
    return mirror_of(tmp_path / "m.git", home=tmp_path / "home")


def test_a_bundle_does_not_need_a_branch_that_may_be_deleted(work: Path, tmp_path: Path) -> None:
    mirror = clone(work, tmp_path)
    main, feature = (git("rev-parse", name, cwd=work).strip() for name in ("main", "main-feature"))
    made = asyncio.run(make_bundle(mirror, feature, "refs/agents/s", tmp_path / "b"))
    assert made is not None and made.needs == (main,)
    assert made.size == (tmp_path / "b").stat().st_size
    assert asyncio.run(make_bundle(mirror, main, "refs/agents/s", tmp_path / "none")) is None
    assert not (tmp_path / "none").exists()


def test_with_many_commits_every_branch_counts(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = git("rev-parse", "main-feature", cwd=work).strip()
    turn = commit_files(work, {"turn": "1\n"}, "turn")
    mirror = clone(work, tmp_path)
    git("update-ref", "refs/heads/main-feature", feature, cwd=mirror.path)
    monkeypatch.setattr(bundles, "MOST_COMMITS", 1)
    made = asyncio.run(make_bundle(mirror, turn, "refs/agents/s", tmp_path / "b"))
    assert made is not None and made.needs == (feature,)


def test_a_mirror_of_an_empty_upstream(work: Path, tmp_path: Path) -> None:
    """Its HEAD names a branch that is not there: all of it is in the bundle."""
    mirror = clone(work, tmp_path)
    turn = git("rev-parse", "main-feature", cwd=work).strip()
    git("update-ref", "-d", "refs/heads/main", cwd=mirror.path)
    made = asyncio.run(make_bundle(mirror, turn, "refs/agents/s", tmp_path / "b"))
    assert made is not None and made.needs == ()


@pytest.mark.parametrize("existed", [False, True])
def test_a_ref_is_put_back_unless_it_moved_on(work: Path, tmp_path: Path, existed: bool) -> None:
    mirror, ref = clone(work, tmp_path), "refs/agents/s"
    main, feature = (git("rev-parse", name, cwd=work).strip() for name in ("main", "main-feature"))
    log = {"GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "p", **mirror.git.environment}

    def move(to: str) -> None:
        git("-c", "core.logAllRefUpdates=always", "update-ref", ref, to, cwd=mirror.path, env=log)

    if existed:
        move(main)
    move(feature)
    old = main if existed else ZERO
    asyncio.run(put_back(mirror, RefCommand(old, feature, ref), "p"))
    assert refs(mirror.path).get(ref) == (main if existed else None)
    assert was_moved(read_moves(mirror.path, ref), "p", feature, refs(mirror.path).get(ref)) is (
        False if existed else None
    )
    move(main)
    with pytest.raises(Exception, match="update-ref failed"):
        asyncio.run(put_back(mirror, RefCommand(old, feature, ref), "p"))
    assert refs(mirror.path)[ref] == main


REPORT = [
    b"unpack ok\n",
    b"ok refs/agents/a\n",
    b"ok refs/agents/b\n",
    b"option forced-update\n",
    b"ok refs/agents/c\n",
]


def told(capabilities: frozenset[str], withdrawn: Mapping[str, str]) -> bytes:
    """What a guest gets of REPORT."""
    report = b"".join(map(pkt, REPORT)) + FLUSH
    reader = ReportReader(capabilities)
    reader.feed(pkt(b"\1" + report) + FLUSH if "side-band-64k" in capabilities else report)
    return reader.answer(withdrawn)


@pytest.mark.parametrize("capabilities", [frozenset({"report-status"}), frozenset({"report-status", "side-band-64k"})])
def test_the_report_says_which_refs_were_withdrawn(capabilities: frozenset[str]) -> None:
    said = told(capabilities, {"refs/agents/b": "no"})
    assert b"ok refs/agents/a\n" in said and b"ok refs/agents/c\n" in said
    assert b"ng refs/agents/b no\n" in said and b"ok refs/agents/b" not in said
    assert b"option" not in said, "a ref that was refused has none"
    if "side-band-64k" not in capabilities:
        expected = [REPORT[0], REPORT[1], b"ng refs/agents/b no\n", REPORT[4]]
        assert said == b"".join(map(pkt, expected)) + FLUSH
    else:
        assert b"\2gitmirror: refs/agents/b: no\n" in said and said.endswith(FLUSH)


def test_a_report_without_withdrawn_refs_passes_unchanged() -> None:
    report = b"".join(map(pkt, REPORT)) + FLUSH
    assert told(frozenset({"report-status"}), {}) == report


def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("appliance.core.fleet.pauses.time.monotonic", lambda: now[0])
    waits = Waits[str]((1.0, 3.0))
    for pause in (1.0, 2.0, 3.0, 3.0):
        waits.add("x", "why")
        now[0] += pause - 0.1
        assert waits.has("x")
        now[0] += 0.2
        assert not waits.has("x")
    assert (waits.things(), waits.reasons()) == (["x"], ["why"])
    waits.end("x")
    assert not waits.things()
