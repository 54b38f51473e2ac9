"""The charts of Node: what the node did over time, from the slots that `serve` stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from appliance.core.node.figures import Figures, FigureSeries, summed
from appliance.tui.data.model import RATIO_OVER
from appliance.tui.text import count, percent, size, span, took
from appliance.tui.widgets.chart import SCALE, Chart, bar_lines, time_line, title_lines
from appliance.tui.widgets.lines import Line

LEAST, MOST = 2, 14
"""Rows of bars in one chart."""


class NodeCharts:
    """Sums up a series by column, once for each width, and draws it."""

    def __init__(self, series: FigureSeries) -> None:
        self._series = series
        self._total = series.total()
        self._columns: list[Figures | None] = []
        self._lengths: list[int] = []
        """Seconds of each column in which a serve ran."""

    def lines(self, width: int, height: int, per_minute: int, hits: tuple[int, int]) -> list[Line]:
        """Draws all charts into about `height` lines.

        `per_minute` and `hits` (warm, and all that count) are of now, as the list of repositories has them.
        """
        room = max(10, width - SCALE)
        if len(self._columns) != room:
            parts = list(_parts(self._series.slots, room))
            self._columns = [summed(part) for part in parts]
            self._lengths = [self._series.step * sum(slot is not None for slot in part) for part in parts]
        charts = [self._hydrations(per_minute), self._times(), self._hits(hits), self._bytes(), self._refreshes()]
        titles = [title_lines(chart, width) for chart in charts]
        rows = max(LEAST, min(MOST, (height - 1 - sum(map(len, titles))) // len(charts)))
        lines = [
            line for chart, title in zip(charts, titles, strict=True) for line in (*title, *bar_lines(chart, rows))
        ]
        return [*lines, time_line(self._seconds, width)]

    @property
    def _seconds(self) -> int:
        return self._series.step * len(self._series.slots)

    def _over(self) -> str:
        return f"in {span(self._seconds)}"

    def _hydrations(self, per_minute: int) -> Chart:
        rates = self._rates(lambda figures: figures.hydrations * 60)
        most = max((rate for rate in rates if rate), default=0)
        words = f"{per_minute:,} now, at most {most:,.0f}, {self._total.hydrations:,} {self._over()}"
        return self._chart("Hydrations a minute", words, rates, _number)

    def _times(self) -> Chart:
        times = self._total.times
        median, slow = times.quantile(0.5), times.quantile(0.95)
        words = f"no workspace was made {self._over()}"
        if median is not None and slow is not None:
            words = f"█ median {took(median)}, ░ 95th {took(slow)}, of {times.total:,} {self._over()}"
        medians, slowest = (
            [None if figures is None else figures.times.quantile(share) for figures in self._columns]
            for share in (0.5, 0.95)
        )
        return self._chart(
            "Time to workspace", words, medians, lambda value: took(value) if value else "0 s", second=slowest
        )

    def _hits(self, hits: tuple[int, int]) -> Chart:
        counted = self._total.warm + self._total.missed
        words = f"{percent(*hits)} in {span(RATIO_OVER)}"
        if self._seconds > RATIO_OVER:
            words += f", {percent(self._total.warm, counted)} {self._over()}"
        ratios = [
            100 * figures.warm / (figures.warm + figures.missed) if figures and figures.warm + figures.missed else None
            for figures in self._columns
        ]
        return self._chart("Hit ratio", words, ratios, lambda value: f"{value:.0f}%", top=100.0)

    def _bytes(self) -> Chart:
        rates = self._rates(lambda figures: figures.bytes)
        most = max((rate for rate in rates if rate), default=0)
        words = f"at most {size(round(most))}/s, {size(self._total.bytes)} {self._over()}"
        return self._chart("Sent to guests a second", words, rates, lambda value: f"{size(round(value))}/s")

    def _refreshes(self) -> Chart:
        failed = self._total.failures
        words = f"{count(self._total.refreshes, 'refresh', 'refreshes')} {self._over()}, █ {failed:,} failed"
        failures = self._rates(lambda figures: figures.failures * 60)
        everything = self._rates(lambda figures: figures.refreshes * 60)
        return self._chart("Refreshes a minute", words, failures, _number, second=everything, tone="bad")

    def _rates(self, amount: Callable[[Figures], int]) -> list[float | None]:
        """The amount in a second of each column."""
        return [
            None if figures is None else amount(figures) / seconds
            for figures, seconds in zip(self._columns, self._lengths, strict=True)
        ]

    def _chart(
        self,
        title: str,
        words: str,
        values: Sequence[float | None],
        label: Callable[[float], str],
        second: Sequence[float | None] = (),
        top: float | None = None,
        tone: str = "accent",
    ) -> Chart:
        gone = [figures is None for figures in self._columns]
        return Chart(title, words, values, label, second, top, tone, gone)


def _parts(slots: Sequence[Figures | None], columns: int) -> Iterator[Sequence[Figures | None]]:
    """The slots by column of a plot; where there are fewer slots than columns, each is in several."""
    for column in range(columns):
        start = column * len(slots) // columns
        yield slots[start : max(start + 1, (column + 1) * len(slots) // columns)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
