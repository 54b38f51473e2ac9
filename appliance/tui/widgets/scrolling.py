"""The keys by which a text is scrolled, the same wherever one is longer than the screen."""

from __future__ import annotations

from textual.binding import Binding, BindingType
from textual.widget import Widget

SCROLL_KEYS: list[BindingType] = [
    Binding("up,k", "step(-1)", "up", show=False),
    Binding("down,j", "step(1)", "down", show=False),
    Binding("pageup,ctrl+b", "page(-1)", "a page up", show=False),
    Binding("pagedown,ctrl+f,space", "page(1)", "a page down", show=False),
    Binding("home,g", "end(0)", "the top", show=False),
    Binding("end,G", "end(1)", "the bottom", show=False),
]


class Scrolling:
    """The actions of SCROLL_KEYS, for a class that has them among its BINDINGS."""

    @property
    def scrolled(self) -> Widget:
        """The widget that scrolls."""
        raise NotImplementedError

    def action_step(self, by: int) -> None:
        """Scrolls by lines."""
        self._scroll_by(by)

    def action_page(self, by: int) -> None:
        """Scrolls by pages, which overlap by one line."""
        self._scroll_by(by * max(1, self.scrolled.size.height - 1))

    def action_end(self, last: int) -> None:
        """Scrolls to the top or the bottom."""
        self.scrolled.scroll_to(y=self.scrolled.max_scroll_y if last else 0, animate=False)

    def _scroll_by(self, lines: int) -> None:
        self.scrolled.scroll_to(y=self.scrolled.scroll_offset.y + lines, animate=False)
