"""What happens appears by itself, and nothing that can happen to serve, database or terminal breaks the view."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.events.facts import EventsLost
from appliance.core.node import queries
from appliance.tui.data import event_follower, follower
from appliance.tui.data.messages import ActionDone
from appliance.tui.screens.repository import RepositoryScreen
from tests.conftest import WIDGETS, ServeFactory
from tests.support.generate import add_commit
from tests.support.upstream import HttpUpstream
from tests.tui.conftest import SETTLED, Node
from tests.tui.drive import NARROW, WIDE, Seen, drive, make_app

AT_ONCE = 1.0
"""Seconds within which what happened is on screen."""


@pytest.fixture
def own(serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path) -> Node:
    """A node of this test alone."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    return Node(serve, upstream, tmp_path)


@pytest.fixture
def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view does not look by itself: what appears does so by its event, which waits for no more than AT_ONCE."""
    monkeypatch.setattr(follower, "TICK", 3600.0)
    assert follower.PACE + follower.CALM + event_follower.LOOK_AGAIN <= AT_ONCE


async def after(seen: Seen, work: Callable[[], object], look: Callable[[], object], message: str) -> None:
    """Does something beside the view, which then shows it."""
    await asyncio.to_thread(work)
    await seen.until(look, message)


@pytest.mark.usefixtures("no_beats")
@pytest.mark.slow
def test_a_commit_a_hydration_and_a_recording_appear_at_once(node: Node) -> None:
    """With no key pressed, each on the screen that is open."""
    guest = node.guest("live")

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        view = seen.app.context.model.repos[WIDGETS]
        add_commit(node.upstream.path(WIDGETS), "main", {"live.txt": "x"}, "Live from upstream")
        refresh = lambda: node.serve.cli("refresh", WIDGETS)  # noqa: E731
        await after(seen, refresh, lambda: "Live from upstream" in seen.text, "a commit upstream")
        # By the event alone, whatever the database says yet.
        assert seen.app.context.model.verified[WIDGETS] > (view.health.verified_at or 0)

        def row() -> str:
            return seen.line(f"▌{WIDGETS}").partition("│")[0]

        def rate() -> list[str]:
            return re.findall("[0-9]+ a minute", row())

        before = rate()
        await after(seen, lambda: node.guest("another"), lambda: rate() != before, "its rate")
        sessions = lambda: re.search("iB +1 +[0-9]+ a minute", row()) is not None  # noqa: E731
        await after(seen, lambda: node.record(guest, "live-1"), sessions, "its sessions")
        await seen.press("3")
        await seen.shows("▲ recorded", "depth 1", "↓ moved")

        def hydrations() -> int:
            # How each came depends on whether the response for the new tip was ready yet.
            return len(re.findall("[●○] (?:hit|joined|miss|direct)", seen.text))

        already = hydrations()
        await after(seen, lambda: node.guest("third"), lambda: hydrations() > already, "a hydration")
        await after(seen, lambda: node.record(guest, "live-2"), lambda: "live-2" in seen.text, "a push")
        await seen.press("2")
        await seen.shows("live-1", "live-2")
        record = lambda: node.record(guest, "live-3", "print(3)\n", "A third one")  # noqa: E731
        await after(seen, record, lambda: "live-3" in seen.text, "a recording")
        await seen.press("enter")
        await seen.shows("+ print(3)", "1 turn")
        record = lambda: node.record(guest, "live-3", "print(4)\n", "A fourth one")  # noqa: E731
        await after(seen, record, lambda: "+ print(4)" in seen.text and "all 2 turns" in seen.text, "another turn")

    drive(make_app(node.serve), script, (160, 40))


@pytest.mark.usefixtures("no_beats")
@pytest.mark.slow
def test_a_repository_shows_what_happens_to_it(node: Node) -> None:
    """Refreshes with what they moved, refs, hydrations, sessions."""
    guest = node.guest("watched")

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh")
        await seen.press("enter")
        await seen.shows("refreshes", "u: unchanged too")
        commit = add_commit(node.upstream.path(WIDGETS), "fresh-branch", {"a.txt": "x"}, "On a new branch")
        refresh = lambda: node.serve.cli("refresh", WIDGETS)  # noqa: E731
        await after(seen, refresh, lambda: f"fresh-branch {commit[:10]}" in seen.text, "what moved")
        await seen.press("tab")
        await seen.shows("On a new branch")
        await seen.press("tab")
        rows = len(seen.app.screen.query_one("#hydrations").rows)  # type: ignore[attr-defined]
        look = lambda: len(seen.app.screen.query_one("#hydrations").rows) > rows  # type: ignore[attr-defined] # noqa: E731
        await after(seen, lambda: node.guest("watcher"), look, "a hydration")
        await seen.press("tab")
        await after(seen, lambda: node.record(guest, "watched-1"), lambda: "watched-1" in seen.text, "a recording")

    drive(make_app(node.serve), script)


@pytest.mark.slow
def test_a_repository_reads_again_when_events_were_lost(node: Node) -> None:
    """They may have been about it; `lost` itself names no repository."""

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh")
        await seen.press("enter")
        await seen.shows("refreshes", "u: unchanged too")
        screen = seen.app.screen
        assert isinstance(screen, RepositoryScreen)
        screen.happened([EventsLost(count=5).document()])

    drive(make_app(node.serve), script)


@pytest.mark.slow
def test_serve_is_killed_and_comes_back(own: Node) -> None:
    """It says so, keeps what it knew, takes no orders; then it joins the new one by itself."""

    async def script(seen: Seen) -> None:
        await seen.shows("● serving", "● fresh")
        own.serve.kill()
        await seen.shows("○ no serve: read-only", "● fresh")
        for key in ("r", "d", "a", "D"):
            await seen.press(key)
        await seen.says("serve is not running: nothing can be changed from here")
        assert len(seen.app.screen_stack) == 1
        await seen.press("4")
        await seen.shows("serve is not running: guests are refused")
        await seen.press("1")
        await asyncio.to_thread(own.serve.start)
        await seen.shows("● serving")
        add_commit(own.upstream.path(WIDGETS), "main", {"back.txt": "x"}, "After it came back")
        await seen.press("r")
        await seen.shows("After it came back")

    drive(make_app(own.serve), script, (160, 30))


@pytest.mark.slow
def test_it_opens_before_serve_and_before_there_is_anything(
    serve_factory: ServeFactory, upstream: HttpUpstream
) -> None:
    """No state directory, no database: it says what is missing, makes nothing, and joins."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED)

    async def script(seen: Seen) -> None:
        await seen.shows("○ no serve: read-only", "there is no state directory")
        for key in ("2", "3", "4", "1"):
            await seen.press(key)
            await seen.settled()
        assert not serve.state.exists()
        await asyncio.to_thread(serve.start)
        await seen.shows("● serving", "● fresh")
        await seen.hides("no state directory")

    drive(make_app(serve), script)


