"""What stands beside the list of repositories about the chosen one: its state and why, and what happened last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from appliance.core.node.queries import RepoView
from appliance.tui.data.activity import HYDRATION, ActivityEntry
from appliance.tui.data.details import RepoDetails
from appliance.tui.data.model import Model
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.node_lines import heading, said
from appliance.tui.screens.repo_columns import explain
from appliance.tui.text import Cell, cell, count, percent, size, span, took
from appliance.tui.widgets.lines import Line

WAY, WHO = 10, 9
"""Columns of the way of a hydration, and at least of its guest."""
ROOMY = 76
"""The width from which on it is said what was asked for, and how much was sent."""
UNCUT = 100_000
"""A width at which nothing is wrapped."""


def beside_lines(view: RepoView, details: RepoDetails, model: Model, width: int, height: int) -> list[Line]:
    """Fills `height` lines: what says why first, then as much of each list as there is room for."""
    now, name = model.clock(), view.repo.name
    lines = _state(view, model.lag(view), now, width)
    tip = model.tip(view)
    if tip is not None:
        lead: Cell = ((f"   {view.branch or 'HEAD'} ", "accent"), (f"{span(now - tip.at)} ago ", "dim"))
        lines += said(lead, tip.subject, width)
    warm, counted = model.rates.hits(name)
    rate = f"{model.rates.per_minute(name, now):,} a minute"
    ratio = f", hit ratio {percent(warm, counted)}" if counted else ""
    under_way = [row for row in model.activity.rows if row.open and row.kind == HYDRATION and row.repo == name]
    known = replace(details, hydrations=[*under_way, *details.hydrations])
    return [*lines, *detail_lines(view, known, now, width, height - len(lines), rate + ratio)]


def detail_lines(
    view: RepoView, details: RepoDetails, now: float, width: int, height: int, rate: str = "", without: str = ""
) -> list[Line]:
    """What happened last in at most `height` lines, all but what is told elsewhere, which is named `without`."""
    hydrations = [_hydration(row, now, width) for row in details.hydrations]
    sessions = [_session(row, now) for row in details.sessions]
    moves = [(cell(f"   {span(now - at):>6} ago  {words}"), ()) for at, words in details.moves]
    still = f"nothing in the last {count(details.refreshes, 'refresh', 'refreshes')}"
    sections: dict[str, tuple[list[Line], Sequence[Line]]] = {
        "refreshes": (heading("Moved last"), moves or [_nothing(details, still)]),
        "hydrations": (heading("Hydrated last", rate), hydrations or [_nothing(details, "nobody in the last days")]),
        "sessions": (heading("Sessions", f"{view.health.sessions:,}"), sessions or [_nothing(details, "none")]),
    }
    return _share_out([section for name, section in sections.items() if name != without], height)


def _state(view: RepoView, lag: float | None, now: float, width: int) -> list[Line]:
    """The lines of `explain`, each in full."""
    (first, due), *others = explain(view, lag, now, UNCUT)
    (name, tone), *rest = first
    lines: list[Line] = [(cell(name, tone), ())]
    lines += said(cell("   "), "".join(text for text, _ in rest).strip(), width)
    lines += said(cell("   "), "".join(text for text, _ in due).strip(), width, "dim")
    for left, _ in others:
        [(text, tone)] = left
        lines += said(cell("   "), text.strip(), width, tone)
    return lines


def _share_out(sections: Sequence[tuple[list[Line], Sequence[Line]]], room: int) -> list[Line]:
    """The sections with as many rows of each as fit; what one does not need, the others get."""
    left = room - sum(len(title) for title, _ in sections)
    shown = [0] * len(sections)
    while left > 0 and any(shown[n] < len(rows) for n, (_, rows) in enumerate(sections)):
        for n, (_, rows) in enumerate(sections):
            if left > 0 and shown[n] < len(rows):
                shown[n] += 1
                left -= 1
    return [line for n, (title, rows) in enumerate(sections) for line in (*title, *rows[: shown[n]])]


def _nothing(details: RepoDetails, words: str) -> Line:
    return cell(f"   {words if details.is_read else 'reading…'}", "dim"), ()


def _hydration(row: ActivityEntry, now: float, width: int) -> Line:
    who = row.guest or row.client
    when = f"for {span(now - row.at)}" if row.open else f"{span(now - row.at)} ago"
    way = "".join(text for text, _ in row.said)
    left: Cell = (
        (f"   {when:>10}  ", "accent" if row.open else ""),
        (f"{way:<{WAY}} ", row.said[0][1]),
        (f" {who:<{WHO}}  ", ""),
        (row.what if width >= ROOMY else "", "dim"),
    )
    figures = [took(row.seconds)] if row.seconds is not None else []
    if row.bytes is not None and width >= ROOMY:
        figures.insert(0, size(row.bytes))
    return left, cell(f"{', '.join(figures)} ", "dim")


def _session(row: SessionRow, now: float) -> Line:
    left: Cell = ((f"   {span(now - row.last_at):>6} ago  ", ""), (row.name, "strong"), (f"  {row.subject}", "dim"))
    return left, cell(f"{count(row.turns, 'turn')} ", "dim")
