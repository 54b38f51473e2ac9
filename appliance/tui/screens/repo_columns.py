"""The columns of the start screen, and the lines that explain the state of a repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.core.events.fetch_progress import FetchProgress
from appliance.core.models import RefText, State
from appliance.core.node.queries import RepoView
from appliance.tui.data.model import Model
from appliance.tui.screens.marking import Marks
from appliance.tui.text import STATES, Cell, cell, count, lags, percent, size, span, spark, state_cell, wrapped
from appliance.tui.widgets.lines import Line
from appliance.tui.widgets.listing import Column

BEHIND = (State.FAILING, State.STALE)
ORDER = list(STATES)
SPARK = 9


class RepoColumns:
    """Makes the columns from the model; in the trend, a bar of full height is a lag of `stale_after` seconds."""

    def __init__(self, model: Model, stale_after: float, marks: Marks) -> None:
        self.model = model
        self._marks = marks
        self._stale_after = stale_after

    def all(self) -> list[Column[RepoView]]:
        """Returns the columns, from left to right."""
        return [
            Column("REPOSITORY", self._title, 20, 0, 34, grows=True, tail=True, order=self._name_of),
            Column("STATE", lambda view: state_cell(view.state), 10, 0, order=lambda view: ORDER.index(view.state)),
            Column("LAG", self._lag, 6, 1, right=True, order=lambda view: self.model.lag(view) or 0.0),
            Column("LAG TREND", self._trend, SPARK, 4, order=lambda view: self.model.lag(view) or 0.0),
            Column("BRANCH", lambda view: cell(view.branch or "", "dim"), 6, 7, 14, order=lambda row: row.branch or ""),
            Column("LAST COMMIT", self._subject, 16, 5, 40, grows=True, order=self._subject_of),
            Column("AGE", self._age, 6, 6, right=True, order=self._tip_age),
            Column("CHECKED", self._checked, 7, 8, right=True, order=self._checked_age),
            Column("SIZE", self._size, 8, 3, right=True, order=lambda view: view.health.size),
            Column("SESSIONS", self._sessions, 8, 2, right=True, order=lambda view: view.health.sessions),
            Column("HYDRATIONS", self._rate, 12, 3, 14, right=True, order=self._per_minute),
            Column("HIT RATIO", self._hits, 9, 4, right=True, order=self._share),
        ]  # fmt: skip

    @staticmethod
    def _name_of(view: RepoView) -> str:
        return view.repo.name

    def _subject_of(self, view: RepoView) -> str:
        tip = self.model.tip(view)
        return tip.subject.lower() if tip else ""

    def _tip_age(self, view: RepoView) -> float:
        tip = self.model.tip(view)
        return -tip.at if tip else 0.0

    @staticmethod
    def _checked_age(view: RepoView) -> float:
        return -(view.health.checked_at or 0.0)

    def _per_minute(self, view: RepoView) -> int:
        return self.model.rates.per_minute(view.repo.name, self.model.clock())

    def _share(self, view: RepoView) -> float:
        warm, counted = self.model.rates.hits(view.repo.name)
        return warm / counted if counted else -1.0

    def _title(self, view: RepoView) -> Cell:
        owner, slash, name = view.repo.name.rpartition("/")
        # At its end, because a long name loses its beginning.
        return (owner + slash, "dim"), (name, "strong"), (" ✓" if self._marks.has(view) else "", "accent")

    def _lag(self, view: RepoView) -> Cell:
        if (clone := self.model.clone_of(view)) is not None:
            return cell("" if clone["percent"] is None else f"{clone['percent']}%", "accent")
        lag = self.model.lag(view)
        return cell("" if lag is None else span(lag), STATES[view.state][1] if view.state in BEHIND else "")

    def _trend(self, view: RepoView) -> Cell:
        recent = self.model.recent.get(view.repo.name)
        tone = STATES[view.state][1]
        limit = self._stale_after
        return cell(spark(lags(recent), limit, SPARK) if recent else "", tone)

    def _subject(self, view: RepoView) -> Cell:
        tip = self.model.tip(view)
        return cell(tip.subject if tip else "")

    def _age(self, view: RepoView) -> Cell:
        tip = self.model.tip(view)
        return cell(span(self.model.clock() - tip.at) if tip else "", "dim")

    def _checked(self, view: RepoView) -> Cell:
        checked = view.health.checked_at
        return cell(span(self.model.clock() - checked) if checked else "", "dim")

    def _size(self, view: RepoView) -> Cell:
        if (clone := self.model.clone_of(view)) is not None:
            return cell("" if clone["bytes"] is None else size(clone["bytes"]), "accent")
        return cell(size(view.health.size) if view.health.cloned else "")

    def _sessions(self, view: RepoView) -> Cell:
        return cell(f"{view.health.sessions:,}" if view.health.sessions else "")

    def _rate(self, view: RepoView) -> Cell:
        rate = self._per_minute(view)
        return cell(f"{rate:,} a minute" if rate else "", "accent")

    def _hits(self, view: RepoView) -> Cell:
        warm, counted = self.model.rates.hits(view.repo.name)
        return cell(percent(warm, counted) if counted else "")


def ref_columns(clock: Callable[[], float]) -> list[Column[RefText]]:
    """The columns of a list of refs."""
    return [
        Column("REF", _ref_name, 20, 0, 40, order=lambda row: row.ref),
        Column("COMMIT", lambda row: cell(row.oid[:10], "accent"), 10, 1, order=lambda row: row.oid),
        Column("AGE", lambda row: cell(span(clock() - row.at)), 6, 0, right=True, order=lambda row: -row.at),
        Column("SUBJECT", lambda row: cell(row.subject), 16, 2, grows=True, order=lambda row: row.subject.lower()),
    ]


def _ref_name(row: RefText) -> Cell:
    kind, _, name = row.ref.removeprefix("refs/").partition("/")
    return ((f"{'tag ' if kind == 'tags' else ''}", "dim"), (name, "strong"))


def explain(
    view: RepoView, lag: float | None, now: float, width: int, clone: Mapping[str, Any] | None = None
) -> list[Line]:
    """Explains the state of a repository in at most four lines: state, reason, what to do, upstream.

    `lag` is seconds, `now` Unix seconds, and `width` columns. `clone` is how far its first clone is.
    """
    health, state = view.health, view.state
    shape, tone = STATES[state]
    behind = "never cloned" if lag is None else f"behind for {span(lag)}"
    said = {
        State.DAMAGED: "its mirror is healed automatically; guests get what is intact",
        State.FAILING: f"{behind}, {count(health.failures, 'failure')} in a row",
        State.STALE: f"not verified for {span(lag)}",
        State.CLONING: "its first clone is under way",
        State.NEW: "registered, its first clone has not begun",
        State.FRESH: f"equal to its upstream {span(lag)} ago",
        State.DISABLED: "neither refreshed nor served; its mirror is kept",
    }[state]
    due = f"checked every {span(view.interval)} "
    if not view.repo.enabled:
        due = "d enables it "
    elif health.failures:
        due = f"next try in {span(health.next_due - now)} " if health.next_due > now else "a retry is due "
    first: Cell = ((f" {shape} {view.repo.name} ", tone), (f"is {state}: {said}", ""))
    lines: list[Line] = [(first, cell(due, "dim"))]
    if clone is not None:
        far = f"   {FetchProgress.of(clone).words()}, for {span(clone['seconds'])}"
        lines.append((cell(far, "accent"), ()))
    if words := health.damage or health.last_error:
        word = f"{view.word}: " if view.word and not health.damage and view.word != words else ""
        said_by_git = wrapped(word + words, width - 4, 1 if view.hint else 2)
        lines += [(cell(f"   {line}"), ()) for line in said_by_git]
        lines += [(cell(f"   {line}", "warn"), ()) for line in wrapped(view.hint or "", width - 4, 2) if line]
    lines.append((cell(f"   {view.repo.url}", "dim"), ()))
    return lines[:4]
