"""Enter on a row: all that is known of it, in full; for a push that was recorded, the diff of its turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.units import rfc3339
from appliance.tui.data.activity import ActivityFeed
from appliance.tui.data.facts import facts_of, what_to_do
from appliance.tui.screens.dialogs import Whole
from appliance.tui.screens.diff import DiffScreen
from appliance.tui.screens.repository import RepositoryScreen
from tests.tui.drive import NARROW, Seen, drive
from tests.tui.scene import BROKEN, NOW, WIDGETS, Scene, build

ERROR = "git fetch failed: " + "fatal: the remote end hung up unexpectedly, " * 30 + "and that is the end of it"
FAILED = {
    "event": "refreshed", "at": rfc3339(NOW), "repo": WIDGETS, "result": "failed", "seconds": 2.5, "moved": [],
    "error": ERROR, "kind": "dns",
}  # fmt: skip
REFUSED = {
    "event": "pushed", "at": rfc3339(NOW), "repo": WIDGETS, "verdict": "rejected", "client": "10.0.3.2",
    "refs": ["refs/heads/main", "refs/tags/v1"], "reason": "branches and tags are the upstream's: push them there",
    "commits": ["5" * 40, None], "guest": "vm-7",
}  # fmt: skip


@pytest.fixture(scope="session")
def scene(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Scene:
    return Scene(make_once("scene", build))


async def open_newest(seen: Seen, event: dict[str, Any]) -> str:
    """Opens the row of an event that has just come, and returns what is said of it."""
    seen.app.context.model.activity.take([event])
    seen.app.context.follower.tell_rates()
    await seen.press("home", "enter")
    dialog = await seen.until(lambda: isinstance(seen.app.screen, Whole) and seen.app.screen, "it opens")
    assert isinstance(dialog, Whole)
    return dialog.text


def test_an_error_and_a_refusal_in_full(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80x24 the end is scrolled to; `y` copies all; a control character of a guest is an escape."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("3")
        await seen.settled()
        said = await open_newest(seen, FAILED | {"error": f"{ERROR}\x1b[2J"})
        assert "\\x1b[2J" in said and "\x1b" not in said
        await seen.hides("that is the end of it")
        await seen.press("G")
        await seen.shows("that is the end of it")
        await seen.press("y")
        await seen.says("that is the end of it")
        assert seen.app.clipboard == said
        await seen.press("escape")
        said = await open_newest(seen, REFUSED)
        for words in (
            REFUSED["reason"],
            "vm-7 from 10.0.3.2",
            "refs/heads/main\nrefs/tags/v1",
            "git push https://github",
            f"to commit: {'5' * 40}\nnone, to delete it",
        ):
            assert str(words) in said, words
        assert "from commit" not in said
        assert "HEAD:REF, where REF is" in said and "docs-*" in said

    drive(scene.app(monkeypatch), script, NARROW)


def test_a_recorded_push_opens_the_diff_of_its_turn(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Activity; `o` opens the repository; a push of a session that was ended says so."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("3", "p")
        await seen.settled()
        listing: Any = seen.app.screen.query_one("#list")
        row = next(entry for entry in listing.rows if entry.row["session"] == "fix-login-timeout")
        first = min((e for e in listing.rows if e.row["session"] == "fix-login-timeout"), key=lambda e: e.at)
        assert listing.select(first.key)
        await seen.press("enter")
        await seen.shows("turn 1 of 2", "Greet whoever comes")
        assert isinstance(seen.app.screen, DiffScreen)
        await seen.press("escape")
        await seen.settled()
        await seen.press("o")
        await seen.until(lambda: isinstance(seen.app.screen, RepositoryScreen), "the repository opens")
        await seen.press("escape")
        monkeypatch.setattr(type(seen.app.context.queries), "session", lambda *_: None)
        assert listing.select(row.key)
        await seen.press("enter")
        await seen.shows("its session was ended", "to commit")

    drive(scene.app(monkeypatch), script)


@pytest.mark.slow
def test_rows_of_a_repository(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh with what it moved, a ref with how to fetch it, a hydration with every figure, a session's diff."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        seen.app.screen.query_one("#list").select(WIDGETS)  # type: ignore[attr-defined]
        await seen.press("enter")
        await seen.settled()
        for words in (("refs/heads/main  555555555555 →",), ("--branch", "subject"), ("first byte", "way", "13")):
            await seen.press("enter")
            await seen.shows(*words)
            await seen.press("escape", "tab")
            await seen.settled()
        await seen.press("enter")
        await seen.until(lambda: isinstance(seen.app.screen, DiffScreen), "the diff opens")

    drive(scene.app(monkeypatch), script)


def test_a_wide_terminal_shows_the_chosen_row_beside_the_list(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a narrow one does not."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("3")
        await seen.shows("Hydration from", "first byte", "asked for")
        # In the width that it has from the first moment on, without waiting for the next second.
        await seen.shows("because nobody")
        await seen.press("down")
        await seen.shows("Refresh of acme/infra")
        await seen.pilot.resize_terminal(149, 40)
        await seen.hides("Refresh of acme/infra")

    drive(scene.app(monkeypatch), script, (150, 40))


@pytest.mark.slow
def test_a_finding_of_doctor(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found, and what to do, stand on Node without a key."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("4")
        await seen.shows("2 things to put right", "312 MiB free", "make room, or move the state directory")

    drive(replace(scene, pulse=None, checks=BROKEN).app(monkeypatch), script)


def test_what_a_refused_guest_may_do() -> None:
    """As it read it: by its sessions, by those of everybody, or not at all where only known guests may push."""
    feed = ActivityFeed()
    feed.take([REFUSED | {"refs": ["refs/agents/x"], "reason": "not its own", "guest": None}])
    entry = feed.rows[0]
    repo: Any = type("Repo", (), {"url": "https://example.com/a/b"})()
    assert "HEAD:refs/agents/SESSION" in what_to_do(entry, repo, [], only_known=False)
    alone = what_to_do(entry, repo, [], only_known=True)
    assert "does not know this guest" in alone and "recording.writers" in alone
    assert ("reason", "not its own") in facts_of(entry, NOW)
