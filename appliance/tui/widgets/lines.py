"""Lines of text in tones, each with a left and a right part. Only lines that changed are redrawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from appliance.tui.text import Cell, Piece, cut_pieces, plain

TONES = ("good", "warn", "bad", "dim", "strong", "accent", "minus", "key", "here")

Line = tuple[Cell, Cell]
"""The left and the right part. Where both do not fit, the left one is cut."""


class Lines(Widget):
    """Shows the lines it was given last, as many as the style sheet gives room for. A click posts `Clicked`."""

    @dataclass
    class Clicked(Message):
        """A piece of a line was clicked: its index in the line, left ones first, and its text."""

        lines: Lines
        index: int
        text: str

    @dataclass
    class Resized(Message):
        """The widget has another width or height, for which its lines may be wrapped otherwise."""

        lines: Lines

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"tone--{tone}" for tone in TONES}

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: Sequence[Line] = ()

    @property
    def text(self) -> str:
        """All lines, without tones."""
        return "\n".join("".join(text for text, _ in left + right) for left, right in self._lines)

    def show(self, *lines: Line) -> None:
        """Shows other lines."""
        before, self._lines = self._lines, lines
        for y in range(max(len(before), len(lines))):
            if y >= len(before) or y >= len(lines) or before[y] != lines[y]:
                self.refresh(Region(0, y, self.size.width, 1))

    def on_resize(self) -> None:
        """Tells that there is more or less room."""
        self.post_message(self.Resized(self))

    def on_click(self, event: events.Click) -> None:
        """Tells which piece was clicked."""
        if found := self._piece_at(event.x, event.y):
            self.post_message(self.Clicked(self, *found))

    def _piece_at(self, x: int, y: int) -> tuple[int, str] | None:
        if y >= len(self._lines):
            return None
        left, right = self._lines[y]
        start = self.size.width - sum(cell_len(text) for text, _ in right)
        at = 0
        for index, (text, _) in enumerate((*left, *right)):
            if index == len(left):
                at = start
            if at <= x < at + cell_len(text) and (index >= len(left) or x < start):
                return index, text
            at += cell_len(text)
        return None

    def render_line(self, y: int) -> Strip:
        """Renders one line of the screen."""
        width, base = self.size.width, self.rich_style
        if y >= len(self._lines):
            return Strip.blank(width, base)
        left, right = self._lines[y]
        right_width = sum(cell_len(text) for text, _ in right)
        if right_width > width:
            right, right_width = (), 0
        room = width - right_width
        segments = self._segments(cut_pieces(left, room - (1 if right else 0)), base)
        used = sum(segment.cell_length for segment in segments)
        segments.append(Segment(" " * max(0, room - used), base))
        return Strip([*segments, *self._segments(right, base)]).adjust_cell_length(width, base)

    def _segments(self, pieces: Sequence[Piece], base: Style) -> list[Segment]:
        return [
            Segment(plain(text), base + self.get_component_rich_style(f"tone--{tone}", partial=True) if tone else base)
            for text, tone in pieces
            if text
        ]
