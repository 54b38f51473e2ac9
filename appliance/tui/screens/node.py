"""The node itself: what it did over time, what needs attention, listeners, disk, damage, backup, fleet."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.events import Click

from appliance.core.models import UNHEALTHY
from appliance.core.node.figures import SPANS
from appliance.core.node.queries import Disk
from appliance.tui.context import Context
from appliance.tui.data.follower import RATES, REPOS, SERVE, TIME
from appliance.tui.data.messages import DiskRead, FiguresRead, FleetRead, HealthRead
from appliance.tui.data.model import EVERY
from appliance.tui.data.rows import CheckRow
from appliance.tui.screens.fleet_lines import fleet_lines
from appliance.tui.screens.node_charts import NodeCharts
from appliance.tui.screens.node_lines import (
    LISTENERS,
    attention_lines,
    backup_lines,
    check_lines,
    damage_lines,
    disk_lines,
    guest_lines,
    heading,
)
from appliance.tui.screens.view import WIDE, View
from appliance.tui.text import Piece, cell
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.scrolling import SCROLL_KEYS, Scrolling

DISK_EVERY, FIGURES_EVERY = 5, 10
"""Beats between two reads."""
OVER = " over "
SPAN_WORDS = {"10m": "ten minutes", "1h": "an hour", "1d": "a day"}


class NodePage(VerticalScroll, can_focus=True, inherit_bindings=False):
    """Scrolls by the keys of the view and by the mouse."""


class NodeScreen(Scrolling, View):
    """Shows plots over time, and in words everything else that is to be known of the node."""

    heading = "Node"
    here = "node"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "span", "time span", tooltip="plots over ten minutes, an hour or a day"),
        Binding("r", "check", "check again", tooltip="run every check of doctor again"),
        *SCROLL_KEYS,
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._disk: Disk | None = None
        self._fleet: dict[str, Any] | None = None
        self._checks: list[CheckRow] = []
        self._charts: NodeCharts | None = None
        self._span = next(iter(SPANS))
        self._beat = 0
        self._heights: dict[str, int] = {}

    def body(self) -> ComposeResult:
        """Yields the time span, and a page that scrolls: what needs attention, the plots, and the rest in words."""
        yield Lines(id="summary")
        with NodePage(id="page"):
            yield Lines(id="attention")
            with Container(id="sides"):
                yield Lines(id="charts")
                yield Lines(id="facts")

    @property
    def has_widgets(self) -> bool:
        """Whether the widgets exist, those on the page, too."""
        return super().has_widgets and bool(self.query("#facts"))

    @property
    def scrolled(self) -> NodePage:
        """What scrolls."""
        return self.query_one("#page", NodePage)

    @property
    def rows(self) -> list[CheckRow]:
        """The warnings of serve, then the checks; what needs attention comes first."""
        pulse = self.model.pulse or {}
        advice = "put right what it names; a changed setting needs a reload or a restart"
        warnings = [CheckRow("serve warns", False, text, advice) for text in pulse.get("warnings", ())]
        # The check of `serve` says once more what the warnings say.
        repeated = "serve", "; ".join(row.found for row in warnings)
        bad = [check for check in self._checks if not check.ok and (check.name, check.found) != repeated]
        return [*warnings, *bad, *(check for check in self._checks if check.ok)]

    def on_mount(self) -> None:
        """Focuses the page."""
        self.scrolled.focus()

    def focus_body(self) -> None:
        """Moves the focus back to the page."""
        self.scrolled.focus()

    def reread(self) -> None:
        """Reads everything again, because something may have been put right."""
        self.action_check()
        self._read_disk()
        self._read_figures()

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed; every few seconds the disk and the figures are read, too."""
        super().take(news)
        if TIME in news:
            self._beat += 1
            if self._beat % DISK_EVERY == 0:
                self._read_disk()
            if self._beat % FIGURES_EVERY == 0:
                self._read_figures()
        if {SERVE, TIME, REPOS, RATES} & news:
            self._tell()

    def on_health_read(self, message: HealthRead) -> None:
        """Shows the checks that ran."""
        self._checks = message.checks
        self._tell()

    def on_disk_read(self, message: DiskRead) -> None:
        """Shows how full the disk is."""
        self._disk = message.disk
        self._tell()

    def on_fleet_read(self, message: FleetRead) -> None:
        """Shows the nodes of the fleet."""
        self._fleet = message.fleet
        self._tell()

    def on_figures_read(self, message: FiguresRead) -> None:
        """Shows the figures over time, unless another span was chosen meanwhile."""
        if message.span == self._span:
            self._charts = NodeCharts(message.series)
            self._tell()

    def action_check(self) -> None:
        """Runs every check again."""
        node = self.context.node

        def work() -> HealthRead:
            from appliance.core.ops.doctor import examine

            return HealthRead([CheckRow(each.name, each.ok, each.found, each.mend) for each in examine(node)])

        self.context.loader.read("health", self, work)

    def action_span(self) -> None:
        """Shows the next span of time."""
        names = list(SPANS)
        self._show_span(names[(names.index(self._span) + 1) % len(names)])

    def on_click(self, event: Click) -> None:
        """Shows the span of time that was clicked."""
        x = event.x - len(OVER)
        if event.widget is not None and event.widget.id == "summary":
            for name, words in SPAN_WORDS.items():
                if 0 <= x < len(words) + 3:
                    self._show_span(name)
                x -= len(words) + 3

    def _show_span(self, name: str) -> None:
        self._span = name
        self._read_figures()
        self._tell()

    def _read_disk(self) -> None:
        queries = self.context.queries
        self.context.loader.read("disk", self, lambda: DiskRead(queries.disk()))
        if self.context.node.config.fleet.is_on:
            self.context.loader.read("fleet", self, lambda: FleetRead(queries.fleet()))

    def _read_figures(self) -> None:
        queries, name = self.context.queries, self._span
        self.context.loader.read("figures", self, lambda: FiguresRead(name, queries.figures(name)))

    def _tell(self) -> None:
        model, width, height = self.model, self.scrolled.scrollable_content_region.width, self.scrolled.size.height
        if not width:
            return
        rates, now = model.rates, model.clock()
        behind = sum(number for state, number in model.counts().items() if state in UNHEALTHY)
        attention = attention_lines(self.rows, behind, width)
        is_wide = self.size.width >= WIDE
        side = width // 2 if is_wide else width
        charts: list[Line] = [(cell("   reading…", "dim"), ())]
        if self._charts is not None:
            room = height - len(attention) if is_wide else 0
            charts = self._charts.lines(side - 1, room, rates.per_minute(EVERY, now), rates.hits(EVERY))
        self._summarise()
        self._put("attention", attention)
        self._put("charts", charts)
        self._put("facts", self._facts(width - side if is_wide else width, max(0, height - len(attention))))

    def _summarise(self) -> None:
        pieces: list[Piece] = [(OVER, "dim")]
        for name, words in SPAN_WORDS.items():
            pieces += [(f" {words} ", "here" if name == self._span else "dim"), (" ", "")]
        self.query_one("#summary", Lines).show((tuple(pieces), cell("t changes it ", "dim")))

    def _facts(self, width: int, height: int) -> list[Line]:
        """All sections; what is left of `height` goes to the list of repositories by size."""
        model, pulse = self.model, self.model.pulse
        serve = self.context.node.config.serve
        closed = {name: ", ".join(map(str, getattr(serve, name))) for name, _ in LISTENERS}
        backup = (pulse or {}).get("backup")
        before = [*heading("Guests")[1:], *guest_lines(pulse, model.looked, closed, width)]
        after = [
            *heading("Damage"), *damage_lines(model.repos.values(), model.clock(), width),
            *heading("Backup"), *backup_lines(backup, pulse is not None, model.clock(), width),
        ]  # fmt: skip
        if fleet := fleet_lines(self._fleet, width):
            after += [*heading("Fleet"), *fleet]
        after += [*heading("Checked and in order"), *check_lines(self.rows, width)]
        least = [*heading("Disk"), *disk_lines(self._disk, pulse, width, 0)]
        spare = height - len(before) - len(least) - len(after)
        disk = [*heading("Disk"), *disk_lines(self._disk, pulse, width, spare)] if spare > 0 else least
        return [*before, *disk, *after]

    def _put(self, name: str, lines: list[Line]) -> None:
        """Shows lines in a widget that is exactly as tall."""
        widget = self.query_one(f"#{name}", Lines)
        if self._heights.get(name) != len(lines):
            self._heights[name] = len(lines)
            widget.styles.height = len(lines)
        widget.show(*lines)
