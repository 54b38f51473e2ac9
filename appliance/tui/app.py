"""The app: what is known, who reads it, which screen shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.timer import Timer

from appliance.core.overview import Overview, RepoView
from appliance.tui.messages import (
    ActionDone,
    ActionFailed,
    Happened,
    PulseRead,
    RatesRead,
    ReadFailed,
    ReadWorks,
    RecentRead,
    ReposRead,
    TipRead,
    Watching,
)
from appliance.tui.model import RATIO_OVER, SLOT, Model
from appliance.tui.reader import Reader, Watcher, tell
from appliance.tui.screens.repositories import Repositories
from appliance.tui.screens.view import RATES, REPOS, SERVE, TIME, View
from appliance.tui.themes import TERMINAL, THEMES, terminal_theme, wanted_theme

TICK = 1.0
"""Seconds between two looks at the clock."""
SETTLE = 0.1
"""Seconds after an event until the database is read: what serve tells, it writes right behind."""
AGAIN = 0.5
"""Seconds after an event until it is read again, and the least between two reads while events come all the time."""
RECENT = 60


class Tui(App[None]):
    """The live view of one appliance."""

    TITLE = "gitmirror"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {"repositories": Repositories}
    DEFAULT_MODE = "repositories"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+q", "quit", "quit", show=True),
    ]

    def __init__(self, overview: Overview, *, clock: Callable[[], float] = time.time) -> None:
        theme = wanted_theme(os.environ)
        super().__init__(ansi_color=True if theme == TERMINAL else None)
        for each in (*THEMES, terminal_theme()):
            self.register_theme(each)
        self.theme = theme
        self.overview = overview
        self.model = Model(clock)
        self.reader = Reader(self)
        self.watcher = Watcher(overview.appliance.layout, self)
        self._settling: Timer | None = None
        self._beat = 0

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our tones for a theme that has none."""
        return dict(THEMES[0].variables)

    def on_mount(self) -> None:
        """Begins to read."""
        self.read_repos()
        self.watcher.start()
        self.read_rates()
        self.set_interval(TICK, self._tick)

    def on_unmount(self) -> None:
        """Hangs up."""
        self.watcher.close()

    # Reading

    def read_repos(self) -> None:
        """All repositories, as the database has them."""
        cloning = frozenset(self.model.pulse["cloning"] if self.model.pulse else ())
        self.reader.read("repos", self, lambda: ReposRead(self.overview.repos(cloning)))

    def read_pulse(self) -> None:
        """How serve is."""
        self.reader.read("pulse", self, lambda: PulseRead(self.overview.pulse()))

    def read_rates(self) -> None:
        """Hydrations before now; from then on the events count."""
        since = (self.model.clock() - RATIO_OVER) // SLOT * SLOT
        self.reader.read("rates", self, lambda: RatesRead(since, self.overview.hydration_counts(since, SLOT)))

    def look_at(self, views: Sequence[RepoView]) -> None:
        """Reads what is shown of these alone: their last refreshes, and the commits at their tips."""
        model, overview = self.model, self.overview
        wanted = [view.repo.name for view in views]
        tips = [
            (view.repo.name, view.health.tip)
            for view in views
            if view.health.tip and (view.repo.name, view.health.tip) not in model.tips
        ]
        self.reader.read("recent", self, lambda: RecentRead({name: overview.recent(name, RECENT) for name in wanted}))

        def read_tips() -> None:
            for name, oid in tips:
                tell(self, TipRead(name, oid, overview.tip(name, oid)))

        if tips:
            self.reader.read("tips", self, read_tips)

    # News

    def _news(self, *topics: str) -> None:
        for screen in reversed(self.screen_stack):
            if isinstance(screen, View):
                if screen.is_attached:
                    screen.take(frozenset(topics))
                return

    def _tick(self) -> None:
        self._beat += 1
        self.model.rates.forget_old(self.model.clock())
        if self.model.serving:
            self.read_pulse()
        if self._beat % 2 == 0:
            self.read_repos()
        self._news(TIME)

    def on_repos_read(self, message: ReposRead) -> None:
        """Repositories."""
        found = {view.repo.name: view for view in message.repos}
        if found != self.model.repos or not self.model.read:
            self.model.repos = found
            self.model.read = True
            self._news(REPOS)

    def on_pulse_read(self, message: PulseRead) -> None:
        """Serve is so."""
        before = set(self.model.pulse["cloning"]) if self.model.pulse else set()
        self.model.pulse = message.pulse
        if message.pulse and set(message.pulse["cloning"]) != before:
            self.read_repos()
        self._news(SERVE)

    def on_rates_read(self, message: RatesRead) -> None:
        """Hydrations before now."""
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
        self.model.troubles[message.name] = message.error.message
        self.model.read = True
        self._news(SERVE, REPOS)

    def on_read_works(self, message: ReadWorks) -> None:
        """It can be read again."""
        self.model.troubles.pop(message.name, None)
        self._news(SERVE, REPOS)

    def on_watching(self, message: Watching) -> None:
        """A serve is there, or gone."""
        self.model.looked = True
        self.model.serving = message.serving
        if message.serving:
            self.read_pulse()
            self.read_repos()
        else:
            self.model.pulse = None
            self.model.troubles.pop("pulse", None)
        self._news(SERVE)

    def on_happened(self, message: Happened) -> None:
        """Takes the events; the database is read when it has them, not more often than twice a second."""
        for event in self.watcher.take():
            if event["event"] == "hydrated":
                self.model.rates.add(event["repo"], self.model.clock(), event["way"])
        if self._settling is None:
            self._settling = self.set_timer(SETTLE, self._read_settled)
        self._news(RATES)

    def _read_settled(self) -> None:
        self.read_repos()

        def again() -> None:
            self._settling = None
            self.read_repos()

        self._settling = self.set_timer(AGAIN, again)

    # What was asked for

    def on_action_done(self, message: ActionDone) -> None:
        """Says so."""
        self.notify(message.text, markup=False)
        self.read_repos()

    def on_action_failed(self, message: ActionFailed) -> None:
        """Says what happened and what to do."""
        hint = f"\n{message.error.hint}" if message.error.hint else ""
        self.notify(f"{message.error.message}{hint}", title=message.what, severity="error", timeout=12, markup=False)
