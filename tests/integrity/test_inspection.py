"""What `look` and `inspect` find, and what they must not call damage."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.integrity.inspection import MOST_FAULTS, Inspection, inspect, look
from appliance.core.integrity.recorded_refs import recorded_refs
from appliance.core.store.audit import Attempt
from tests.conftest import WIDGETS
from tests.integrity.conftest import Scene, kept
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until


def test_the_database_knows_every_ref_of_recorded_work(scene: Scene) -> None:
    assert scene.recorded == kept(scene.path)
    assert {ref for ref in scene.recorded if not ref.startswith(TURNS)} == {
        f"{AGENTS}one",
        f"{AGENTS}two",
        f"{ARCHIVE}old",
    }
    assert len([ref for ref in scene.recorded if ref.startswith(TURNS)]) == 7


def test_a_whole_mirror_has_no_faults(scene: Scene) -> None:
    assert scene.look() == scene.inspect() == scene.inspect(full=True) == Inspection()
    assert Inspection().damage is None


def test_ended_failed_and_open_work_is_not_missed(scene: Scene) -> None:
    """A session that was dropped, a push that failed, and a push that is running."""
    sessions, audit = scene.stores.sessions, scene.stores.audit
    tip = scene.recorded[f"{AGENTS}one"]
    ended = sessions.applied(WIDGETS, "two")
    sessions.end(WIDGETS, {"two": max(ended)}, "dropped", time.time())
    attempts = [
        Attempt("p", WIDGETS, f"{AGENTS}{name}", name, None, tip, "accepted", None, "c") for name in ("one", "bad")
    ]
    _, failed = audit.record_attempts(attempts)
    audit.record_outcomes([(failed, "failed", "no")])
    found = recorded_refs(scene.stores, WIDGETS)
    assert not any(f"{TURNS}{number}" in found for number in (*ended, failed))
    assert f"{AGENTS}two" not in found and f"{AGENTS}bad" not in found
    assert f"{AGENTS}one" not in found, "it may move at any moment"


def test_a_push_that_is_applied_and_not_booked_yet_counts(scene: Scene) -> None:
    audit, tip = scene.stores.audit, scene.recorded[f"{AGENTS}one"]
    [number] = audit.record_attempts([Attempt("p", WIDGETS, f"{AGENTS}new", "new", None, tip, "accepted", None, "c")])
    audit.record_outcomes([(number, "applied", None)])
    assert scene.recorded.items() >= {f"{TURNS}{number}": tip, f"{AGENTS}new": tip}.items()
    assert scene.look().lost_refs == {f"{TURNS}{number}": tip, f"{AGENTS}new": tip}


def test_a_session_may_be_in_the_archive_before_the_database_knows(scene: Scene) -> None:
    tip = scene.recorded[f"{AGENTS}one"]
    git("update-ref", f"{ARCHIVE}one", tip, cwd=scene.path)
    git("update-ref", "-d", f"{AGENTS}one", cwd=scene.path)
    assert not scene.look().faults


def test_objects_that_came_meanwhile_are_not_missing(scene: Scene) -> None:
    """fsck lists loose objects first and reads the refs last, so it calls missing what a push brought in between.

    A lease on the last loose object stops fsck in the middle: whoever opens the file waits until it is given up.
    """
    last = max(path for path in (scene.path / "objects").glob("[0-9a-f][0-9a-f]/*"))
    last.chmod(0o644)
    ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with last.open("r+b") as held, ThreadPoolExecutor(1) as pool:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        try:
            inspection = pool.submit(scene.inspect, full=True)
            wait_until(lambda: fcntl.fcntl(held, fcntl.F_GETLEASE) != fcntl.F_WRLCK, message="fsck reads the objects")
            tip = add_commit(scene.path, "main", {f"new-{n}.txt": f"{n}\n" for n in range(20)})
        finally:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, ignored)
    assert (scene.path / "objects" / tip[:2] / tip[2:]).exists(), "it would not be missed in a pack"
    assert inspection.result() == Inspection()
    (scene.path / "objects" / tip[:2] / tip[2:]).unlink()
    assert scene.inspect().faults


def test_a_session_that_moved_meanwhile_is_no_damage(scene: Scene) -> None:
    recorded, main = scene.recorded, git("rev-parse", "main", cwd=scene.path)
    git("update-ref", f"{AGENTS}one", main, cwd=scene.path)
    assert scene.run(look(scene.mirror, recorded)) == Inspection()


def test_a_session_that_fell_back_to_an_earlier_turn_is_lost(scene: Scene) -> None:
    """As when the loose file is gone, and packed-refs has an older value."""
    first = git("rev-parse", f"{AGENTS}two~1", cwd=scene.path)
    git("update-ref", f"{AGENTS}two", first, cwd=scene.path)
    assert scene.look().lost_refs == {f"{AGENTS}two": scene.recorded[f"{AGENTS}two"]}


def test_a_line_of_packed_refs_that_names_another_object_is_found(scene: Scene) -> None:
    git("pack-refs", "--all", cwd=scene.path)
    turn, oid = next((ref, oid) for ref, oid in scene.recorded.items() if ref.startswith(TURNS))
    packed = scene.path / "packed-refs"
    other = f"{(int(oid[0], 16) + 1) % 16:x}{oid[1:]}"
    packed.write_text(packed.read_text().replace(f"{oid} {turn}", f"{other} {turn}"))
    assert scene.look().lost_refs == {turn: oid}


def test_what_is_not_the_mirrors_fault_is_no_damage(scene: Scene, tmp_path: Path) -> None:
    """git that cannot be started, that has no memory or no descriptors, that is killed."""
    scene.object_of(f"{AGENTS}two").unlink()
    for body in ("exit 127", "echo fatal: Out of memory, malloc failed >&2; exit 128", "kill -9 $$"):
        fake = tmp_path / "git"
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{scene.git.environment['PATH']}"
        mirror = Mirror(scene.path, Git(scene.git.children, {**scene.git.environment, "PATH": path}))
        with pytest.raises(GitError):
            scene.run(inspect(mirror, scene.recorded, full=False))
    assert scene.inspect().faults


def test_what_makes_git_crash_is_damage(scene: Scene, tmp_path: Path) -> None:
    """SIGBUS: the disk cannot give a page of a file that git has mapped."""
    fake = tmp_path / "git"
    fake.write_text("#!/bin/sh\nkill -BUS $$\n")
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{scene.git.environment['PATH']}"
    mirror = Mirror(scene.path, Git(scene.git.children, {**scene.git.environment, "PATH": path}))
    assert scene.run(inspect(mirror, scene.recorded, full=False)).faults


def test_content_that_breaks_gits_rules_is_no_damage(scene: Scene) -> None:
    """Old commits of real repositories do, upstream as here."""
    tree = git("rev-parse", "main^{tree}", cwd=scene.path)
    bad = f"tree {tree}\nauthor A <a@b 1000 +0000\ncommitter A <a@b> 1000 +0000\n\nx\n"
    oid = git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", cwd=scene.path, input=bad)
    git("update-ref", "refs/heads/odd", oid, cwd=scene.path)
    assert scene.inspect(full=True) == Inspection()


def test_findings_are_bounded(scene: Scene) -> None:
    """A lost pack makes git name every object."""
    for pack in (scene.path / "objects" / "pack").iterdir():
        pack.unlink()
    found = scene.inspect()
    assert 1 < len(found.faults) <= MOST_FAULTS
    assert found.damage and found.damage.endswith(f"(and {len(found.faults) - 1} more)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_no_damage(scene: Scene) -> None:
    pack = next((scene.path / "objects" / "pack").glob("*.idx"))
    pack.chmod(0)
    with pytest.raises(GitError, match="cannot be read"):
        scene.inspect()


@pytest.mark.slow
def test_a_look_is_cheap(scene: Scene) -> None:
    """10,000 recorded refs, packed: well under 50 ms of CPU; and reading them from the database."""
    tip = scene.recorded[f"{AGENTS}one"]
    refs = {f"{TURNS}{number}": tip for number in range(10**6, 10**6 + 10_000)}
    git("update-ref", "--stdin", cwd=scene.path, input="".join(f"create {ref} {oid}\n" for ref, oid in refs.items()))
    git("pack-refs", "--all", cwd=scene.path)
    recorded = {**scene.recorded, **refs}

    async def measured() -> float:
        began = time.process_time()
        assert not (await look(scene.mirror, recorded)).faults
        return time.process_time() - began

    assert min(scene.run(measured()) for _ in range(5)) < 0.1
