"""Keeps the model current: decides what is read when, and what follows from an event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from textual.message_pump import MessagePump
from textual.timer import Timer

from appliance.core.node.queries import NodeQueries, RepoView
from appliance.tui.data.activity import seconds_of
from appliance.tui.data.event_follower import ABSENT, EventFollower
from appliance.tui.data.loader import Loader, tell
from appliance.tui.data.messages import (
    EventsArrived,
    FollowerMessage,
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

REPOS, SERVE, TIME, RATES = "repos", "serve", "time", "rates"
"""The topics of which views get news."""

TICK = 1.0
"""Seconds between two beats, at which ages are redrawn and the status of serve is read."""
PACE = 0.5
"""The minimum number of seconds between two reads while events keep coming."""
CALM = 0.2
"""The minimum number of seconds between two redraws caused by events, because nobody can read hundreds per second."""
NEWS_OF_REPOS = frozenset({"refreshed", "recorded", "damaged", "healed", "recovered", "lost"})
"""Events after which the repositories are read again."""
OF_SERVE = frozenset({"pulse", "events"})
"""The names of the reads that call serve instead of the database."""
RECENT = 60
"""The most refreshes that the trend of one repository shows."""


class VisibleView(Protocol):
    """What the follower needs from the view that is on screen."""

    @property
    def has_widgets(self) -> bool:
        """Whether it is there, and not just being removed."""

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed; `news` has the topics."""

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Takes the events that arrived, oldest first."""

    def reread(self) -> None:
        """Reads what this view alone shows."""


class Follower:
    """Keeps `model` current while the app is open, and tells the view returned by `visible` what changed.

    `app` provides the timers, receives what threads post, and passes each FollowerMessage to `receive`.
    """

    def __init__(
        self,
        queries: NodeQueries,
        model: Model,
        loader: Loader,
        app: MessagePump,
        visible: Callable[[], VisibleView | None],
    ) -> None:
        self._queries = queries
        self._model = model
        self._loader = loader
        self._app = app
        self._visible = visible
        self.events = EventFollower(queries.node.layout, app)
        self._pacing: Timer | None = None
        self._telling: Timer | None = None
        self._later: list[tuple[Callable[[], None], VisibleView | None]] = []
        self.beats = 0

    def start(self) -> None:
        """Starts reading, following events, and watching the clock."""
        self.read_repos()
        self.events.start()
        self.read_rates()
        self._app.set_interval(TICK, self._tick)

    def close(self) -> None:
        """Stops following events."""
        self.events.close()

    # Reading

    def read_repos(self) -> None:
        """Reads all repositories from the database."""
        cloning = frozenset(self._model.pulse["cloning"] if self._model.pulse else ())
        self._loader.read("repos", self._app, lambda: ReposRead(self._queries.repos(cloning)))

    def read_pulse(self) -> None:
        """Reads the status of serve."""
        self._loader.read("pulse", self._app, lambda: PulseRead(self._queries.pulse()))

    def read_rates(self) -> None:
        """Reads the hydrations before now; later ones are counted from events."""
        since = (self._model.clock() - RATIO_OVER) // SLOT * SLOT
        work = lambda: RatesRead(since, self._queries.hydration_counts(since, SLOT))  # noqa: E731
        self._loader.read("rates", self._app, work)

    def look_at(self, views: Sequence[RepoView]) -> None:
        """Reads what is shown only of repositories on screen: their last refreshes and the commits at their tips."""
        app, queries = self._app, self._queries
        wanted = [view.repo.name for view in views]
        tips = [
            (view.repo.name, view.health.tip)
            for view in views
            if view.health.tip and (view.repo.name, view.health.tip) not in self._model.tips
        ]
        self._loader.read("recent", app, lambda: RecentRead({name: queries.recent(name, RECENT) for name in wanted}))

        def read_tips() -> None:
            for name, oid in tips:
                tell(app, TipRead(name, oid, queries.tip(name, oid)))

        if tips:
            self._loader.read("tips", app, read_tips)

    # News

    def tell(self, *topics: str) -> None:
        """Tells the view on screen which topics have news."""
        view = self._visible()
        if view is not None:
            view.take(frozenset(topics))

    def receive(self, message: FollowerMessage) -> None:
        """Takes in what was read, or what the event stream announced."""
        match message:
            case EventsArrived():
                self._take_events()
            case ReposRead():
                self._take_repos(message)
            case PulseRead():
                self._take_pulse(message)
            case RatesRead():
                self._take_rates(message)
            case RecentRead():
                self._model.recent |= message.recent
                self.tell(TIME)
            case TipRead():
                self._model.tips[message.repo, message.oid] = message.commit
                self.tell(TIME)
            case ReadFailed():
                self._read_failed(message)
            case ReadRecovered():
                self._read_recovered(message)
            case StreamChanged():
                self._stream_changed(message)

    def _tick(self) -> None:
        self.beats += 1
        self._model.rates.forget_old(self._model.clock())
        if self._model.serving:
            self.read_pulse()
        if self.beats % 2 == 0:
            self.read_repos()
            if "repos" not in self._model.problems and self._model.problems.keys() - OF_SERVE:
                self._reread()
        self.tell(TIME)

    def _take_repos(self, message: ReposRead) -> None:
        found = {view.repo.name: view for view in message.repos}
        if found != self._model.repos or not self._model.read:
            self._model.repos = found
            self._model.read = True
            self.tell(REPOS)

    def _take_pulse(self, message: PulseRead) -> None:
        # An answer that serve gave before it ended may arrive after the news that it ended.
        if not self._model.serving:
            return
        before = set(self._model.pulse["cloning"]) if self._model.pulse else set()
        self._model.pulse = message.pulse
        if message.pulse and set(message.pulse["cloning"]) != before:
            self.read_repos()
        self.tell(SERVE)

    def _take_rates(self, message: RatesRead) -> None:
        # The database includes those that were counted from events meanwhile.
        self._model.rates = Rates()
        for each in message.counts:
            at = message.since + each["slot"] * SLOT
            self._model.rates.add(each["repo"], at, each["way"], each["count"])
        self.tell(RATES)

    def _read_failed(self, message: ReadFailed) -> None:
        """Shows that something cannot be read; what was read last stays on screen."""
        if message.failed is not None:
            message.failed(message)
            return
        if self._model.problems.get(message.name) != message.error.message:
            # Reported once, because a view that gets this news repeats the read that failed.
            self._model.problems[message.name] = message.error.message
            self._model.read = True
            self.tell(SERVE, REPOS)

    def _read_recovered(self, message: ReadRecovered) -> None:
        """Clears the problem, and repeats the reads that may have failed with it."""
        self._model.problems.pop(message.name, None)
        if message.name == "repos":
            self._reread()
        self.tell(SERVE, REPOS)

    def _reread(self) -> None:
        """Repeats every read that failed, or may have failed, while the database could not be read."""
        self._model.problems = {name: text for name, text in self._model.problems.items() if name in OF_SERVE}
        self.read_rates()
        view = self._visible()
        if view is not None:
            view.reread()

    def _stream_changed(self, message: StreamChanged) -> None:
        """Follows a serve that has started, or drops what only a serve that has ended knew."""
        model = self._model
        model.looked = True
        model.serving = message.serving
        model.problems.pop("events", None)
        if message.why and message.why != ABSENT:
            model.problems["events"] = message.why
        if message.serving:
            self.read_pulse()
            self.read_repos()
        else:
            model.pulse = None
            model.problems.pop("pulse", None)
            model.activity.forget_open()
        self.tell(SERVE, RATES)

    def _take_events(self) -> None:
        """Takes the events, and reads what they changed in the database: serve stores that before it publishes them."""
        events = self.events.take()
        for event in events:
            if event["event"] == "hydrated" and event.get("outcome", "complete") == "complete":
                self._model.rates.add(event["repo"], self._model.clock(), event["way"])
            elif event["event"] == "refreshed" and not event["error"]:
                self._model.verified[event["repo"]] = seconds_of(event["at"]) - event["seconds"]
        self._model.activity.take(events)
        if any(event["event"] in NEWS_OF_REPOS for event in events):
            self.soon(self.read_repos)
        view = self._visible()
        if view is not None:
            view.happened(events)
        if self._telling is None:
            self.tell(RATES)
            self._telling = self._app.set_timer(CALM, self.tell_rates)

    def tell_rates(self) -> None:
        """Shows what events changed since the last redraw."""
        self._telling = None
        self.tell(RATES)

    def soon(self, read: Callable[[], None], of: VisibleView | None = None) -> None:
        """Reads what events announced: immediately, but at most every PACE seconds while events keep coming.

        What is read for a view is not read once that is gone.
        """
        if (read, of) not in self._later:
            self._later.append((read, of))
        if self._pacing is None:
            self._read_announced()

    def _read_announced(self) -> None:
        reads, self._later = self._later, []
        for read, view in reads:
            if view is None or view.has_widgets:
                read()
        self._pacing = self._app.set_timer(PACE, self._read_announced) if reads else None
