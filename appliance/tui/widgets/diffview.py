"""The diff of one file, with line numbers, marks and syntax colours. Only lines on screen are rendered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from appliance.tui.data.rows import DiffLine
from appliance.tui.text import fit, plain
from appliance.tui.widgets.scrolling import SCROLL_KEYS, Scrolling

STEP = 16
"""Columns that the text moves sideways at a key."""


class DiffView(Scrolling, ScrollView, can_focus=True):
    """Shows the lines it was given last."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "diff--added", "diff--removed", "diff--number", "diff--found", "diff--found-here",
        "tone--accent", "tone--dim", "tone--good", "tone--bad", "tone--code-comment", "tone--code-keyword",
        "tone--code-string", "tone--code-number", "tone--code-name",
    }  # fmt: skip
    BINDINGS: ClassVar[list[BindingType]] = [
        *SCROLL_KEYS,
        Binding("left", "shift(-1)", "to the left", show=False),
        Binding("right", "shift(1)", "to the right", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: Sequence[DiffLine] = ()
        self._says = ""
        self._aside = 0
        self._digits = 4
        self._words = ""
        self._matches: list[int] = []
        self._match = 0

    @property
    def scrolled(self) -> DiffView:
        """Itself."""
        return self

    @property
    def text(self) -> str:
        """All lines with their marks, without colours."""
        return "\n".join(line.mark + "".join(text for text, _ in line.pieces) for line in self._lines)

    def show(self, lines: Sequence[DiffLine], says: str = "") -> None:
        """Shows other lines, from the top; `says` is shown when there are none."""
        self._lines, self._says, self._aside = lines, plain(says), 0
        highest = max((number for line in lines for number in (line.old, line.new) if number), default=0)
        self._digits = max(3, len(str(highest)))
        self.virtual_size = Size(0, len(lines))
        self.scroll_to(y=0, animate=False)
        self.search(self._words)

    def search(self, words: str) -> None:
        """Finds the lines that contain the words, in upper or lower case, and goes to the first on screen or below."""
        self._words = words
        wanted = words.lower()
        self._matches = [n for n, line in enumerate(self._lines) if wanted in _text(line).lower()] if wanted else []
        top = self.scroll_offset.y
        self._match = next((n for n, place in enumerate(self._matches) if place >= top), 0)
        self._go_to_match()

    def next_match(self, by: int) -> None:
        """Goes to the next line that contains the words, or to the one before; after the last comes the first."""
        if self._matches:
            self._match = (self._match + by) % len(self._matches)
            self._go_to_match()

    @property
    def match(self) -> tuple[int, int]:
        """The number of the match that it is at, counted from 1, and how many there are; zeros if there are none."""
        return (self._match + 1, len(self._matches)) if self._matches else (0, 0)

    def _go_to_match(self) -> None:
        if self._matches:
            place, top, height = self._matches[self._match], self.scroll_offset.y, self.size.height
            if not top <= place < top + height:
                self.scroll_to(y=max(0, place - height // 3), animate=False)
            self._show_aside(self._lines[place])
        self.refresh()

    def _show_aside(self, line: DiffLine) -> None:
        """Moves the text sideways as far as it takes to see the words in that line."""
        text = _text(line)
        at = cell_len(text[: text.lower().find(self._words.lower())])
        room = max(1, self.scrollable_content_region.width - 2 * self._digits - 5)
        if not self._aside <= at <= self._aside + room - cell_len(self._words):
            self._aside = max(0, at - room // 2) if at + cell_len(self._words) > room else 0

    def action_shift(self, by: int) -> None:
        """Moves the text sideways, as far as its longest line goes."""
        widest = max((sum(cell_len(text) for text, _ in line.pieces) for line in self._lines), default=0)
        room = self.scrollable_content_region.width - 2 * self._digits - 4
        self._aside = max(0, min(self._aside + by * STEP, widest - room))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Renders one line of the screen."""
        width = self.scrollable_content_region.width
        base = self.rich_style
        place = self.scroll_offset.y + y
        if place >= len(self._lines):
            says = f"  {self._says}" if not self._lines and y == 1 else ""
            style = base + self.get_component_rich_style("tone--dim", partial=True)
            return Strip([Segment(fit(says, width), style)], width)
        line = self._lines[place]
        if line.mark in "+-":
            base += self.get_component_rich_style("diff--added" if line.mark == "+" else "diff--removed", partial=True)
        number = base + self.get_component_rich_style("diff--number", partial=True)
        digits = self._digits
        numbers = f"{line.old or '':>{digits}} {line.new or '':>{digits}} "
        tone = {"+": "tone--good", "-": "tone--bad"}.get(line.mark)
        mark = base + self.get_component_rich_style(tone, partial=True) if tone else base
        segments = [Segment(numbers, number), Segment(f"{line.mark if line.mark in '+-' else ' '} ", mark)]
        pieces = [
            Segment(text, base + self.get_component_rich_style(f"tone--{name}", partial=True) if name else base)
            for text, name in line.pieces
        ]
        room = width - 2 * digits - 4
        text = self._highlight(Strip(pieces), line, place)
        if text.cell_length - self._aside > room:
            pieces_strip = text.crop(self._aside, self._aside + room - 1)
            segments += [*pieces_strip, Segment("…", number)]
        else:
            segments += list(text.crop(self._aside))
        return Strip(segments).adjust_cell_length(width, base)

    def _highlight(self, text: Strip, line: DiffLine, place: int) -> Strip:
        """Marks the words that are searched for."""
        wanted, plain_text = self._words.lower(), _text(line).lower()
        if not wanted or wanted not in plain_text:
            return text
        is_here = self._matches[self._match] == place if self._matches else False
        style = self.get_component_rich_style("diff--found-here" if is_here else "diff--found", partial=True)
        cuts, start = list[int](), 0
        while (at := plain_text.find(wanted, start)) >= 0:
            start = at + len(wanted)
            cuts += [cell_len(plain_text[:at]), cell_len(plain_text[:start])]
        parts = text.divide([*cuts, text.cell_length])
        return Strip.join(part.apply_style(style) if n % 2 else part for n, part in enumerate(parts))


def _text(line: DiffLine) -> str:
    return "".join(text for text, _ in line.pieces)
