"""What a view of sessions keeps of what it reads, in whatever order answers come."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from appliance.tui.context import Context
from appliance.tui.data.messages import SessionsRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.data.session_query import Found, parse_query
from appliance.tui.screens.session_list import SessionList


def row(name: str, guest: str | None = None) -> SessionRow:
    """A session of one turn."""
    return SessionRow(
        "o/x",
        name,
        "a" * 40,
        None,
        1,
        1,
        1,
        1,
        0,
        0.0,
        1.0,
        "10.0.0.1",
        kept=False,
        archived=False,
        bytes=1,
        subject="",
        guest=guest,
    )


def test_a_session_that_ended_between_the_reads_of_rows_and_total_goes() -> None:
    """The rows still have it, and the total does not: all are read again, and that answer is not taken for old news."""
    asked: list[str] = []
    loader = SimpleNamespace(read=lambda name, *_: asked.append(name))
    context, view = cast(Context, SimpleNamespace(loader=loader, queries=None)), cast(Any, None)
    sessions = SessionList(None)
    assert sessions.take(SessionsRead(None, [row("kept"), row("doomed")], 1), context, view)
    assert asked == ["sessions all "]
    assert sessions.take(SessionsRead(None, [row("kept")], 1), context, view)
    assert [each.name for each in sessions.rows] == ["kept"]
    assert not sessions.take(SessionsRead(None, [row("kept")], 1), context, view)
    assert asked == ["sessions all "]


def test_a_filter_finds_the_sessions_of_a_node() -> None:
    sessions = SessionList(None)
    sessions.rows = [replace(row("here"), node="node-1"), replace(row("there"), node="node-2"), row("alone")]
    assert [each.name for each in sessions.matching(parse_query("node-2", 0.0), Found())] == ["there"]
