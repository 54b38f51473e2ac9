"""A heal that is killed: the mirror is whole under its name or as it was, and the next heal ends the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from appliance.core.integrity import exchange
from appliance.core.integrity.evidence import MOST_KEPT, Evidence, prune
from appliance.core.integrity.exchange import NEW, READY, UNFINISHED, building, replace, settle
from tests.conftest import WIDGETS
from tests.git.lab import followed
from tests.integrity.conftest import Scene, kept
from tests.integrity.test_matrix import packs, truncate
from tests.recording.conftest import AGENTS
from tests.support.forked import run_forked
from tests.support.gitutil import clean_env, fsck, refs
from tests.support.serve import ROOT

STRIDE = 1 if os.environ.get("HEAL_KILLS") == "all" else 14
"""A heal has some 80 steps. Each kill takes a second, so the suite kills at every 14th; HEAL_KILLS=all at each."""


def heal_until(base: Path, step: int, how: str) -> subprocess.CompletedProcess[bytes]:
    """Have a process heal it and die at a step; 0 for none."""
    env = {**clean_env(base), "PYTHONPATH": str(ROOT)}
    argv, module = [str(base), str(step), how], "tests.integrity.heal_once"
    return run_forked(argv, module=module, env=env, cwd=ROOT, input=None, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_kill_at_any_step_does_no_harm(recorded_base: Path, tmp_path: Path, how: str) -> None:
    """The pack is cut off, the refs are damaged, and a turn's object is gone, so that every part of a heal has work."""
    first, lost = damaged(recorded_base, tmp_path / "first")
    before = kept_of(recorded_base)
    done = heal_until(first, 0, how)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 30
    # From the end, where the new mirror is put into place. Without the exchange, only those steps differ.
    first_step, stride = (1, STRIDE) if how == "exchange" else (steps - 25, max(1, STRIDE // 2))
    for step in range(steps, first_step - 1, -stride):
        base, _ = damaged(recorded_base, tmp_path / "again")
        killed = heal_until(base, step, how)
        assert killed.returncode == -signal.SIGKILL, (step, killed.stdout, killed.stderr)
        scene = Scene(base)
        try:
            assert (scene.path / "objects").is_dir(), f"step {step}: the mirror is not there"
            found = scene.inspect()
            if set(found.lost_refs) != lost or len(found.faults) > len(lost):
                scene.heal(found)
            assert kept(scene.path) == {ref: oid for ref, oid in before.items() if ref not in lost}, f"step {step}"
            assert followed(scene.path) == followed(scene.upstream), f"step {step}"
            fsck(scene.path)
            assert not scene.layout.healing.exists()
            assert not (scene.path / NEW).exists()
        finally:
            scene.close()
        shutil.rmtree(base)


def kept_of(base: Path) -> dict[str, str]:
    """The refs of recorded work in a state directory that nobody owns."""
    return kept(base / "state" / "mirrors" / f"{WIDGETS}.git")


def damaged(recorded: Path, base: Path) -> tuple[Path, set[str]]:
    """A copy with much damage, and the refs that it costs."""
    shutil.copytree(recorded, base, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    scene = Scene(base)
    old = scene.recorded["refs/gitmirror/archive/old"]
    scene.object_of(old).unlink()
    lost = {ref for ref, oid in scene.recorded.items() if oid == old}
    truncate(packs(scene)[0], 0.97)
    (scene.path / AGENTS / "one").write_bytes(b"")
    (scene.path / "HEAD").unlink()
    scene.close()
    return base, lost


# The exchange


def new_mirror(scene: Scene, stage: str | None) -> Path:
    """A repository in the place where a heal builds it."""
    new = building(scene.layout, WIDGETS)
    shutil.copytree(scene.path, new)
    (new / "is-new").touch()
    if stage is not None:
        (new / NEW).write_text(stage)
    return new


def evidence_of(scene: Scene) -> list[Path]:
    """The damaged mirrors that are kept."""
    return list(scene.layout.evidence.glob(f"{WIDGETS}.*/mirror.git*"))


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_old_one_is_kept_and_can_still_be_read(
    scene: Scene, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest's git has the old directory open as its working directory."""
    if not exchanges:
        monkeypatch.setattr(exchange, "_exchange", lambda one, other: False)
    new_mirror(scene, UNFINISHED)
    argv = ["sh", "-c", "read -r _; exec git rev-list --objects --all --quiet"]
    reader = subprocess.Popen(argv, cwd=scene.path, stdin=subprocess.PIPE)
    replace(scene.layout, WIDGETS, Evidence(scene.layout, WIDGETS))
    assert reader.stdin is not None
    reader.stdin.write(b"\n")
    reader.stdin.close()
    assert reader.wait(timeout=60) == 0
    assert (scene.path / "is-new").exists() and not (scene.path / NEW).exists()
    [old] = evidence_of(scene)
    assert not (old / "is-new").exists() and refs(old) == refs(scene.path)


def test_an_unfinished_mirror_is_removed(scene: Scene) -> None:
    new_mirror(scene, UNFINISHED)
    assert settle(scene.layout) == [f"{WIDGETS}: the unfinished heal was undone"]
    assert not (scene.path / "is-new").exists() and not scene.layout.healing.exists()
    assert settle(scene.layout) == []


@pytest.mark.parametrize("is_written", [False, True])
def test_a_finished_one_takes_the_place_of_one_that_is_in_evidence(scene: Scene, is_written: bool) -> None:
    """Killed between the two renames, where the file system has no exchange."""
    new_mirror(scene, READY)
    Evidence(scene.layout, WIDGETS).take(scene.path, "mirror.git")
    if is_written:
        # Somebody wrote a config there, before the start came to this.
        scene.mirror.configure(scene.repo.url)
    settle(scene.layout)
    assert (scene.path / "is-new").exists() and not (scene.path / NEW).exists()
    assert any(len(refs(path)) > 5 for path in evidence_of(scene) if (path / "HEAD").exists())


def test_what_was_exchanged_is_put_into_evidence(scene: Scene) -> None:
    new = new_mirror(scene, READY)
    exchange._exchange(new, scene.path)
    settle(scene.layout)
    assert (scene.path / "is-new").exists() and not (scene.path / NEW).exists()
    [old] = evidence_of(scene)
    assert not (old / "is-new").exists()


# Evidence


def test_evidence_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number for each repository, and by the disk; the oldest goes first."""
    made = []
    for number in range(MOST_KEPT + 2):
        path = scene.layout.evidence / f"{WIDGETS}.2026010{number + 1}T000000000Z"
        path.mkdir(parents=True)
        (path / "pack").write_bytes(bytes(2**16))
        made.append(path)
    other = scene.layout.evidence / "acme" / "other.20250101T000000000Z"
    other.mkdir()
    prune(scene.layout)
    assert [path.exists() for path in made] == [False] * 2 + [True] * MOST_KEPT
    assert other.exists()
    monkeypatch.setattr("appliance.core.integrity.evidence.SHARE", 0.0)
    prune(scene.layout, spared=made[-1])
    assert [path for path in (*made, other) if path.exists()] == [made[-1]]
    prune(scene.layout)
    assert list(scene.layout.evidence.iterdir()) == []