@pytest.mark.slow
def test_the_database_is_taken_away_and_replaced(own: Node) -> None:
    """What was read last stays on screen; the one put in its place is read."""
    database = own.serve.state / "gitmirror.db"
    own.serve.terminate()

    async def script(seen: Seen) -> None:
        def is_missing() -> bool:
            # Without blanks, because the length of the path decides where the line is wrapped.
            return "gitmirror.dbismissing" in "".join(seen.text.split())

        await seen.shows("● fresh")
        moved = database.rename(database.with_name("elsewhere.db"))
        await seen.until(is_missing, "it says what is missing")
        await seen.shows("● fresh")
        for key in ("enter", "escape", "2", "3", "1"):
            await seen.press(key)
            await seen.settled()
        assert not database.exists(), "an empty one must not be put in its place"
        shutil.copy(moved, database)
        await seen.until(lambda: not is_missing(), "the copy is read")
        await seen.shows("● fresh")
        database.unlink()
        database.write_bytes(b"this is no database at all, whatever its name says" * 100)
        await seen.shows("✗ the database")
        database.unlink()
        os.rename(moved, database)
        await seen.hides("✗ the database")
        await seen.shows("● fresh")

    drive(make_app(own.serve), script, NARROW)


@pytest.mark.slow
def test_a_serve_that_hangs_does_not_hang_the_view(own: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are answered, and it says that serve does not."""

    async def script(seen: Seen) -> None:
        await seen.shows("● serving", "● fresh")
        own.serve.signal(signal.SIGSTOP)
        try:
            await seen.shows("▲ serve does not answer")
            # From now on whoever waits for serve waits for ever.
            monkeypatch.setattr(queries, "ANSWERS_WITHIN", 3600.0)
            async with asyncio.timeout(60):
                await seen.press("r", "s", "2", "1", "question_mark", "escape")
        finally:
            own.serve.signal(signal.SIGCONT)
        await seen.shows("● serving")

    drive(make_app(own.serve), script)


@pytest.mark.slow
def test_a_tiny_terminal_and_back(node: Node) -> None:
    """20x5 and back, on every screen: nothing breaks, nothing sticks out, and the selection stays."""
    guest = node.guest("sized")
    for number in range(3):
        node.record(guest, f"sized-{number}", f"print({number})\n")

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh")
        for keys in (["1"], ["enter"], ["escape", "2"], ["enter"], ["escape", "3"], ["4"], ["1", "a"], ["escape", "D"]):
            await seen.press(*keys)
            await seen.settled()
            await seen.press("down")
            listing = next(iter(seen.app.screen.query("#list")), None)
            before = getattr(listing, "row", None)
            for size in ((20, 5), (1, 1), WIDE):
                await seen.pilot.resize_terminal(*size)
                await seen.settled()
                assert all(len(line) <= size[0] for line in seen.text.splitlines())
            assert getattr(listing, "row", None) == before, keys

    drive(make_app(node.serve), script)


def test_it_ends_at_once_whatever_is_being_read(own: Node) -> None:
    """A read that hangs holds nothing up."""
    app = make_app(own.serve)

    released, ended = threading.Event(), list[str]()

    def hang() -> str:
        released.wait(120)
        ended.append("what was being read")
        return ""

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh")
        seen.app.context.loader.act("something slow", hang)
        seen.app.context.loader.read("slow", seen.app, lambda: ActionDone(hang()))
        await seen.press("q")

    drive(app, script)
    assert not ended
    released.set()


def test_a_fault_that_nobody_foresaw_is_said(node: Node) -> None:
    """In a read or in an action; the view goes on, and reads again."""

    def fails() -> str:
        raise ZeroDivisionError("by nought")

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        seen.app.context.loader.read("odd", seen.app, lambda: ActionDone(fails()))
        await seen.shows("✗ odd: ZeroDivisionError('by nought')")
        seen.app.context.loader.act("an order", fails)
        await seen.says("an order: ZeroDivisionError('by nought')")
        seen.app.context.loader.read("odd", seen.app, lambda: ActionDone("it works"))
        await seen.says("it works")
        await seen.hides("✗ odd")

    drive(make_app(node.serve), script)
