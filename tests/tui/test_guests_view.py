"""Known guests in the live view: their list, their names elsewhere, and what can happen to them meanwhile."""

from __future__ import annotations

import sqlite3
import tarfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.settings import load_config
from appliance.core.layout import Layout
from appliance.core.node.node import Node as StateNode
from appliance.core.node.queries import NodeQueries
from appliance.core.node.state_dir import open_stores
from appliance.tui.app import Tui
from appliance.tui.data.activity import ActivityFeed
from appliance.tui.data.session_query import Found, parse_query
from appliance.tui.screens.session_list import SessionList
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.listing import Listing
from tests.conftest import WIDGETS
from tests.support.serve import ROOT
from tests.support.tars import unpack_tar
from tests.tui.drive import NARROW, Seen, drive
from tests.tui.scene import NOW, PULSE, TRANSFERS, Make, Scene, build, build_empty
from tests.tui.test_session_list import row

PROBLEM = "cannot listen on /run/fc/vm-9/v.sock_9418"
LONGEST_NAME = "builder-with-a-rather-long-name"
GUESTS = 1000


@pytest.fixture(scope="session")
def scene(make_once: Make) -> Scene:
    """A node with four known guests."""
    return Scene(make_once("scene", build), sent=TRANSFERS)


def names(seen: Seen) -> list[str]:
    """The guests in the list, from top to bottom."""
    return [guest.name for guest in seen.app.screen.query_one("#list", Listing).rows]


def tones(seen: Seen, words: str) -> str:
    """The tone of the cell that has these words."""
    listing = seen.app.screen.query_one("#list", Listing)
    cells = [cell for guest in listing.rows for column in listing.columns for cell in column.render(guest)]
    return next(tone for text, tone in cells if words in text)


