"""A list of any number of rows with a cursor. Only what is on screen is rendered, and only what changed is redrawn.

Textual's DataTable repaints all of itself for one changed cell and builds every row up front, which is too slow over
ssh and with 10,000 sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from appliance.tui.text import Cell, cell, cut_pieces, fit, plain
from appliance.tui.widgets.columns import GAP, Column, Sorting, lay_out

__all__ = ["Column", "Listing"]

Row = TypeVar("Row")

MARK = "▌"
TONES = ("good", "warn", "bad", "dim", "strong", "accent", "minus")


class Listing(ScrollView, Generic[Row], can_focus=True):
    """Shows rows under a header. `key` tells rows apart, so that the cursor stays on its row wherever that moves.

    With `marks`, the list leaves the space key to the view, which marks rows with it.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "listing--header",
        "listing--cursor",
        "listing--cursor-blurred",
        "listing--empty",
        *(f"tone--{tone}" for tone in TONES),
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "a page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "a page down", show=False),
        Binding("space", "space", "a page down", show=False, tooltip="a page down; where rows are marked, mark it"),
        Binding("home,g", "end(0)", "first", show=False),
        Binding("end,G", "end(1)", "last", show=False),
        Binding("enter", "choose", "open", show=False),
    ]

    @dataclass
    class Moved(Message):
        """The cursor came to another row, or the content of its row changed; `row` is None when there are no rows."""

        listing: Listing[Any]
        row: Any

    @dataclass
    class Chosen(Message):
        """Enter was pressed, or the row under the cursor was clicked."""

        listing: Listing[Any]
        row: Any

    @dataclass
    class Sorted(Message):
        """The heading of a column was clicked, so that the rows have another order; see `sorted_by`."""

        listing: Listing[Any]

    def __init__(
        self,
        columns: Sequence[Column[Row]],
        key: Callable[[Row], Hashable],
        *,
        empty: str = "",
        marks: bool = False,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._marks = marks
        self.columns = columns
        self.key = key
        self.empty = empty
        self._given: Sequence[Row] = ()
        self._rows: Sequence[Row] = ()
        self._cursor = 0
        self._chose = False
        self._laid: list[tuple[int, int, int]] = []
        self._order = Sorting[Row]()
        self._shown: dict[int, tuple[Hashable, tuple[Cell, ...], bool]] = {}

    # What it holds

    @property
    def rows(self) -> Sequence[Row]:
        """The rows, in the order in which `show` got them."""
        return self._rows

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if self._cursor < len(self._rows) else None

    @property
    def cursor(self) -> int:
        """The cursor's position among the rows."""
        return self._cursor

    @property
    def sorted_by(self) -> str:
        """The title of the column whose heading was clicked, in small letters; empty for the order of `show`."""
        return self._order.title

    def unsort(self) -> None:
        """Forgets that a heading was clicked; the next `show` decides the order again."""
        self._order.clear()
        self.refresh(Region(0, 0, self.size.width, 1))

    def show(self, rows: Sequence[Row]) -> None:
        """Shows other rows. The cursor stays on its row, or on the first one until somebody moves it."""
        self._given = rows
        self._place(self._order.apply(rows))

    def _place(self, rows: Sequence[Row]) -> None:
        before = self.row
        place = self._cursor
        if before is not None and self._chose:
            key = self.key(before)
            same = place < len(rows) and self.key(rows[place]) == key
            found = place if same else next((n for n, row in enumerate(rows) if self.key(row) == key), None)
            self._cursor = found if found is not None else min(place, max(0, len(rows) - 1))
        else:
            self._cursor = 0
        self._rows = rows
        size = Size(0, len(rows) + 1)
        if size != self.virtual_size:
            # Set without its watcher, which would lay out the whole screen again: 40 ms for each new row.
            self.set_reactive(Widget.virtual_size, size)
            self._scrollbar()
        if self._cursor != place and self._chose:
            # Scrolled along, so that the row stays where the reader's eye is.
            self.scroll_to(y=max(0, self.scroll_offset.y + self._cursor - place), animate=False)
        self._keep_visible()
        self.touch()
        after = self.row
        if after is not before and after != before:
            self.post_message(self.Moved(self, after))

    def _scrollbar(self) -> None:
        """Fits the scroll bar, and the place to which the list is scrolled, to the number of rows."""
        rows, room = self.virtual_size.height, self.container_size.height
        self.show_vertical_scrollbar = rows > room
        if self.show_vertical_scrollbar:
            self.vertical_scrollbar.window_virtual_size = rows
            self.vertical_scrollbar.window_size = room
        self.scroll_y = min(self.scroll_y, max(0, rows - room))

    def touch(self) -> None:
        """Redraws the cells whose text changed, because time went by or the model changed."""
        if not self.is_attached or not self.size:
            return
        for y in range(1, self.size.height):
            shown, now = self._shown.get(y), self._line(y)
            if shown == now:
                continue
            if shown is None or now is None or shown[0] != now[0] or shown[2] != now[2]:
                self.refresh(Region(0, y, self.size.width, 1))
                continue
            for (_, x, width), old, new in zip(self._laid, shown[1], now[1], strict=False):
                if old != new:
                    self.refresh(Region(x + 1, y, width, 1))

    def visible_rows(self) -> Sequence[Row]:
        """Returns the rows on screen."""
        top = self.scroll_offset.y
        return self._rows[top : top + max(0, self.size.height - 1)]

    # Moving

    def select(self, key: Hashable) -> bool:
        """Moves the cursor to the row with that key, and returns whether there is such a row."""
        for place, row in enumerate(self._rows):
            if self.key(row) == key:
                self._go(place)
                return True
        return False

    def action_move(self, by: int) -> None:
        """Moves the cursor by rows."""
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Moves the cursor by pages, which overlap by one row."""
        self._go(self._cursor + by * max(1, self.size.height - 2))

    def action_space(self) -> None:
        """Moves the cursor a page down."""
        self.action_page(1)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether the list acts on a key; one that it does not act on goes to the view."""
        return not (self._marks and action == "space")

    def action_end(self, last: int) -> None:
        """Moves the cursor to the first or the last row."""
        self._go(len(self._rows) - 1 if last else 0)
        self._chose = bool(last)

    def action_choose(self) -> None:
        """Opens the row under the cursor."""
        if self.row is not None:
            self.post_message(self.Chosen(self, self.row))

    def on_click(self, event: events.Click) -> None:
        """Moves the cursor to the row, or opens it when the cursor is there; a click on a heading sorts by it."""
        if event.y == 0:
            self._sort_at(event.x - 1)
            return
        place = self.scroll_offset.y + event.y - 1
        if place >= len(self._rows):
            return
        if place == self._cursor and self._chose:
            self.action_choose()
        else:
            self._go(place)

    def _sort_at(self, x: int) -> None:
        """Sorts by the column at `x`, the other way round at a second click, and as before at a third."""
        column = next((self.columns[n] for n, left, width in self._laid if left <= x < left + width + GAP), None)
        if column is not None and self._order.click(column):
            self.refresh()
            self._place(self._order.apply(self._given))
            self.post_message(self.Sorted(self))

    def on_resize(self) -> None:
        """Lays the columns out again and keeps the cursor in sight."""
        self._laid = lay_out(self.columns, self.scrollable_content_region.width - 1)
        self._shown.clear()
        self._keep_visible()
        self.refresh()

    def on_focus(self) -> None:
        """Redraws the cursor, which shows that the keys go to this list."""
        self.touch_cursor()

    def on_blur(self) -> None:
        """Redraws the cursor."""
        self.touch_cursor()

    def touch_cursor(self) -> None:
        """Redraws the cursor's line."""
        self.refresh(Region(0, self._cursor - self.scroll_offset.y + 1, self.size.width, 1))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Forgets what each line of the screen shows."""
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self._shown.clear()

    def _go(self, place: int) -> None:
        place = max(0, min(place, len(self._rows) - 1))
        self._chose = True
        if place == self._cursor or not self._rows:
            return
        self.touch_cursor()
        self._cursor = place
        self._keep_visible()
        self.touch_cursor()
        self.post_message(self.Moved(self, self.row))

    def _keep_visible(self) -> None:
        height = self.size.height - 1
        top = self.scroll_offset.y
        if height < 1:
            return
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False)
        elif self._cursor >= top + height:
            self.scroll_to(y=self._cursor - height + 1, animate=False)

    # Rendering

    def _line(self, y: int) -> tuple[Hashable, tuple[Cell, ...], bool] | None:
        """Returns what belongs on a line of the screen: key, cells, and whether the cursor is on it."""
        place = self.scroll_offset.y + y - 1
        if place >= len(self._rows):
            return (None, (cell(self.empty),), False) if not self._rows and y == 2 else None
        row = self._rows[place]
        return self.key(row), tuple(self.columns[n].render(row) for n, _, _ in self._laid), place == self._cursor

    def render_line(self, y: int) -> Strip:
        """Renders the header or a row."""
        width = self.size.width
        base = self.rich_style
        if y == 0:
            return self._header(width, base + self.get_component_rich_style("listing--header", partial=True))
        line = self._line(y)
        if line is None:
            self._shown.pop(y, None)
            return Strip.blank(width, base)
        self._shown[y] = line
        key, cells, cursor = line
        if key is None:
            style = base + self.get_component_rich_style("listing--empty", partial=True)
            return Strip([Segment(fit("  " + plain(self.empty), width), style)], width)
        if cursor:
            name = "listing--cursor" if self.has_focus else "listing--cursor-blurred"
            base += self.get_component_rich_style(name, partial=True)
        segments = [Segment(MARK if cursor else " ", base + self._tone("accent"))]
        for (n, _, column_width), pieces in zip(self._laid, cells, strict=True):
            segments += self._cell(pieces, column_width, self.columns[n], base)
            segments.append(Segment(" " * GAP, base))
        return Strip(segments).adjust_cell_length(width, base)

    def _header(self, width: int, style: Style) -> Strip:
        words = [" "]
        for n, _, column_width in self._laid:
            title = fit(self.columns[n].heading(column_width), column_width)
            words.append(title.strip().rjust(column_width) if self.columns[n].right else title)
            words.append(self._order.arrow(self.columns[n]) + " " * (GAP - 1))
        return Strip([Segment("".join(words), style)]).adjust_cell_length(width, style)

    def _cell(self, pieces: Cell, width: int, column: Column[Row], base: Style) -> list[Segment]:
        pieces = cut_pieces(pieces, width, tail=column.tail)
        segments = [Segment(text, base + self._tone(tone) if tone else base) for text, tone in pieces if text]
        space = Segment(" " * (width - sum(segment.cell_length for segment in segments)), base)
        return [space, *segments] if column.right else [*segments, space]

    def _tone(self, tone: str) -> Style:
        return self.get_component_rich_style(f"tone--{tone}", partial=True) if tone else Style.null()
