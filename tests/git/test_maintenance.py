"""Maintenance on a real mirror: small and quick after it, with everything in it that anybody may ask for."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.git.ref_sets import ANCHORS, TIPS
from appliance.core.maintenance import anchors, maintainer
from appliance.core.maintenance.anchors import ANCHOR_AGE
from appliance.core.maintenance.maintainer import (
    DAY,
    MOST_LOOSE,
    MOST_LOOSE_REFS,
    MOST_PACKS,
    Clutter,
    measure_clutter,
)
from appliance.core.models import Repo
from tests.git.lab import NAME, Keeper, Lab, anchored, followed
from tests.support.generate import add_commit, force_push
from tests.support.gitutil import commit_files, fsck, git, git_result, refs, wait_until

WEEK = 7 * 86400.0
Clock = Callable[[], float]


@pytest.fixture
def repo(lab: Lab, widgets_bare: Path) -> Repo:
    """A mirrored repository."""
    made = lab.repo(widgets_bare)
    lab.refresh(made)
    return made


def keeper(lab: Lab, repo: Repo, clock: Clock = time.time, locks: MirrorLocks | None = None) -> Keeper:
    """Return a maintainer of the mirror with its own locks."""
    return lab.maintainer(repo, locks=locks or MirrorLocks(), clock=clock)


def pile_up(lab: Lab, upstream: Path, *, packs: int, loose: int) -> None:
    """Let the mirror look as after that many fetches, large and small."""
    mirror = lab.mirror().path
    for number in range(packs):
        tip = add_commit(upstream, "main", {f"pack-{number}": f"{number}\n" * 50})
        git("-c", "fetch.unpackLimit=1", "fetch", "--quiet", str(upstream), f"{tip}:refs/heads/main", cwd=mirror)
    for number in range(loose):
        (mirror.parent / f"blob-{number}").write_text(f"loose {number}\n")
    names = "".join(f"{mirror.parent}/blob-{number}\n" for number in range(loose))
    blobs = git("hash-object", "-w", "--stdin-paths", cwd=mirror, input=names).splitlines()
    entries = "".join(f"100644 blob {oid}\tfile-{number}\n" for number, oid in enumerate(blobs))
    if blobs:
        tree = git("mktree", cwd=mirror, input=entries)
        commit = git("commit-tree", "-m", "Loose", tree, cwd=mirror)
        git("update-ref", "refs/agents/loose", commit, cwd=mirror)


def test_clutter_is_counted(lab: Lab, repo: Repo, widgets_bare: Path) -> None:
    """Packs, loose objects and files of refs; an empty repository has none."""
    pile_up(lab, widgets_bare, packs=3, loose=50)
    clutter = measure_clutter(lab.mirror().path)
    assert clutter.packs == 4
    assert 52 <= clutter.loose <= 60
    assert clutter.loose_refs == len(refs(lab.mirror().path))
    lab.run(lab.mirror("acme/empty").initialise("/nowhere"))
    assert measure_clutter(lab.mirror("acme/empty").path) == Clutter(0, 0, 0)


@pytest.mark.parametrize(
    ("clutter", "repack", "pack_refs"),
    [
        (Clutter(MOST_PACKS, MOST_LOOSE, MOST_LOOSE_REFS), False, False),
        (Clutter(MOST_PACKS + 1, 0, 0), True, False),
        (Clutter(1, MOST_LOOSE + 1, 0), True, False),
        (Clutter(1, 0, MOST_LOOSE_REFS + 1), False, True),
    ],
)
def test_what_is_needed(clutter: Clutter, repack: bool, pack_refs: bool) -> None:
    """A mirror needs maintenance when it exceeds the bound by one."""
    assert (clutter.needs_repack, clutter.needs_packed_refs) == (repack, pack_refs)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["by need", "whole"])
def test_a_cluttered_mirror_becomes_small_and_stays_whole(
    lab: Lab, repo: Repo, widgets_bare: Path, whole: bool
) -> None:
    """Sixty packs and three hundred loose objects: few packs after it, fsck clean, every ref as it was."""
    pile_up(lab, widgets_bare, packs=60, loose=300)
    force_push(widgets_bare, "main", depth=3)
    lab.refresh(repo)
    mirror = lab.mirror().path
    before = refs(mirror)
    assert measure_clutter(mirror).needs_repack
    for_dumb_http = [mirror / "info/refs", mirror / "objects/info/packs"]
    for each in for_dumb_http:
        each.unlink(missing_ok=True)
    worker = keeper(lab, repo)
    assert lab.run(worker.room.maintain(repo, whole=whole))
    after = measure_clutter(mirror)
    assert after.packs <= (1 if whole else 3) and after.loose == 0 and after.loose_refs == 0
    assert refs(mirror) == before and anchored(mirror) and "refs/agents/loose" in before
    fsck(mirror)
    assert git("rev-list", "--count", "--use-bitmap-index", "--all", cwd=mirror)
    assert (mirror / "objects/info/commit-graph").exists() or (mirror / "objects/info/commit-graphs").exists()
    assert worker.columns["size"] == lab.mirror().disk_size()
    assert ("maintained_at" in worker.columns) is whole
    assert not any(each.exists() for each in for_dumb_http)
    assert lab.running == 0 and not list(mirror.glob("objects/pack/tmp_*"))


@pytest.mark.slow
def test_a_month_of_fetches_stays_small(lab: Lab, repo: Repo, widgets_bare: Path) -> None:
    """By need, again and again, with nights between: never more packs than the bound, and whole at every step."""
    worker = keeper(lab, repo)
    for round_number in range(4):
        pile_up(lab, widgets_bare, packs=8, loose=20 + round_number)
        assert lab.run(worker.room.maintain(repo, whole=round_number == 2))
        assert measure_clutter(lab.mirror().path).packs <= 6
        fsck(lab.mirror().path)
    assert lab.refresh(repo).head == "refs/heads/main"
    assert followed(lab.mirror().path) == followed(widgets_bare)


def test_unreachable_objects_are_kept_for_two_weeks(lab: Lab, repo: Repo, widgets_bare: Path) -> None:
    """A guest may be about to ask for what a force-push just dropped; what is old goes."""
    mirror = lab.mirror().path
    recent = _unreachable_commit(mirror, "recent", age=WEEK)
    old = _unreachable_commit(mirror, "old", age=3 * WEEK)
    # As the nights before have left it: every unreachable object in a pack that knows its age.
    git("repack", "--quiet", "--cruft", "--cruft-expiration=never", "-d", cwd=mirror)
    worker = keeper(lab, repo)
    # What is done by day must not make the old look new.
    pile_up(lab, widgets_bare, packs=10, loose=10)
    assert lab.run(worker.room.maintain(repo, whole=False))
    assert _has(mirror, recent) and _has(mirror, old)
    assert lab.run(worker.room.maintain(repo, whole=True))
    assert _has(mirror, recent) and not _has(mirror, old)
    fsck(mirror)


def test_a_maintained_mirror_serves_its_old_tips(lab: Lab, repo: Repo, widgets_bare: Path, tmp_path: Path) -> None:
    """By id, after a force-push and a whole repack."""
    old = refs(widgets_bare)["refs/heads/main"]
    force_push(widgets_bare, "main", depth=5)
    lab.refresh(repo)
    assert lab.run(keeper(lab, repo).room.maintain(repo, whole=True))
    guest = tmp_path / "guest"
    git("clone", "--quiet", f"file://{lab.mirror().path}", str(guest))
    git("fetch", "--quiet", "origin", old, cwd=guest)
    git("checkout", "--quiet", old, cwd=guest)


def test_anchors_end_after_their_days(lab: Lab, repo: Repo, widgets_bare: Path) -> None:
    """Counted from when they were first seen; refs of agents never end this way."""
    old = refs(widgets_bare)["refs/heads/main"]
    force_push(widgets_bare, "main")
    lab.refresh(repo)
    mirror = lab.mirror().path
    git("update-ref", "refs/agents/s1", old, cwd=mirror)
    now = 1_700_000_000.0
    worker = keeper(lab, repo, clock=lambda: now)
    lab.run(worker.room.maintain(repo, whole=True))
    assert worker.times == {f"{ANCHORS}{old}": now, f"{TIPS}{old}": now}
    now += ANCHOR_AGE
    newer = refs(widgets_bare)["refs/heads/main"]
    force_push(widgets_bare, "main")
    lab.refresh(repo)
    lab.run(worker.room.maintain(repo, whole=False))
    lab.run(worker.room.maintain(repo, whole=True))
    assert anchored(mirror) == {old, newer}
    now += 1
    lab.run(worker.room.maintain(repo, whole=True))
    assert anchored(mirror) == {newer} and set(worker.times.values()) == {now - 1}
    assert refs(mirror)["refs/agents/s1"] == old


def test_tips_that_are_shown_are_bounded(
    lab: Lab, repo: Repo, widgets_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound, receive-pack no longer advertises the oldest tips; they stay fetchable as anchors."""
    monkeypatch.setattr(anchors, "MOST_TIPS", 3)
    now = 1_700_000_000.0
    worker = keeper(lab, repo, clock=lambda: now)
    tips = []
    for _ in range(6):
        tips.append(refs(widgets_bare)["refs/heads/main"])
        force_push(widgets_bare, "main", depth=1)
        lab.refresh(repo)
        now += 60
        lab.run(worker.room.maintain(repo, whole=True))
    private = refs(lab.mirror().path)
    assert {name.removeprefix(TIPS) for name in private if name.startswith(TIPS)} == set(tips[-3:])
    assert anchored(lab.mirror().path) == set(tips)


