"""The app as far as it reads: what is known, what is read when, what an event sets off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textual.app import App
from textual.timer import Timer

from appliance.core.node.queries import NodeQueries, RepoView
from appliance.tui.data.activity import seconds_of
from appliance.tui.data.event_follower import ABSENT, EventFollower
from appliance.tui.data.loader import Loader, tell
from appliance.tui.data.messages import (
    EventsArrived,
    PulseRead,
    RatesRead,
    ReadFailed,
    ReadRecovered,
    RecentRead,
    ReposRead,
    StreamChanged,
    TipRead,
)
from appliance.tui.data.model import RATIO_OVER, SLOT, Model, Rates
from appliance.tui.screens.view import RATES, REPOS, SERVE, TIME, View

TICK = 1.0
"""Seconds between two looks at the clock."""
SETTLE = 0.1
"""Seconds after an event until the database is read: what serve tells, it writes right behind."""
AGAIN = 0.5
"""Seconds after an event until it is read again, and the least between two reads while events come all the time."""
CALM = 0.2
"""The least seconds between two redraws because of events: hundreds a second are not read one by one."""
OF_SERVE = frozenset({"pulse", "events"})
"""Troubles that are not the database's."""
RECENT = 60
"""Refreshes that the trend of one repository may show."""


class Reading(App[None]):
    """Keeps `model` true while it is open, and tells the view that is seen."""

    def __init__(self, queries: NodeQueries, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(**options)
        self.queries = queries
        self.node = queries.node
        self.model = Model(clock)
        self.loader = Loader(self)
        self.events = EventFollower(queries.node.layout, self)
        self._settling: Timer | None = None
        self._telling: Timer | None = None
        self._later: list[Callable[[], None]] = []
        self._beat = 0

    def on_mount(self) -> None:
        """Begins to read."""
        self.read_repos()
        self.events.start()
        self.read_rates()
        self.set_interval(TICK, self._tick)

    def on_unmount(self) -> None:
        """Hangs up."""
        self.events.close()

    # Reading

    def read_repos(self) -> None:
        """All repositories, as the database has them."""
        cloning = frozenset(self.model.pulse["cloning"] if self.model.pulse else ())
        self.loader.read("repos", self, lambda: ReposRead(self.queries.repos(cloning)))

    def read_pulse(self) -> None:
        """How serve is."""
        self.loader.read("pulse", self, lambda: PulseRead(self.queries.pulse()))

    def read_rates(self) -> None:
        """Hydrations before now; from then on the events count."""
        since = (self.model.clock() - RATIO_OVER) // SLOT * SLOT
        self.loader.read("rates", self, lambda: RatesRead(since, self.queries.hydration_counts(since, SLOT)))

    def look_at(self, views: Sequence[RepoView]) -> None:
        """Reads what is shown of these alone: their last refreshes, and the commits at their tips."""
        model, queries = self.model, self.queries
        wanted = [view.repo.name for view in views]
        tips = [
            (view.repo.name, view.health.tip)
            for view in views
            if view.health.tip and (view.repo.name, view.health.tip) not in model.tips
        ]
        self.loader.read("recent", self, lambda: RecentRead({name: queries.recent(name, RECENT) for name in wanted}))

        def read_tips() -> None:
            for name, oid in tips:
                tell(self, TipRead(name, oid, queries.tip(name, oid)))

        if tips:
            self.loader.read("tips", self, read_tips)

    # News

    def _view(self) -> View | None:
        """The one that is seen, below a dialog too."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, View) and s.is_mounted), None)

    def _news(self, *topics: str) -> None:
        view = self._view()
        if view is not None and view.is_current_view:
            view.take(frozenset(topics))

    def _tick(self) -> None:
        self._beat += 1
        self.model.rates.forget_old(self.model.clock())
        if self.model.serving:
            self.read_pulse()
        if self._beat % 2 == 0:
            self.read_repos()
            if "repos" not in self.model.problems and self.model.problems.keys() - OF_SERVE:
                self._reread()
        self._news(TIME)

    def on_repos_read(self, message: ReposRead) -> None:
        """Repositories."""
        found = {view.repo.name: view for view in message.repos}
        if found != self.model.repos or not self.model.read:
            self.model.repos = found
            self.model.read = True
            self._news(REPOS)

    def on_pulse_read(self, message: PulseRead) -> None:
        """Serve is so. What it told before it ended may arrive after the word that it did."""
        if not self.model.serving:
            return
        before = set(self.model.pulse["cloning"]) if self.model.pulse else set()
        self.model.pulse = message.pulse
        if message.pulse and set(message.pulse["cloning"]) != before:
            self.read_repos()
        self._news(SERVE)

    def on_rates_read(self, message: RatesRead) -> None:
        """Hydrations before now; those that events told are among them."""
        self.model.rates = Rates()
        for each in message.counts:
            at = message.since + each["slot"] * SLOT
            self.model.rates.add(each["repo"], at, each["way"], each["count"])
        self._news(RATES)

    def on_recent_read(self, message: RecentRead) -> None:
        """Refreshes of what is on screen."""
        self.model.recent |= message.recent
        self._news(TIME)

    def on_tip_read(self, message: TipRead) -> None:
        """A commit at a tip."""
        self.model.tips[message.repo, message.oid] = message.commit
        self._news(TIME)

    def on_read_failed(self, message: ReadFailed) -> None:
        """Something cannot be read: said, and what was read last stays."""
        if message.failed is not None:
            message.failed(message)
            return
        if self.model.problems.get(message.name) != message.error.message:
            # Told once: what is shown then reads again what failed.
            self.model.problems[message.name] = message.error.message
            self.model.read = True
            self._news(SERVE, REPOS)

    def on_read_recovered(self, message: ReadRecovered) -> None:
        """It can be read again, and so can what else failed."""
        self.model.problems.pop(message.name, None)
        if message.name == "repos":
            self._reread()
        self._news(SERVE, REPOS)

    def _reread(self) -> None:
        """Whatever failed, or may have: the database can be read."""
        self.model.problems = {name: text for name, text in self.model.problems.items() if name in OF_SERVE}
        self.read_rates()
        view = self._view()
        if view is not None:
            view.reread()

    def on_stream_changed(self, message: StreamChanged) -> None:
        """A serve is there, or gone."""
        self.model.looked = True
        self.model.serving = message.serving
        self.model.problems.pop("events", None)
        if message.why and message.why != ABSENT:
            self.model.problems["events"] = message.why
        if message.serving:
            self.read_pulse()
            self.read_repos()
        else:
            self.model.pulse = None
            self.model.problems.pop("pulse", None)
            self.model.activity.forget_open()
        self._news(SERVE, RATES)

    def on_events_arrived(self, message: EventsArrived) -> None:
        """Takes the events; what they changed in the database is read when it has it, see `soon`."""
        events = self.events.take()
        for event in events:
            if event["event"] == "hydrated":
                self.model.rates.add(event["repo"], self.model.clock(), event["way"])
            elif event["event"] == "refreshed" and not event["error"]:
                self.model.verified[event["repo"]] = seconds_of(event["at"]) - event["seconds"]
        self.model.activity.take(events)
        if any(event["event"] in ("refreshed", "recorded", "lost") for event in events):
            self.soon(self.read_repos)
        view = self._view()
        if view is not None:
            view.happened(events)
        if self._telling is None:
            self._news(RATES)
            self._telling = self.set_timer(CALM, self._tell_rates)

    def _tell_rates(self) -> None:
        self._telling = None
        self._news(RATES)

    def soon(self, read: Callable[[], None]) -> None:
        """Reads when the database has what an event told, and once more: not more often than twice a second."""
        if read not in self._later:
            self._later.append(read)
        if self._settling is None:
            self._settling = self.set_timer(SETTLE, self._read_settled)

    def _read_settled(self) -> None:
        reads, self._later = self._later, []
        for read in reads:
            read()

        def again() -> None:
            self._settling = None
            more, self._later = self._later, []
            for read in [*reads, *(each for each in more if each not in reads)]:
                read()

        self._settling = self.set_timer(AGAIN, again)
