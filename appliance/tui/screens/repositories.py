"""The start: every repository, the ones in trouble first, and why the chosen one is as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from appliance.core.models import State
from appliance.core.overview import RepoView
from appliance.tui.screens.view import RATES, REPOS, SERVE, TIME, View
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Column, Listing
from appliance.tui.words import STATES, Cell, Piece, cell, count, lags, percent, size, span, spark, state_cell

ORDER = list(STATES)
BEHIND = (State.FAILING, State.STALE)
SPARK = 8


class Repositories(View):
    """Every repository."""

    here = "repositories"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "behind", "behind: why", show=True),
        Binding("s", "sort", "sort", show=True),
        Binding("slash", "filter", "filter", show=True),
        Binding("escape", "back", "drop the filter", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._sorting = 0
        self.columns = [
            Column("REPOSITORY", self._title, 20, 0, 34, grows=True),
            Column("STATE", lambda view: state_cell(view.state), 10, 0),
            Column("LAG", self._lag, 6, 1, right=True),
            Column("TREND", self._trend, SPARK, 4),
            Column("BRANCH", lambda view: cell(view.branch or "", "dim"), 6, 7, 14),
            Column("TIP", self._subject, 16, 5, 40, grows=True),
            Column("AGE", self._age, 6, 6, right=True),
            Column("CHECKED", self._checked, 7, 8, right=True),
            Column("SIZE", lambda view: cell(size(view.health.size) if view.health.cloned else ""), 8, 3, right=True),
            Column("SESS", self._sessions, 5, 2, right=True),
            Column("HYD/MIN", self._rate, 7, 3, right=True),
            Column("HITS", self._hits, 4, 4, right=True),
        ]  # fmt: skip

    def body(self) -> ComposeResult:
        """A summary, the list, the reason."""
        yield Lines(id="summary")
        listing: Listing[RepoView] = Listing(self.columns, lambda view: view.repo.name, empty="reading…", id="list")
        yield listing
        yield Lines(id="why")

    @property
    def listing(self) -> Listing[RepoView]:
        """The list."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """The list has the keys."""
        self.listing.focus()

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if REPOS in news:
            self._arrange()
        elif {TIME, RATES} & news:
            self.listing.touch()
        if {REPOS, TIME, RATES, SERVE} & news:
            self._summarise()
            self._explain()
        if REPOS in news:
            self.tui.look_at(self.listing.visible_rows())

    def filtered(self) -> None:
        """Other rows match."""
        self._arrange()
        self._summarise()

    def focus_body(self) -> None:
        """Back to the list."""
        self.listing.focus()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Says why the row is as it is."""
        self._explain()
        self.tui.look_at(self.listing.visible_rows())

    def action_sort(self) -> None:
        """The next order."""
        self._sorting = (self._sorting + 1) % len(self._orders())
        self._arrange()
        self._summarise()

    def action_behind(self) -> None:
        """To the worst that is behind; again: to the next one."""
        behind = sorted((view for view in self.model.repos.values() if view.state in BEHIND), key=self._badness)
        if not behind:
            self.notify("Nothing is behind.", markup=False)
            return
        names = [view.repo.name for view in behind]
        chosen = self.listing.row.repo.name if self.listing.row else ""
        following = names[(names.index(chosen) + 1) % len(names)] if chosen in names else names[0]
        if not self.listing.select(following):
            self.action_back()
            self.listing.select(following)

    # Order

    def _orders(self) -> list[tuple[str, Callable[[RepoView], Any]]]:
        model = self.model
        return [
            ("state", self._badness),
            ("name", lambda view: view.repo.name),
            ("lag", lambda view: -(model.lag(view) or 0)),
            ("size", lambda view: -view.health.size),
            ("sessions", lambda view: -view.health.sessions),
            ("hydrations", lambda view: -model.rates.per_minute(view.repo.name, model.clock())),
        ]

    @staticmethod
    def _badness(view: RepoView) -> tuple[int, float, str]:
        verified = view.health.verified_at or 0.0
        return ORDER.index(view.state), verified if view.state in BEHIND else 0.0, view.repo.name

    def _arrange(self) -> None:
        model = self.model
        words = self.filter_words.lower().split()
        found = [
            view
            for view in model.repos.values()
            if all(word in f"{view.repo.name} {view.state} {view.branch}".lower() for word in words)
        ]
        found.sort(key=lambda view: view.repo.name)
        found.sort(key=self._orders()[self._sorting][1])
        self.listing.empty = self._nothing()
        self.listing.show(found)

    def _nothing(self) -> str:
        if self.filter_words and self.model.repos:
            return f"No repository matches {self.filter_words}. Escape drops the filter."
        return "No repository is registered yet: a adds one." if self.model.read else "reading…"

    # The lines above and below

    def _summarise(self) -> None:
        model = self.model
        counts = model.counts()
        left: list[Piece] = [(" ", "")]
        for state, (shape, tone) in STATES.items():
            if number := counts.get(state):
                left.append((f"{shape} {number:,} {state}   ", tone))
        warm, all_counted = model.rates.hits(None)
        rate = f"{model.rates.per_minute(None, model.clock()):,} hyd/min, {percent(warm, all_counted)} hits"
        order = self._orders()[self._sorting][0]
        self.query_one("#summary", Lines).show((tuple(left), ((f"{rate}  by {order} ", "dim"),)))

    def _explain(self) -> None:
        view = self.listing.row
        self.query_one("#why", Lines).show(*(explain(view, self.model.clock()) if view else ()))

    # Columns

    def _title(self, view: RepoView) -> Cell:
        owner, slash, name = view.repo.name.rpartition("/")
        return (owner + slash, "dim"), (name, "strong")

    def _lag(self, view: RepoView) -> Cell:
        lag = self.model.lag(view)
        return cell("" if lag is None else span(lag), STATES[view.state][1] if view.state in BEHIND else "")

    def _trend(self, view: RepoView) -> Cell:
        recent = self.model.recent.get(view.repo.name)
        tone = STATES[view.state][1]
        limit = self.tui.overview.appliance.config.refresh.stale_after
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

    def _sessions(self, view: RepoView) -> Cell:
        return cell(f"{view.health.sessions:,}" if view.health.sessions else "")

    def _rate(self, view: RepoView) -> Cell:
        rate = self.model.rates.per_minute(view.repo.name, self.model.clock())
        return cell(f"{rate:,}" if rate else "", "accent")

    def _hits(self, view: RepoView) -> Cell:
        warm, counted = self.model.rates.hits(view.repo.name)
        return cell(percent(warm, counted) if counted else "")


