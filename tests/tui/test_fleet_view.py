"""What the live view shows of a fleet, and that it shows nothing of one on a node alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.tui.screens.fleet_lines import fleet_lines, short_node
from appliance.tui.screens.session_columns import SessionColumns
from appliance.tui.screens.session_list import SessionList
from appliance.tui.widgets.lines import Lines
from tests.tui.drive import Seen, drive
from tests.tui.scene import PULSE, Make, Scene, build


def node(name: str, **differs: Any) -> dict[str, Any]:
    alike: dict[str, Any] = {
        "node": name, "version": "1.0", "alive": True, "seen": 2.0, "started_at": "2026-01-31T00:00:00Z", "url": None,
        "repos": 6, "sessions": 3, "behind": 0, "lag": 12.0, "waiting": 0, "turns_behind": 0,
    }  # fmt: skip
    return alike | differs


FLEET: dict[str, Any] = {
    "name": "default", "node": "node-1", "servers": ["nats://nats-1:4222"], "connected": True, "trouble": None,
    "durability": "async", "replicas": 1, "waiting": {"turns": 2, "attachments": 0, "registry": 0, "ends": 0},
    "nodes": [node("node-1"), node("node-2", alive=False, seen=90.0), node("node-3", turns_behind=4, behind=1)],
    "warnings": [],
}  # fmt: skip


def text(fleet: dict[str, Any] | None) -> list[str]:
    return ["".join(part for part, _ in left) for left, _ in fleet_lines(fleet, 100)]


def test_what_is_wrong_comes_first() -> None:
    lines = text(FLEET)
    assert lines[0] == " ● fleet  default, this node is node-1"
    assert "node-2" in lines[1] and "silent for" in lines[1]
    assert "node-3" in lines[2] and "6 repositories, 1 behind, lag" in lines[2] and "4 messages unread" in lines[2]
    assert "node-1" in lines[3] and "6 repositories, lag" in lines[3]


def test_many_nodes_are_counted() -> None:
    lines = text(FLEET | {"nodes": [node(f"node-{number}") for number in range(40)]})
    assert len(lines) == 7 and "and 35 more" in lines[-1]


def test_a_fleet_that_is_away() -> None:
    assert text(FLEET | {"connected": False, "trouble": "x"})[0].startswith(" ▲ fleet  default")
    lines = text(FLEET | {"connected": False, "trouble": "x"})
    assert "not connected" in lines[0]
    # It is this node that hears nothing.
    assert "last heard" in lines[1] and not any("silent" in line for line in lines)


def test_a_node_alone_has_no_line_and_no_column() -> None:
    assert text(None) == text(FLEET | {"servers": []}) == []
    columns = SessionColumns(lambda: 0.0, SessionList(None).marks)
    assert "NODE" not in [column.title for column in columns.all()]
    [node] = [column for column in columns.all(with_node=True) if column.title == "NODE"]
    assert node.tail, "node-1 and node-2 look the same without their end"


@pytest.mark.slow
def test_node_shows_the_nodes(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Scene(make_once("scene", build)).app(monkeypatch)
    queries = app.context.queries
    config = queries.node.config
    joined = replace(config, fleet=replace(config.fleet, servers=("nats://nats-1:4222",)))
    for each in (queries.node, app.context.node):
        # Frozen, and shared by what the view was built of.
        object.__setattr__(each, "config", joined)
    monkeypatch.setattr(queries, "fleet", lambda: FLEET)

    async def script(seen: Seen) -> None:
        await seen.press("4")
        facts = seen.app.screen.query_one("#facts", Lines)
        words = ("default, this node is node-1", "silent for", "4 messages unread", "2 to go out")
        await seen.until(lambda: all(each in " ".join(facts.text.split()) for each in words), "the nodes are shown")

    drive(app, script)


@pytest.mark.slow
def test_a_question_says_that_the_answer_holds_on_every_node(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(seen: Seen) -> None:
        await seen.shows("acme/")
        await seen.press("d")
        await seen.shows("On every node of the fleet")
        await seen.press("escape", "D")
        await seen.shows("Remove ", "On every node of the fleet")

    pulse = PULSE | {"fleet": {"name": "default", "node": "node-1", "connected": True, "trouble": None, "waiting": {}}}
    drive(Scene(make_once("scene", build), pulse).app(monkeypatch), script)


def test_names_of_hosts_are_told_without_their_domain() -> None:
    assert [short_node(name) for name in ("node-1.eu.example", "node-1", "10.0.0.1", None)] == [
        "node-1", "node-1", "10.0.0.1", "",
    ]  # fmt: skip