@pytest.fixture
def slow_repack(lab: Lab, tmp_path: Path) -> Path:
    """A git that does everything as ever, but a repack only after a minute; the path appears when one began."""
    began = tmp_path / "began"
    real = shutil.which("git")
    wrapper = tmp_path / "slow" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\ncase "$1" in repack) touch {began}; sleep 60;; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    lab.put_before_git(wrapper.parent)
    return began


def test_a_push_takes_the_mirror_from_maintenance(lab: Lab, repo: Repo, slow_repack: Path, tmp_path: Path) -> None:
    """The repack is ended at once, the push goes through, and the repack is tried again later."""
    mirror = lab.mirror().path
    guest = tmp_path / "guest"
    git("clone", "--quiet", str(mirror), str(guest))
    recorded = commit_files(guest, {"work.txt": "1\n"}, "Work")

    async def push_meanwhile() -> bool:
        locks = MirrorLocks()
        worker = keeper(lab, repo, locks=locks)
        work = asyncio.create_task(worker.room.maintain(repo, whole=True))
        await asyncio.to_thread(wait_until, slow_repack.exists, message="the repack began")
        (mirror / "objects" / "pack" / ".tmp-1-pack-x.pack").write_bytes(b"half")
        async with locks.shared(NAME, preempt=True):
            await asyncio.to_thread(git, "push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest)
        assert worker.columns == {}
        return await work

    assert lab.run(push_meanwhile()) is False, "the repack was waited for"
    assert lab.running == 0
    assert refs(mirror)["refs/agents/s1"] == recorded
    assert not list(mirror.glob("objects/pack/.tmp-*"))
    fsck(mirror)


def test_stopping_ends_the_repack(lab: Lab, repo: Repo, slow_repack: Path) -> None:
    """serve that stops in the middle of the night leaves no git process."""

    async def stop_meanwhile() -> None:
        work = asyncio.create_task(keeper(lab, repo).room.maintain(repo, whole=False))
        await asyncio.to_thread(wait_until, slow_repack.exists, message="the repack began")
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    lab.run(stop_meanwhile())
    assert lab.running == 0


def _at(hour: int) -> float:
    return datetime(2024, 5, 17, hour, 30).timestamp()


def _watch(lab: Lab, worker: Keeper, until: Callable[[], object] | None = None) -> None:
    """Let the loop look at the mirror: until something came of it, or a good many times."""

    async def main() -> None:
        task = asyncio.create_task(worker.room.run())
        try:
            if until is None:
                await asyncio.sleep(0.3)
            else:
                await asyncio.to_thread(wait_until, until)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    lab.run(main())


def test_a_whole_repack_is_done_once_a_night(lab: Lab, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """At night and not by day, once, and again the next night."""
    monkeypatch.setattr(maintainer, "LOOK_EVERY", 0.01)
    now = _at(12)
    worker = keeper(lab, repo, clock=lambda: now)
    _watch(lab, worker)
    assert worker.columns == {}
    now = _at(3)
    _watch(lab, worker, lambda: "maintained_at" in worker.columns)
    first = worker.columns["maintained_at"]
    now += 3600
    _watch(lab, worker)
    assert worker.columns["maintained_at"] == first
    now += 86400 - 3600
    assert now - first > DAY
    _watch(lab, worker, lambda: worker.columns["maintained_at"] > first)


@pytest.mark.slow
def test_by_day_only_what_moved_and_is_cluttered_is_repacked(
    lab: Lab, repo: Repo, widgets_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that nobody wrote to is not even looked at; one with little in it is left alone."""
    monkeypatch.setattr(maintainer, "LOOK_EVERY", 0.01)
    worker = keeper(lab, repo, clock=lambda: _at(12))
    worker.room.mark(NAME)
    _watch(lab, worker)
    pile_up(lab, widgets_bare, packs=MOST_PACKS + 1, loose=0)
    _watch(lab, worker)
    assert worker.columns == {}
    worker.room.mark(NAME)
    _watch(lab, worker, lambda: worker.columns)
    assert measure_clutter(lab.mirror().path).packs < MOST_PACKS and "maintained_at" not in worker.columns


def _unreachable_commit(mirror: Path, text: str, *, age: float = 0.0) -> str:
    """Write a commit that no ref has, `age` seconds ago, and return its id."""
    tree = git("rev-parse", "refs/heads/main^{tree}", cwd=mirror)
    oid = git("commit-tree", "-m", text, tree, cwd=mirror)
    then = time.time() - age
    os.utime(mirror / "objects" / oid[:2] / oid[2:], (then, then))
    return oid


def _has(mirror: Path, oid: str) -> bool:
    return git_result("cat-file", "-e", oid, cwd=mirror)[0] == 0