def explain(view: RepoView, now: float) -> list[Line]:
    """Why a repository is as it is, in three lines: state, reason, what to do or expect."""
    health, state = view.health, view.state
    shape, tone = STATES[state]
    lag = None if health.verified_at is None else now - health.verified_at
    due = f"next try in {span(health.next_due - now)}" if health.next_due > now else "a try is due now"
    said = {
        State.FAILING: f"{count(health.failures, 'failure')} in a row, behind for {span(lag)}; {due}",
        State.STALE: f"not verified for {span(lag)}; {due}",
        State.CLONING: "its first clone is under way",
        State.NEW: "registered, its first clone has not begun",
        State.FRESH: f"equal to its upstream {span(lag)} ago; looked at every {span(view.interval)}",
        State.DISABLED: "neither refreshed nor served; what it has is kept",
    }[state]
    if state is State.FAILING and lag is None:
        said = f"never cloned, {count(health.failures, 'failure')} in a row; {due}"
    first: Cell = ((f" {shape} {view.repo.name} ", tone), (f"is {state}: {said}", ""))
    error = health.last_error
    word = f"{view.word}: " if view.word and view.word != error else ""
    second: Cell = ((f"   {word}{error}", ""),) if error else ((f"   {view.repo.url}", "dim"),)
    third: Cell = ((f"   {view.hint or view.repo.url}", "dim"),) if error else cell("")
    return [(first, ()), (second, ()), (third, ())]
