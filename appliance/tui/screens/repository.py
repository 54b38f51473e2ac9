"""One repository: its state and why, a plot of its refreshes, and lists of refreshes, refs, hydrations and sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from appliance.core.models import ALLOWED, RefText
from appliance.core.node.queries import RepoView
from appliance.tui.context import Context, OpenDiff
from appliance.tui.data.activity import ActivityEntry, ActivityFeed
from appliance.tui.data.details import RepoDetails, moves_of
from appliance.tui.data.facts import ref_facts
from appliance.tui.data.follower import RATES, REPOS, SERVE, TIME
from appliance.tui.data.messages import HydrationsRead, ReadFailed, RefreshesRead, RefsRead, SessionsRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.data.session_query import Found, parse_query
from appliance.tui.screens.activity import VAST, activity_columns, text_of
from appliance.tui.screens.opening import Opening
from appliance.tui.screens.repo_actions import REPO_KEYS, RepoActions
from appliance.tui.screens.repo_beside import detail_lines
from appliance.tui.screens.repo_columns import explain, ref_columns
from appliance.tui.screens.session_columns import SessionColumns
from appliance.tui.screens.session_list import SessionList
from appliance.tui.screens.session_marking import SESSION_MARK_KEYS, SessionMarking
from appliance.tui.text import Cell, Piece, cell, count, hydration_words, origin, size, span
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Listing
from appliance.tui.widgets.plot import Plot

Shown = TypeVar("Shown")

TABS = ("refreshes", "refs", "hydrations", "sessions")
READ = 500
ASIDE = 50
"""The most rows of each other list that are shown beside."""
_SOURCES = {"config": "from the config", ALLOWED: "brought by a guest"}
"""Where a repository comes from, if not from the command line."""


class RepositoryScreen(RepoActions, SessionMarking, Opening):
    """Shows the repository `name`."""

    heading = "Repository"
    here = "repositories"
    opened = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "back"),
        Binding("enter", "open", "open", tooltip="the row whole; for a session, what it changed"),
        Binding("slash", "filter", "filter", tooltip="filter this list by any words of a row"),
        Binding("tab,right", "tab(1)", "next list", tooltip="refreshes, refs, hydrations, sessions"),
        Binding("shift+tab,left", "tab(-1)", "list before", show=False),
        Binding("u", "quiet", "unchanged too", tooltip="show or hide refreshes that moved nothing"),
        *SESSION_MARK_KEYS,
        *REPO_KEYS,
    ]

    def __init__(self, context: Context, name: str) -> None:
        super().__init__(context)
        self.repo = name
        self.session_list = SessionList(name)
        self._tab = 0
        self._quiet = False
        self._refreshes: list[dict[str, Any]] = []
        self._recent: list[tuple[float, float, str]] = []
        self._hydrations = ActivityFeed()
        self._refs: list[RefText] = []
        self._no_refs = "It has no branch and no tag yet."
        self._filters = [""] * len(TABS)

    def body(self) -> ComposeResult:
        """Yields the explanation, the plot, and four lists, one of which is shown."""
        yield Lines(id="why")
        yield Lines(id="facts")
        yield Plot(id="plot")
        yield Lines(id="tabs")
        columns = activity_columns(with_repo=False)
        sessions = SessionColumns(self.model.clock, self.session_list.marks).all(
            with_repo=False, with_node=self.context.node.config.fleet.is_on
        )
        refreshes, hydrations = columns[:1] + columns[2:4] + columns[5:6], columns[:1] + columns[2:]
        lists: tuple[Listing[Any], ...] = (
            Listing(refreshes, lambda row: row.key, empty="reading…", id="refreshes"),
            Listing(ref_columns(self.model.clock), lambda row: row.ref, empty="reading…", id="refs"),
            Listing(hydrations, lambda row: row.key, empty="reading…", id="hydrations"),
            Listing(sessions, lambda row: row.name, empty="reading…", marks=True, id="sessions"),
        )
        with Container(id="both"):
            with Container(id="lists"):
                for listing in lists:
                    listing.display = listing.id == TABS[0]
                    yield listing
            yield Lines(id="aside")

    @property
    def has_widgets(self) -> bool:
        """Whether the widgets exist, the lists in their containers, too."""
        return super().has_widgets and bool(self.query("#sessions")) and bool(self.query("#aside"))

    @property
    def chosen(self) -> RepoView | None:
        """This repository; None once it is not registered any more."""
        return self.model.repos.get(self.repo)

    @property
    def listing(self) -> Listing[Any]:
        """The list that is shown now."""
        return self.query_one(f"#{TABS[self._tab]}", Listing)

    @property
    def session_listing(self) -> Listing[SessionRow] | None:
        """The list of sessions while it is shown."""
        return self.listing if TABS[self._tab] == "sessions" else None

    def offers(self, binding: Binding) -> bool:
        """Whether the key belongs to what the view shows: marks are for sessions, and `u` is for refreshes."""
        if binding.action == "quiet":
            return self._tab == 0
        return super().offers(binding) and (binding not in SESSION_MARK_KEYS or self.session_listing is not None)

    def show_marks(self) -> None:
        """Shows how many sessions are marked."""
        self._tell()

    def on_mount(self) -> None:
        """Focuses the list."""
        self.listing.focus()

    def reread(self) -> None:
        """Reads all lists, hydrations too, because their events went to another view meanwhile."""
        queries, name = self.context.queries, self.repo
        self._hydrations = ActivityFeed()
        self.context.loader.read("hydrations", self, lambda: HydrationsRead(name, queries.hydrations(name, READ)))
        self._read_changed()

    def _read_changed(self) -> None:
        queries, name = self.context.queries, self.repo
        read = self.context.loader.read
        read("refreshes", self, lambda: RefreshesRead(name, queries.refreshes(name, READ), queries.recent(name, READ)))
        read("refs", self, lambda: RefsRead(name, queries.refs(name)), failed=self.cannot_read_refs)
        self.session_list.read(self.context, self)

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if {REPOS, TIME, RATES, SERVE} & news:
            self._tell()
        if {TIME, RATES} & news:
            self.listing.touch()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Takes the events of this repository."""
        mine = [event for event in events if event["event"] == "lost" or event["repo"] == self.repo]
        if self._hydrations.take(each for each in mine if each["event"] in ("hydrating", "hydrated", "lost")):
            self._show_hydrations()
        if any(each["event"] in ("refreshed", "recorded", "lost") for each in mine):
            self.context.follower.soon(self._read_changed, self)

    def done(self) -> None:
        """Reads the lists again, all sessions included, because one may be gone."""
        self._read_changed()
        self.session_list.read(self.context, self, whole=True)

    def on_refreshes_read(self, message: RefreshesRead) -> None:
        """Shows its refreshes."""
        self._refreshes, self._recent = message.refreshes, message.recent
        self._show_refreshes()
        self._draw()

    def on_refs_read(self, message: RefsRead) -> None:
        """Shows its refs."""
        self._refs, self._no_refs = message.refs, "It has no branch and no tag yet."
        self._show_refs()

    def cannot_read_refs(self, message: ReadFailed) -> None:
        """Shows that there is no mirror to read refs from, the usual reason for the error."""
        if not self.has_widgets:
            # The view was left while the refs were read.
            return
        self._refs, self._no_refs = [], "There is no mirror to read yet."
        self._show_refs()

    def on_hydrations_read(self, message: HydrationsRead) -> None:
        """Shows earlier hydrations below those that events reported."""
        if not self._hydrations.read:
            self._hydrations.fill(message.hydrations, (), ())
        self._show_hydrations()
        self._tell()

    def on_sessions_read(self, message: SessionsRead) -> None:
        """Shows its sessions."""
        self.session_list.take(message, self.context, self)
        self._show_sessions()
        self._tell()
        self.offer_keys()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Says where the guest of the row under the cursor came from."""
        self._tell()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Opens what the chosen session changed, or another row whole."""
        row = event.row
        if isinstance(row, SessionRow):
            self.post_message(OpenDiff(row, None))
        elif isinstance(row, RefText):
            facts = [
                *ref_facts(row, self.model.clock()),
                ("fetch it", f"{self.clone_line(self.repo)} --branch {_short(row)}"),
            ]
            self.show_whole(f"Ref of {self.repo}", facts)
        else:
            self.open_entry(row)

    def on_lines_clicked(self, event: Lines.Clicked) -> None:
        """Shows the list whose name was clicked."""
        if event.lines.id == "tabs" and event.text.strip() in TABS:
            self.action_tab(TABS.index(event.text.strip()) - self._tab)

    def filtered(self) -> None:
        """Lists the rows that match now, in the list that is shown."""
        self._filters[self._tab] = self.filter_words
        self._show_list()
        self._tell()

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.listing.focus()

    def _show_list(self) -> None:
        (self._show_refreshes, self._show_refs, self._show_hydrations, self._show_sessions)[self._tab]()

    def action_tab(self, by: int) -> None:
        """Shows the next list, or the one before."""
        self.listing.display = False
        self._tab = (self._tab + by) % len(TABS)
        self.listing.display = True
        self.listing.focus()
        self.show_filter(self._filters[self._tab])
        self._tell()
        self.offer_keys()

    def action_quiet(self) -> None:
        """Shows or hides refreshes that moved nothing."""
        self._quiet = not self._quiet
        self._show_refreshes()
        self._tell()

    def on_resize(self) -> None:
        """Draws the plot again in the new width; on a wide terminal, the other lists stand beside the one shown."""
        self.set_class(self.size.width >= VAST, "-vast")
        super().on_resize()
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        if self.has_widgets:
            self.query_one(Plot).draw(self._recent, self.model.clock())
            self._tell()

    def _show_refreshes(self) -> None:
        activity = ActivityFeed()
        activity.fill((), (), self._refreshes)
        rows = activity.rows
        nothing = "No refresh that moved anything; u shows all." if rows else "No refresh has ended yet."
        self._fill(0, [row for row in rows if self._quiet or not row.quiet], text_of, nothing)

    def _show_refs(self) -> None:
        self._fill(1, self._refs, lambda row: f"{row.ref} {row.oid} {row.subject}".lower(), self._no_refs)

    def _show_hydrations(self) -> None:
        self._fill(2, self._hydrations.rows, text_of, "No guest has fetched from it yet.")

    def _show_sessions(self) -> None:
        listing: Listing[SessionRow] = self.query_one("#sessions", Listing)
        words = self._filters[3]
        query = parse_query(words, self.model.clock())
        listing.empty = (
            "2 goes to all sessions, which are searched by path: too."
            if query.sought.path is not None
            else query.wrong or (_no_match(words) if words else "No agent has recorded anything in it yet.")
        )
        listing.show(self.session_list.matching(query, Found()))

    def _fill(self, tab: int, rows: Sequence[Shown], text: Callable[[Shown], str], nothing: str) -> None:
        """Shows those of the rows in a list that have all the words of its filter."""
        listing: Listing[Shown] = self.query_one(f"#{TABS[tab]}", Listing)
        words = self._filters[tab].lower().split()
        listing.empty = _no_match(self._filters[tab]) if words and rows else nothing
        listing.show([row for row in rows if all(word in text(row) for word in words)] if words else rows)

    def _tell(self) -> None:
        view, model, why = self.chosen, self.model, self.query_one("#why", Lines)
        if view is None:
            why.show((cell(f" ◇ {self.repo} is not registered", "warn"), ()))
            self.query_one("#facts", Lines).show()
        else:
            lines = explain(view, model.lag(view), model.clock(), why.size.width, model.clone_of(view))
            why.styles.height = len(lines)
            why.show(*lines)
            self._tell_aside(view)
            self.query_one("#facts", Lines).show(*self._facts(view))
        tabs: list[Piece] = [(" ", "")]
        for place, word in enumerate(TABS):
            tabs.append((f" {word} ", "here" if place == self._tab else "dim"))
        hint = "u: unchanged too " if self._tab == 0 and not self._quiet else ""
        if self.session_listing and (marked := len(self.session_list.marked)):
            hint = f"{marked:,} marked "
        if self._filters[self._tab]:
            hint = f"{count(len(self.listing.rows), 'row')} of the filter  {hint}"
        if isinstance(row := self.listing.row, (ActivityEntry, SessionRow)) and (who := origin(row.client, row.guest)):
            hint = f"{who}  {hint}"
        self.query_one("#tabs", Lines).show((tuple(tabs), cell(hint, "dim")))

    def _tell_aside(self, view: RepoView) -> None:
        aside, feed = self.query_one("#aside", Lines), self._hydrations
        if width := aside.size.width:
            moves, sessions = moves_of(self._refreshes), self.session_list.rows[:ASIDE]
            known = RepoDetails(self.repo, moves, feed.rows[:ASIDE], sessions, len(self._refreshes), feed.read)
            now, height, shown = self.model.clock(), aside.size.height + 1, TABS[self._tab]
            aside.show(*detail_lines(view, known, now, width, height, without=shown)[1:])

    def _facts(self, view: RepoView) -> list[Line]:
        health, model = view.health, self.model
        tip = model.tip(view)
        warm, counted = model.rates.hits(self.repo)
        commit: Cell = ((f" {view.branch or 'no branch'} ", "strong"), ((health.tip or "no tip yet")[:10], "accent"))
        if tip:
            commit += ((f"  {tip.subject}", ""),)
        age: Cell = cell(f"{span(model.clock() - tip.at)} ago by {tip.author} ", "dim") if tip else ()
        numbers = (
            f" {count(health.refs, 'ref')}, {size(health.size)}, {count(health.sessions, 'session')}, "
            f"{hydration_words(model.rates.per_minute(self.repo, model.clock()), warm, counted)}"
        )
        private = "private, " if view.private else ""
        source = f"{private}{_SOURCES.get(view.repo.source, 'from the command line')} "
        has_room = len(numbers) + len(source) < self.size.width
        return [(commit, age), (cell(numbers), cell(source if has_room else "", "dim"))]


def _no_match(words: str) -> str:
    return f"No row matches {words}. Escape clears the filter."


def _short(ref: RefText) -> str:
    return ref.ref.removeprefix("refs/").partition("/")[2]
