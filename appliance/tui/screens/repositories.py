"""The start screen: every repository, the unhealthy ones first, and why the chosen one is in its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.timer import Timer

from appliance.core.models import UNHEALTHY
from appliance.core.node.queries import RepoView
from appliance.tui.context import Context, OpenRepository
from appliance.tui.data.details import RepoDetails, read_details
from appliance.tui.data.follower import RATES, REPOS, SERVE, TIME
from appliance.tui.data.messages import DetailsRead
from appliance.tui.data.model import EVERY
from appliance.tui.screens.marking import MARK_KEYS
from appliance.tui.screens.repo_actions import REPO_KEYS
from appliance.tui.screens.repo_batches import RepoBatches
from appliance.tui.screens.repo_beside import beside_lines
from appliance.tui.screens.repo_columns import RepoColumns, explain
from appliance.tui.text import STATES, Piece, cell, hydration_words, plain
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.listing import Listing

ORDER = list(STATES)
BESIDE = 120
"""Columns from which on the chosen repository stands beside the list, in full, and not below it in four lines."""
RESTS = 0.12
"""Seconds for which the cursor rests on a row before its details are read."""
DETAILS_EVERY = 2.0
"""Seconds between two reads of the details, besides those that events of the repository bring about."""


class RepositoriesScreen(RepoBatches):
    """Lists every repository."""

    heading = "Repositories"
    here = "repositories"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open", tooltip="open the view of one repository"),
        Binding("b", "behind", "what is behind", tooltip="go to what is behind, worst first, and see why"),
        Binding("slash", "filter", "filter", tooltip="filter by name, state, branch"),
        *REPO_KEYS,
        *MARK_KEYS,
        Binding("s", "sort", "sort", tooltip="sort by state, name, lag, size, …"),
        Binding("escape", "back", "clear the filter", show=False, tooltip="clear the filter, then take all marks off"),
    ]

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (BESIDE, "-wide")]  # noqa: RUF012 - the type is Textual's

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._sorting = 0
        self._details = RepoDetails("", is_read=False)
        self._resting: Timer | None = None
        self._read_at = 0.0

    def body(self) -> ComposeResult:
        """Yields the summary, the list, and the explanation beside or below it."""
        yield Lines(id="summary")
        columns = RepoColumns(self.model, self.context.node.config.refresh.stale_after, self.marks).all()
        listing: Listing[RepoView] = Listing(
            columns, lambda view: view.repo.name, empty="reading…", marks=True, id="list"
        )
        with Container(id="both"):
            yield listing
            yield Lines(id="beside")
        yield Lines(id="why")

    @property
    def has_widgets(self) -> bool:
        """Whether the widgets exist, the list in its container, too."""
        return super().has_widgets and bool(self.query("#beside"))

    @property
    def listing(self) -> Listing[RepoView]:
        """The list of repositories."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the list."""
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
            self.context.follower.look_at(self.listing.visible_rows())
        # Not while the cursor moves: its rest brings about a read.
        if TIME in news and not self.is_waiting and time.monotonic() - self._read_at > DETAILS_EVERY:
            self._read_details()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads the details again if something happened to the chosen repository."""
        view = self.listing.row
        if view is not None and any(event.get("repo") == view.repo.name for event in events):
            self.context.follower.soon(self._read_details, self)

    def reread(self) -> None:
        """Reads details that are shown only for visible rows, and those of the chosen one."""
        self.context.follower.look_at(self.listing.visible_rows())
        self._read_details()

    @property
    def is_beside(self) -> bool:
        """Whether the chosen repository stands beside the list."""
        return self.size.width >= BESIDE

    @property
    def is_waiting(self) -> bool:
        """Whether the details are to be read once the cursor has rested."""
        return self._resting is not None

    def _read_details(self) -> None:
        """Reads what only the chosen repository shows, if there is room to show it."""
        view, queries = self.listing.row, self.context.queries
        self._resting, self._read_at = None, time.monotonic()
        if self.is_beside and view is not None:
            name = view.repo.name
            self.context.loader.read("details", self, lambda: DetailsRead(read_details(queries, name)))

    def on_details_read(self, message: DetailsRead) -> None:
        """Shows the details, unless the cursor has moved on."""
        self._details = message.details
        self._explain()

    def show_marks(self) -> None:
        """Shows how many are marked."""
        self._summarise()

    def filtered(self) -> None:
        """Lists the rows that match now."""
        self._arrange()
        self._summarise()

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.listing.focus()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Explains the state of the row under the cursor; its details are read once the cursor rests there."""
        self._explain()
        self.offer_keys()
        if self._resting is not None:
            self._resting.stop()
        self._resting = self.set_timer(RESTS, self._read_details)
        self.context.follower.look_at(self.listing.visible_rows())

    @property
    def chosen(self) -> RepoView | None:
        """The repository under the cursor."""
        return self.listing.row

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Opens the view of the chosen repository."""
        self.post_message(OpenRepository(event.row.repo.name))

    def on_listing_sorted(self) -> None:
        """Says by which column the list is sorted now."""
        self._summarise()

    def action_sort(self) -> None:
        """Sorts by the next order."""
        self.listing.unsort()
        self._sorting = (self._sorting + 1) % len(self._orders())
        self._arrange()
        self._summarise()

    def action_behind(self) -> None:
        """Goes to the repository that is behind the most, or on to the next when it is on one already."""
        behind = sorted((view for view in self.model.repos.values() if view.state in UNHEALTHY), key=self._badness)
        if not behind:
            self.context.say("Nothing is behind.")
            return
        names = [view.repo.name for view in behind]
        chosen = self.listing.row.repo.name if self.listing.row else ""
        if names == [chosen]:
            self.context.say(f"Nothing else is behind: only {plain(chosen)}.")
            return
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
        return ORDER.index(view.state), verified if view.state in UNHEALTHY else 0.0, view.repo.name

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
            return f"No repository matches {self.filter_words}. Escape clears the filter."
        if "repos" in self.model.problems:
            return "Nothing can be read; the line below says why."
        way = "the key a adds one" if self.model.serving else "gitmirror.pyz add-repo URL"
        return f"No repository is registered yet: {way}" if self.model.read else "reading…"

    # The lines above and below

    def _summarise(self) -> None:
        model = self.model
        counts = model.counts()
        marked = len(self.marked)
        left: list[Piece] = [(" ", ""), (f"{marked:,} marked  " if marked else "", "accent")]
        for state, (shape, tone) in STATES.items():
            if number := counts.get(state):
                left.append((f"{shape} {number:,} {state}  ", tone))
        warm, all_counted = model.rates.hits(EVERY)
        rate = f"{hydration_words(model.rates.per_minute(EVERY, model.clock()), warm, all_counted)}  "
        order = f"sorted by {self.listing.sorted_by or self._orders()[self._sorting][0]} "
        summary = self.query_one("#summary", Lines)
        room = summary.size.width - sum(len(text) for text, _ in left)
        summary.show((tuple(left), cell(rate + order if len(rate + order) < room else order, "dim")))

    def _explain(self) -> None:
        view = self.listing.row
        if self.is_beside:
            self._tell_beside(view)
            return
        why = self.query_one("#why", Lines)
        model, width = self.model, why.size.width
        why.show(*(explain(view, model.lag(view), model.clock(), width, model.clone_of(view)) if view else ()))

    def _tell_beside(self, view: RepoView | None) -> None:
        beside = self.query_one("#beside", Lines)
        if view is None:
            beside.show()
            return
        details = self._details if self._details.repo == view.repo.name else RepoDetails("", is_read=False)
        beside.show(*beside_lines(view, details, self.model, beside.size.width, beside.size.height))