@pytest.mark.parametrize("size", [NARROW, (120, 40), (160, 48)], ids=["narrow", "usual", "wide"])
def test_what_is_known_of_them(scene: Scene, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """Name, what it does, how much, how fast and since when fit 80x24; the road and the rest need more room."""

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("11 guests, 4 known", "▲ 1 cannot come", "▲ 1 slow", "◌ 2 served", "by trouble")
        await seen.settled()
        line = seen.line("▲ vm-7 ")
        for words in ("◌ receives acme/", "429 MiB", "12s", "now"):
            assert words in line, line
        assert ("unix socket" in line) == ("8h 10m" in line) == (size[0] > 100)
        assert ("docs-*" in line) == ("acme/search" in line) == (size[0] > 150)
        assert "never" in seen.line("reviewer")
        assert "hydrated acme/" in seen.line(" 10.0.3.2 ") and "45s" in seen.line(" 10.0.3.2 ")
        assert max(map(len, seen.text.splitlines())) <= size[0]

    drive(scene.app(monkeypatch), script, size)


@pytest.mark.slow
def test_one_that_cannot_come_is_first_and_says_why(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a shape and in the colour of warnings; Node counts it; it is mended without a key."""

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows(
            PROBLEM, "comes by /run/fc/vm-9/v.sock_9418 (git) and", "may write fix-dns; may read every open"
        )
        assert names(seen)[0] == "vm-9" and "▲ vm-9" in seen.text
        assert tones(seen, "/run/fc/vm-9") == "warn" and tones(seen, "10.0.3.200") == "dim"
        await seen.press("4")
        facts = seen.app.screen.query_one("#facts", Lines)
        await seen.until(lambda: "known  4 guests, ▲ 1 cannot come" in facts.text, "Node counts them")
        await seen.press("5")
        seen.app.context.queries.told = PULSE | {"known_guests": {"count": 4, "problems": {}}}  # type: ignore[attr-defined]
        await seen.hides("cannot come", PROBLEM)
        assert names(seen)[:3] == ["vm-7", "10.0.3.77", LONGEST_NAME]

    drive(scene.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_filter_and_order(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of a row can be typed, the reason of a problem too; the order is named."""

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("4 known")
        for words, found in (
            ("docs-*", ["vm-7"]),
            ("only acme", ["reviewer"]),
            ("cannot listen", ["vm-9"]),
            ("slow", ["vm-7"]),
            ("zz vm", []),
        ):
            await seen.press("slash")
            await seen.type(words)
            assert names(seen) == found
            await seen.press("enter")
        await seen.shows("0 of 11 guests", "No guest matches zz vm. Escape clears the filter.")
        await seen.press("escape")
        by_name = sorted(names(seen))
        orders = []
        for _ in range(5):
            await seen.press("s")
            await seen.settled()
            orders.append((seen.text.splitlines()[1].rsplit("by ", 1)[1], names(seen)))
        strangers = [f"10.0.3.{number}" for number in range(2, 8)]
        assert [order for order, _ in orders] == ["name", "last", "hydrations", "expiry", "trouble"]
        assert orders[0][1] == by_name
        assert orders[1][1][:4] == ["vm-7", "10.0.3.77", "10.0.3.6", "10.0.3.5"]
        assert orders[2][1][:5] == strangers[:5]
        assert orders[3][1][:2] == ["reviewer", "vm-7"]
        assert orders[4][1] == ["vm-9", "vm-7", "10.0.3.77", LONGEST_NAME, "reviewer", *strangers]

    drive(scene.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_enter_goes_to_its_sessions(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filtered by exactly that guest, from a view that was never open and from one with a diff over it."""

    async def script(seen: Seen) -> None:
        for _ in range(2):
            await seen.press("5")
            await seen.shows("4 known")
            await seen.settled()
            seen.app.screen.query_one("#list", Listing).select("vm-7")
            await seen.press("enter")
            await seen.shows("1 of 2 sessions", "fix-login-timeout", "guest:vm-7", "vm-7 from 10.0.3.2")
            await seen.hides("a-session-with-a")
            await seen.press("enter")
            await seen.shows("by vm-7 from 10.")
        await seen.press("escape", "escape")
        await seen.shows("2 sessions", "a-session-with-a")
        await seen.press("5", "home")
        await seen.shows("4 known")
        seen.app.screen.query_one("#list", Listing).select("10.0.3.2")
        await seen.press("enter")
        await seen.says("10.0.3.2 is not known by name")
        await seen.press("home", "enter")
        await seen.shows("No session matches guest:vm-9. Escape clears the filter.")

    drive(scene.app(monkeypatch), script, NARROW)


def test_a_filter_by_guest_is_exact() -> None:
    """`vm-7` is neither `vm-70` nor `VM-7` nor a session that is called so; other words filter beside it."""
    sessions = SessionList(None)
    made = [row("one", "vm-7"), row("two", "vm-70"), row("vm-7", None), row("three", "vm-7"), row("four", "VM-7")]
    sessions.rows = made

    def found(words: str) -> list[str]:
        return [each.name for each in sessions.matching(parse_query(words, NOW), Found())]

    assert found("guest:vm-7") == ["one", "three"]
    assert found("guest:vm-7 thr") == ["three"]
    assert found("guest:vm-7 guest:vm-70") == [] and len(found("guest:")) == 5
    assert found("vm-7") == ["one", "two", "vm-7", "three", "four"]


@pytest.mark.slow
def test_names_instead_of_addresses(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In activity, in all sessions, in a repository's lists; the address of the chosen row is said above the list."""

    async def script(seen: Seen) -> None:
        await seen.press("3", "slash")
        await seen.type("vm-7 push")
        await seen.shows("vm-7 from 10.0.3.")
        assert seen.line("fix-login-timeout  ").partition("│")[0].rstrip().endswith("vm-7")
        await seen.press("enter", "escape", "h")
        await seen.settled()
        clients = {line.partition("│")[0].split()[-1] for line in seen.text.splitlines() if "hydrate " in line}
        assert "vm-7" in clients and "10.0.3.2" in clients
        await seen.press("2")
        await seen.shows("◆ fix-login-timeout")
        seen.app.screen.query_one("#list", Listing).select(("acme/widgets", "fix-login-timeout"))
        await seen.shows("vm-7 from 10.0.3.2")
        await seen.press("1")
        await seen.shows("acme/widgets")
        seen.app.screen.query_one("#list", Listing).select("acme/widgets")
        await seen.press("enter", "tab", "tab", "tab")
        await seen.shows("◆ fix-login-timeout")
        assert seen.line("◆ fix-login-timeout").partition("│")[0].rstrip().endswith("vm-7")
        seen.app.screen.query_one("#sessions", Listing).select("fix-login-timeout")
        await seen.shows("vm-7 from 10.0.3.2")

    drive(scene.app(monkeypatch), script, (160, 48))


@pytest.mark.parametrize("told", [{}, {"guest": None}, {"guest": "vm-7"}], ids=["older", "unknown", "known"])
def test_events_of_any_serve(told: Mapping[str, Any]) -> None:
    """The version before says nothing about guests; what is known is told by every kind of event."""
    common = {"at": "2026-01-31T12:00:00.000Z", "repo": WIDGETS, "client": "c", **told}
    fetch = {"want": "1" * 40, "shape": "depth 1", "protocol": "git", "way": "hit", "bytes": 1, "seconds": 0.1}
    feed = ActivityFeed()
    feed.take([{"event": "hydrating", **common, **fetch}])
    feed.take([{"event": "pushed", **common, "refs": ["refs/agents/s"], "verdict": "accepted", "reason": None}])
    assert [(each.open, each.guest) for each in feed.rows] == [(True, told.get("guest"))] * 2
    feed.take([{"event": "hydrated", **common, **fetch}])
    feed.take([{"event": "recorded", **common, "ref": "refs/agents/s", "session": "s", "new": "2" * 40}])
    feed.take([{"event": "pushed", **common, "refs": ["refs/heads/m"], "verdict": "rejected", "reason": "no"}])
    assert [(each.open, each.guest) for each in feed.rows] == [(False, told.get("guest"))] * 3


def test_nobody_is_known(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how one is added; no key does anything."""
    pulse = PULSE | {"known_guests": {"count": 0, "problems": {}}}

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("0 guests", "No guest is known yet: gitmirror.pyz guest add NAME --session S --unix PATH")
        await seen.press("enter", "D", "s", "end", "home")
        await seen.settled()
        assert seen.app.screen.heading == "Guests" and not seen.said  # type: ignore[attr-defined]

    drive(Scene(make_once("empty-scene", build_empty), pulse).app(monkeypatch), script, NARROW)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pulse", [None, {key: PULSE[key] for key in PULSE if key != "known_guests"}], ids=["no", "older"]
)
def test_no_serve_or_one_that_is_older(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, pulse: dict[str, Any] | None
) -> None:
    """Guests are read from the database; nobody knows of a problem."""

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("4 known", "vm-7", "vm-9")
        assert "cannot come" not in seen.text and LONGEST_NAME in names(seen)[:3]
        await seen.press("4")
        await seen.settled()
        assert "  known " not in seen.app.screen.query_one("#facts", Lines).text
        await seen.press("5")
        seen.app.screen.query_one("#list", Listing).select(LONGEST_NAME)
        await seen.press("D")
        if pulse is None:
            await seen.says("serve is not running")
        else:
            await seen.shows(f"Remove the guest {LONGEST_NAME}?")

    drive(replace(scene, pulse=pulse).app(monkeypatch), script, NARROW)


def test_a_database_of_the_version_before(tmp_path: Path) -> None:
    """It has no guests, and no row of it says which guest it was."""
    with tarfile.open(ROOT / "tests" / "store" / "fixtures" / "state-0.1.0.tar.xz") as packed:
        unpack_tar(packed, tmp_path)
    [database] = tmp_path.rglob("gitmirror.db")
    queries = NodeQueries(StateNode(Layout(database.parent), load_config(None), create=False))
    assert queries.guests() == []
    assert {each["guest"] for each in queries.sessions(None, 10)[0]} == {None}
    feed = ActivityFeed()
    feed.fill(queries.hydrations(None, 10), queries.pushes(None, 10), queries.refreshes(None, 10))
    assert feed.rows and not any(entry.guest for entry in feed.rows)
    queries.close()


# With a serve


def build_many(state: Path) -> None:
    """A thousand guests, each with sessions, repositories and something that it did last."""
    open_stores(Layout(state)).database.close()
    with sqlite3.connect(Layout(state).database) as connection:
        for number in range(1, GUESTS + 1):
            name = f"vm-{number:04}"
            values = (number, name, 0, f"/run/fc/{name}/v.sock", NOW - 1e6, NOW + 60 * number)
            connection.execute(
                "INSERT INTO guests (id, name, only, unix, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)", values
            )
            sessions = [(number, f"{name}-{each}") for each in range(4)]
            connection.executemany("INSERT INTO guest_sessions VALUES (?, ?)", sessions)
            connection.execute("INSERT INTO guest_repos VALUES (?, 'acme/widgets', 1)", [number])
        connection.executemany(
            """INSERT INTO hydrations (at, repo, want, wants, shape, way, bytes, first_byte, seconds, client, protocol,
               guest) VALUES (?, 'acme/widgets', ?, 1, 'depth 1', 'hit', 1, 0.1, 0.1, 'c', 'git', ?)""",
            [(NOW - number, "1" * 40, f"vm-{number % GUESTS + 1:04}") for number in range(20_000)],
        )


@pytest.mark.slow
def test_a_thousand_are_fast(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read of all takes no longer than a frame or two of the database; a filter and an order answer like a key."""
    scene = Scene(make_once("many-guests", build_many), PULSE | {"known_guests": {"count": GUESTS, "problems": {}}})
    app = scene.app(monkeypatch)
    start = time.process_time()
    assert len(app.context.queries.guests()) == GUESTS
    assert time.process_time() - start < 0.5

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("1,000 guests", "vm-0001")
        await seen.settled()
        for keys in (("s",), ("end",), ("home",)):
            start = time.thread_time()
            await seen.press(*keys)
            assert time.thread_time() - start < 0.3, keys
        await seen.press("slash")
        start = time.thread_time()
        await seen.type("vm-0777-3")
        assert time.thread_time() - start < 0.3
        await seen.shows("1 of 1,000 guests", "vm-0777")

    drive(app, script, NARROW)


@pytest.mark.slow
def test_the_view_is_one_of_five(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tab fits 80 columns, beside serve; in 70 only the chosen tab is named; the palette and the help know it."""

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("4 known")
        head = seen.text.splitlines()[0]
        assert "1 Repositories 2 Sessions 3 Activity 4 Node 5 Guests" in head and head.endswith("● serving  3 guests")
        await seen.press("question_mark")
        await seen.shows("In Guests")
        await seen.press("escape")
        await seen.pilot.resize_terminal(70, 24)
        await seen.shows(" 1 2 3 4 5 Guests ")
        await seen.press("1", "colon")
        await seen.pilot.press(*"guests", "enter")
        await seen.shows("4 known")
        assert isinstance(seen.app, Tui) and seen.app.current_mode == "guests"

    drive(scene.app(monkeypatch), script, NARROW)
