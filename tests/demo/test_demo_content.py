"""What the demo is about: the plans of sessions fit the repositories, and the same seed gives the same history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.demo.agents import Agent
from appliance.demo.content import Project, read_projects
from appliance.demo.history import ProjectHistory
from tests.support.generate import create_repository
from tests.support.gitutil import fsck, git, git_bytes

PROJECTS = read_projects()
NOW = 1_800_000_000.0


def make(project: Project, path: Path) -> Path:
    """The upstream of a project, with its past and one more commit."""
    history = ProjectHistory(project, 7)
    for stream in (history.past(NOW), history.next(NOW)):
        code, _, said = git_bytes("fast-import", "--quiet", cwd=create_repository(path), input=stream)
        assert code == 0, said
    return path


@pytest.mark.parametrize("project", PROJECTS, ids=[project.name for project in PROJECTS])
def test_every_session_fits_its_repository(project: Project, tmp_path: Path) -> None:
    """Each edit applies to what the commits and the turns before have made, and Python's files stay valid."""
    bare = make(project, tmp_path / "upstream.git")
    fsck(bare)
    assert int(git("rev-list", "--count", "main", cwd=bare)) > 15
    assert git("tag", cwd=bare).split() == ["v1.0", "v1.1"]
    git("clone", "--quiet", str(bare), str(tmp_path / "workspace"))
    for turn in project.session.turns if project.session else ():
        for edit in turn.edits:
            path = tmp_path / "workspace" / edit.path
            path.parent.mkdir(exist_ok=True)
            path.write_text(edit.apply(path.read_text() if path.exists() else ""))
        assert git("status", "--porcelain", cwd=tmp_path / "workspace"), f"{turn.message} changes nothing"
        git("add", "--all", cwd=tmp_path / "workspace")
        git("commit", "--quiet", "--message", turn.message, cwd=tmp_path / "workspace")
    for path in (tmp_path / "workspace").rglob("*.py"):
        compile(path.read_text(), path, "exec")


def test_the_same_seed_gives_the_same_commits(tmp_path: Path) -> None:
    """To the byte; another one gives others."""
    project = PROJECTS[0]
    one, two = (make(project, tmp_path / name) for name in ("one.git", "two.git"))
    assert git("rev-parse", "main", cwd=one) == git("rev-parse", "main", cwd=two)
    assert ProjectHistory(project, 8).past(NOW) != ProjectHistory(project, 7).past(NOW)


def test_there_is_one_upstream_that_fails_and_one_for_the_slow_guest() -> None:
    """And a session in every other."""
    assert [project.name for project in PROJECTS if project.is_flaky] == ["platform/infra"]
    assert [project.name for project in PROJECTS if project.pictures] == ["acme/storefront"]
    assert [project.name for project in PROJECTS if project.session is None] == ["platform/infra"]


@pytest.mark.parametrize("project", [project for project in PROJECTS if project.session], ids=lambda each: each.name)
def test_two_sessions_of_a_repository_differ(project: Project, tmp_path: Path) -> None:
    """The second leaves out the last turn, so that there is something to compare; the third has it again."""
    assert project.session is not None
    recorded: list[tuple[str, str]] = []

    class Guest:
        """Notes what is recorded at it."""

        disk = tmp_path

        async def hydrate(self, repo: str, want: str) -> Path:
            return tmp_path

        async def record(self, session: str, workspace: Path, message: str, *_: object) -> bool:
            recorded.append((session, message))
            return True

        def clear(self, workspace: Path) -> None:
            """The files of the session before stay, because the plan is not carried out."""

    async def think() -> None:
        pass

    guests: Any = [Guest(), Guest()]
    agent = Agent(project, project.session, guests, think)
    agent._edit = lambda *_: tmp_path  # type: ignore[method-assign]

    async def work() -> None:
        for _ in range(3):
            await agent.work()

    asyncio.run(work())
    name, messages = project.session.name, [turn.message for turn in project.session.turns]
    for session, expected in ((name, messages), (f"{name}-2", messages[:-1]), (f"{name}-3", messages)):
        assert [message for each, message in recorded if each == session] == expected and expected
