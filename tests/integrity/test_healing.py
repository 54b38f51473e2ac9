"""What a heal relies on besides the mirror: the upstream, the backup, the database, the disk; and pushes meanwhile."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from appliance.core.backup.writer import BackupWriter
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.integrity.evidence import Evidence
from appliance.core.integrity.healing import Healer
from appliance.core.integrity.inspection import Inspection
from appliance.core.models import Repo
from appliance.core.process.disk import Room
from tests.conftest import WIDGETS
from tests.git.lab import followed
from tests.integrity.conftest import Scene, kept
from tests.integrity.test_matrix import packs, remove
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS
from tests.support.gitutil import fsck, git, refs


def back_up(scene: Scene, to: Path) -> Path:
    """Make a backup."""
    scene.run(BackupWriter(scene.layout, scene.mirrors, scene.mirrors.locks).write(to))
    return to


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a blob of a turn", "objects", "everything", "refreshed"])
def test_what_the_mirror_lost_comes_from_the_backup(scene: Scene, tmp_path: Path, what: str) -> None:
    """Also when the mirror was cloned anew meanwhile, so that it is whole and only lacks recorded work."""
    before, backup = kept(scene.path), back_up(scene, tmp_path / "backup")
    if what == "a blob of a turn":
        scene.object_of(f"{AGENTS}two~1:turn.txt").unlink()
    else:
        remove(scene.path if what != "objects" else scene.path / "objects")
    if what == "refreshed":
        scene.refresh()
        assert kept(scene.path) == {}
    healing = scene.heal(scene.inspect(), backup)
    assert healing.whole and not healing.lost
    assert any("backup" in done for done in healing.done)
    assert kept(scene.path) == before
    assert followed(scene.path) == followed(scene.upstream)
    fsck(scene.path)
    assert scene.inspect(full=True) == Inspection()


def test_what_is_in_evidence_is_not_lost(scene: Scene) -> None:
    """As when a mirror that a heal had replaced was the only copy after all."""
    before = kept(scene.path)
    Evidence(scene.layout, WIDGETS).take(scene.path, "mirror.git")
    healing = scene.heal(scene.inspect())
    assert healing.whole and kept(scene.path) == before
    fsck(scene.path)


@pytest.mark.slow
def test_a_backup_that_is_damaged_or_gone_costs_only_itself(scene: Scene, tmp_path: Path) -> None:
    before, backup = kept(scene.path), back_up(scene, tmp_path / "backup")
    remove(scene.path)
    [turns] = backup.rglob("*-turns.bundle")
    turns.write_bytes(turns.read_bytes()[:-100])
    healing = scene.heal(scene.inspect(), backup)
    assert healing.lost == before
    shutil.rmtree(backup)
    assert scene.heal(scene.inspect(), backup).lost == before
    fsck(scene.path)


@pytest.mark.slow
def test_without_the_upstream_nothing_is_lost_yet(scene: Scene) -> None:
    """Refs are put back all the same; what needs the upstream is healed later."""
    before = kept(scene.path)
    scene.object_of("main:NEWS").unlink()
    git("pack-refs", "--all", cwd=scene.path)
    (scene.path / "packed-refs").unlink()
    away = scene.upstream.rename(scene.upstream.with_name("away.git"))
    healing = scene.heal(scene.inspect())
    assert kept(scene.path) == before
    away.rename(scene.upstream)
    scene.refresh()

    scene.object_of(f"{AGENTS}two").unlink()
    away = scene.upstream.rename(scene.upstream.with_name("away.git"))
    healing = scene.heal(scene.inspect())
    assert not healing.whole and not healing.lost
    assert healing.remaining and "lacks objects" in healing.remaining and "no new mirror" in healing.remaining
    away.rename(scene.upstream)
    healing = scene.heal(scene.inspect())
    assert set(healing.lost) == {ref for ref, oid in before.items() if oid == before[f"{AGENTS}two"]}
    fsck(scene.path)


def test_a_full_disk_is_said_before_anything_is_fetched(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.object_of("main").unlink()
    before = refs(scene.path)
    monkeypatch.setattr("appliance.core.integrity.healing.room_of", lambda _: Room(2**20, None))
    healing = scene.heal(scene.inspect())
    assert not healing.whole and not healing.lost and not scene.layout.healing.exists()
    assert refs(scene.path) == before


def test_no_heal_without_the_database(scene: Scene) -> None:
    """Only it knows what was recorded."""
    scene.object_of("main").unlink()
    found, before = scene.inspect(), refs(scene.path)
    scene.stores.database.close()
    scene.layout.database.rename(scene.layout.state / "aside.db")
    with pytest.raises(GitmirrorError, match="database"):
        scene.heal(found)
    assert refs(scene.path) == before


@pytest.mark.slow
def test_what_is_pushed_and_ended_during_a_heal_counts(scene: Scene) -> None:
    """The new mirror is built while guests push to the old one and sessions end."""
    for pack in packs(scene):
        pack.with_suffix(".idx").unlink()
        pack.unlink()
    before = kept(scene.path)
    gone = scene.stores.sessions.applied(WIDGETS, "two")

    async def fetch_then_push(mirror: Mirror, repo: Repo) -> None:
        await scene.fetch(mirror, repo)
        oid = git("hash-object", "-w", "--stdin", cwd=scene.path, input="pushed meanwhile")
        tree = git("mktree", cwd=scene.path, input=f"100644 blob {oid}\tnew\n")
        commit = git("commit-tree", "-m", "new", tree, cwd=scene.path)
        git("update-ref", f"{AGENTS}new", commit, cwd=scene.path)
        git("update-ref", f"{TURNS}999", commit, cwd=scene.path)
        for ref in (f"{AGENTS}two", *(f"{TURNS}{number}" for number in gone)):
            git("update-ref", "-d", ref, cwd=scene.path)
        scene.stores.sessions.end(WIDGETS, {"two": max(gone)}, "dropped", time.time())

    healer = Healer(scene.mirrors, scene.layout, scene.stores, fetch_then_push)
    healing = scene.run(healer.heal(scene.repo, Inspection(("x",))))
    after = kept(scene.path)
    assert healing.whole
    assert after[f"{AGENTS}new"] == after[f"{TURNS}999"]
    ended = {f"{AGENTS}two", *(f"{TURNS}{number}" for number in gone)}
    assert after.keys() == (before.keys() - ended) | {f"{AGENTS}new", f"{TURNS}999"}
    assert f"{ARCHIVE}old" in after
    fsck(scene.path)


def test_who_moved_a_session_is_still_known(scene: Scene) -> None:
    """The reflog, from which the outcome of an open push is known."""
    log = (scene.path / "logs" / AGENTS / "two").read_bytes()
    assert log.count(b"\n") == 2
    scene.object_of("main").unlink()
    assert scene.heal(scene.inspect()).whole
    assert (scene.path / "logs" / AGENTS / "two").read_bytes() == log


def test_a_mirror_of_private_content_stays_marked(scene: Scene) -> None:
    scene.mirror.mark(scene.repo.url)
    scene.object_of("main").unlink()

    async def keep_mark(mirror: Mirror, repo: Repo) -> None:
        assert (mirror.path / "fetched-with-credential").read_text() == f"{repo.url}\n"
        await scene.fetch(mirror, repo)
        mirror.mark(repo.url)

    healer = Healer(scene.mirrors, scene.layout, scene.stores, keep_mark)
    assert scene.run(healer.heal(scene.repo, scene.inspect())).whole
    assert (scene.path / "fetched-with-credential").exists()


def test_a_whole_mirror_stays_as_it_is(scene: Scene) -> None:
    """As when a session ended while it was looked for."""
    before = {path: path.read_bytes() for path in scene.path.rglob("*") if path.is_file()}
    healing = scene.heal(Inspection((f"{AGENTS}gone is lost",), {f"{AGENTS}gone": "1" * 40}))
    assert healing.whole and not healing.done and healing.evidence is None
    assert {path: path.read_bytes() for path in scene.path.rglob("*") if path.is_file()} == before
