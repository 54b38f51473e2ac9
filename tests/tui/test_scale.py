"""1,000 repositories, 10,000 sessions, 1,000 guests, 500 events a second: what is read, drawn and sent.

Times are printed, not asserted: -s shows them. They are of processor time, which other work on the machine does not
lengthen; a person notices 50 ms after a key.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from textual import events
from textual._compositor import CompositorUpdate
from textual.screen import Screen

from appliance.core.config.settings import load_config
from appliance.core.layout import Layout
from appliance.core.node.node import Node
from appliance.core.node.queries import NodeQueries
from appliance.core.node.state_dir import open_stores
from appliance.core.store.guests import GuestOrder
from appliance.core.store.registry import Wanted
from appliance.core.units import rfc3339
from appliance.tui.app import Tui
from appliance.tui.data.messages import EventsArrived
from appliance.tui.widgets.listing import Listing
from tests.tui.drive import WIDE, Seen, drive

REPOS, SESSIONS, GUESTS = 1000, 10_000, 1000
BEAT, EVENTS = 0.05, 25
"""Seconds between two batches of events, and how many events are in each: 500 a second."""


def build(state: Path) -> None:
    """A node that has grown for long."""
    stores, now = open_stores(Layout(state)), time.time()
    for number in range(REPOS):
        stores.registry.add(Wanted(f"acme/repo-{number:04}", f"https://github.com/acme/repo-{number:04}"))
    with stores.database.writing() as connection:
        connection.execute(
            """UPDATE health SET cloned = 1, tip = hex(randomblob(20)), head = 'refs/heads/main', size = 1e6 * repo_id,
               verified_at = ?1 - repo_id % 60, checked_at = ?1 - repo_id % 60, refs = 10, sessions = 10,
               failures = CASE WHEN repo_id % 100 = 0 THEN 5 ELSE 0 END,
               last_error = CASE WHEN repo_id % 100 = 0 THEN 'no route to host' END""",
            [now],
        )
        for number in range(SESSIONS):
            connection.execute(
                """INSERT INTO sessions (repo, session, ref, tip, base, turns, commits, files_changed, insertions,
                   deletions, first_at, last_at, client, bytes)
                   VALUES (?, ?, ?, ?, ?, 3, 3, 5, 90, 12, ?, ?, ?, 2048)""",
                [
                    f"acme/repo-{number % REPOS:04}", f"session-{number:05}", f"refs/agents/session-{number:05}",
                    "a" * 40, "b" * 40, rfc3339(now - number), rfc3339(now - number), "10.0.0.1",
                ],
            )  # fmt: skip
    for number in range(GUESTS):
        address = f"10.{number // 250}.{number % 250}.1"
        stores.guests.add(GuestOrder(f"vm-{number:04}", (f"session-{number:05}",), address=address))
    stores.database.close()


@pytest.fixture(scope="module")
def app(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[], Tui]:
    """Makes views of that node, which does not serve."""
    state = make_once("grown", build)
    return lambda: Tui(NodeQueries(Node(Layout(state), load_config(None), create=False)))


@pytest.mark.slow
def test_the_first_screenful_and_all_sessions(app: Callable[[], Tui]) -> None:
    """Rows within the time; the rest comes behind it, down to the last session."""
    start = time.process_time()

    async def script(seen: Seen) -> None:
        await seen.shows("acme/repo-0099", "✗ failing", "no route to host")
        took = time.process_time() - start - seen.looking
        print(f"\nthe first screenful: {took:.2f} s")
        # Only what is on screen was read of each repository, and not of all.
        model = seen.app.context.model
        assert len(model.recent) < 100 and len(model.tips) < 100
        await seen.press("end")
        await seen.shows("acme/repo-0998")
        await seen.press("2")
        await seen.shows("session-00000")
        await seen.shows("10,000 sessions")
        listing = seen.app.screen.query_one("#list")
        await seen.until(lambda: len(listing.rows) == SESSIONS, "all are read")  # type: ignore[attr-defined]
        await seen.press("end")
        await seen.shows("session-09999")
        await seen.press("slash")
        await seen.type("session-04242")
        await seen.shows("1 of 10,000 sessions", "acme/repo-0242")

    drive(app(), script)


@pytest.mark.slow
@pytest.mark.parametrize("screen", ["1", "2", "3", "5"])
def test_keys_are_answered_while_everything_updates(app: Callable[[], Tui], screen: str) -> None:
    """500 events a second; forty keys, each from its press until its line is drawn; none is lost."""

    async def script(seen: Seen) -> None:
        await seen.shows("acme/repo-0099")
        await seen.press(screen)
        await seen.settled()
        stop = asyncio.Event()

        async def flood() -> None:
            for turn in itertools.count():
                if stop.is_set():
                    return
                for number in range(EVENTS):
                    repo = f"acme/repo-{(turn * EVENTS + number) % REPOS:04}"
                    seen.app.context.follower.events._events.append(hydrated(repo) if number % 2 else refreshed(repo))
                seen.app.post_message(EventsArrived())
                await asyncio.sleep(BEAT)

        flooding = asyncio.create_task(flood())
        await seen.until(lambda: len(seen.app.context.model.activity.rows) > 40, "events come in")
        listing: Listing[Any] = seen.app.screen.query_one("#list", Listing)
        # From then on the cursor stays on its row.
        await seen.press("down")
        took = []
        for _ in range(40):
            if listing.cursor > len(listing.rows) // 2:
                # Activity has a limit: the row sinks as others come, and below the last one there is none to go to.
                listing.select(listing.key(listing.rows[0]))
            before = chosen(listing)
            # This thread runs the view's loop, and asks all the time: what the loop waits for counts as well.
            start, deadline = time.thread_time(), time.monotonic() + 60
            seen.app._driver.send_message(events.Key("down", None))  # type: ignore[union-attr]
            moved = False
            while not moved or listing._repaint_required:
                await asyncio.sleep(0)
                # Not its number: a list that is sorted anew may give the next row that of the one before.
                moved = moved or chosen(listing) != before
                assert time.monotonic() < deadline, "a key is not answered"
            took.append(time.thread_time() - start)
            await asyncio.sleep(0.01)
        stop.set()
        await flooding
        print(f"\nkeys in {screen}: {median(took) * 1000:.0f} ms, at most {max(took) * 1000:.0f} ms")

    drive(app(), script, (160, 48))


def chosen(listing: Listing[Any]) -> object:
    """The key of the row under the cursor."""
    row = listing.row
    assert row is not None
    return listing.key(row)


def hydrated(repo: str) -> dict[str, object]:
    """An event as the feed tells it."""
    return {
        "event": "hydrated", "at": rfc3339(time.time()), "repo": repo, "want": "c" * 40, "wants": 1, "shape": "depth 1",
        "way": "hit", "bytes": 1000, "first_byte": 0.01, "seconds": 0.02, "client": "10.0.0.1", "protocol": "git",
    }  # fmt: skip


def refreshed(repo: str) -> dict[str, object]:
    """An event as the feed tells it."""
    facts = {"result": "unchanged", "seconds": 0.1, "moved": [], "error": None}
    return {"event": "refreshed", "at": rfc3339(time.time()), "repo": repo, **facts}


@pytest.mark.slow
def test_nothing_is_sent_that_did_not_change(app: Callable[[], Tui], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clock held nothing is written; one cell that changes costs its own line, not the screen."""
    view, now = app(), time.time()
    view.context.model.clock = lambda: now

    async def script(seen: Seen) -> None:
        await seen.shows("acme/repo-0099")
        await seen.press("2", "1")
        await seen.settled()
        written: list[str] = []

        def display(screen: Screen[object], update: CompositorUpdate | None) -> None:
            if update is not None:
                written.append(update.render_segments(seen.app.console))

        # What a terminal would be sent; without one nothing is written.
        monkeypatch.setattr(seen.app, "_display", display)
        beats = seen.app.context.follower.beats
        await seen.until(lambda: seen.app.context.follower.beats >= beats + 3, "three beats of the clock")
        await seen.settled()
        assert "".join(written) == ""
        seen.app.context.model.rates.add("acme/repo-0099", now, "hit")
        seen.app.context.follower.tell_rates()
        await seen.until(lambda: written, "the cell is drawn")
        await seen.settled()
        assert len("".join(written)) < 1500, "".join(written)

    drive(view, script, WIDE)


@pytest.mark.slow
def test_an_idle_view_costs_little(app: Callable[[], Tui]) -> None:
    """The share of a core that each view takes while nothing happens; no more is read than at each beat."""
    view = app()

    async def script(seen: Seen) -> None:
        await seen.shows("acme/repo-0099")
        follower = seen.app.context.follower
        for screen in "12345":
            await seen.press(screen)
            await seen.settled()
            beats, start, at = follower.beats, time.process_time(), time.monotonic()
            await seen.until(lambda: follower.beats >= beats + 4, "four beats")  # noqa: B023 - called at once
            share = (time.process_time() - start) / (time.monotonic() - at)
            print(f"\nidle in {screen}: {share:.1%} of a core")

    drive(view, script, (160, 48))
