"""A first clone that takes long: it is up to date when it ends, and its lag counts from when that was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.models import Health
from appliance.core.refresh import refresher
from appliance.core.refresh.attempt import conclude
from tests.git.lab import Lab
from tests.support.generate import add_commit, copy_repository
from tests.support.gitutil import git


@pytest.fixture
def moving(tmp_path: Path, widgets_bare: Path) -> Path:
    """An upstream of this test alone."""
    copy_repository(widgets_bare, tmp_path / "upstream.git")
    return tmp_path / "upstream.git"


@pytest.mark.parametrize("is_long", [True, False], ids=["long", "quick"])
def test_what_moved_meanwhile_comes_along(
    lab: Lab, moving: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    """The upstream moves once the refs are listed. Only a long clone looks again, in the same refresh: it names every
    ref as new, and its lag counts from the second look."""
    monkeypatch.setattr(refresher, "LONG", 0.0 if is_long else 3600.0)
    repo, first = lab.repo(f"file://{moving}"), git("rev-parse", "main", cwd=moving)
    pushed: list[str] = []

    def move(line: str) -> None:
        if not pushed:
            pushed.append(add_commit(moving, "main", {"new.txt": "new\n"}))

    facts = lab.refresh(repo, on_progress=move)
    assert facts.tip == git("rev-parse", "main", cwd=lab.mirror().path) == (pushed[0] if is_long else first)
    assert (facts.asked_after > 0) == is_long and facts.size
    assert {change.ref for change in facts.moved} >= {"refs/heads/main"} and not any(each.old for each in facts.moved)
    ended = conclude(repo, Health(), facts, interval=60, duration=900.0, ended_at=2000.0)
    assert ended.health.verified_at == ended.health.checked_at == 1100.0 + facts.asked_after
    assert ended.outcome.started_at == 1100.0


def test_a_clone_stands_if_the_second_look_fails(lab: Lab, moving: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as old as the first look, and no failure."""
    monkeypatch.setattr(refresher, "LONG", 0.0)
    away: list[Path] = []

    def leave(line: str) -> None:
        if line.startswith("Resolving deltas: 100%") and not away:
            away.append(moving.rename(moving.with_name("away.git")))

    repo = lab.repo(f"file://{moving}")
    facts = lab.refresh(repo, on_progress=leave)
    assert away and facts.tip == git("rev-parse", "main", cwd=lab.mirror().path) and facts.asked_after == 0
