"""The last line: the keys of the view, as many as fit, and always `?`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.binding import Binding

from appliance.tui.text import Piece
from appliance.tui.widgets.lines import Lines

NAMES = {
    "slash": "/",
    "question_mark": "?",
    "equals_sign": "=",
    "asterisk": "*",
    "exclamation_mark": "!",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "escape": "esc",
    "enter": "⏎",
    "tab": "tab",
    "colon": ":",
    "space": "space",
    "up": "↑",
    "down": "↓",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "left": "←",
    "right": "→",
}


def key_name(keys: str) -> str:
    """Returns the first of a binding's keys, as a keyboard shows it."""
    return _shown(keys.split(",")[0])


def key_names(keys: str) -> str:
    """Returns all keys of a binding."""
    return " ".join(_shown(key) for key in keys.split(","))


def _shown(key: str) -> str:
    return f"^{key[5:]}" if key.startswith("ctrl+") else NAMES.get(key, key)


class Keys(Lines):
    """Shows keys; one that cannot be used now is dim."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._clickable: list[str] = []

    def key_at(self, index: int) -> str:
        """Returns the key that the piece with this index belongs to, by the name that Textual has for it."""
        return self._clickable[index // 2]

    def offer(self, bindings: Sequence[tuple[Binding, bool]]) -> None:
        """Shows the bindings that fit, in order, and then `? help`. Each comes with whether it can be used."""
        help_pieces = ((" ?", "key"), (" help ", ""))
        room = self.size.width - sum(cell_len(text) for text, _ in help_pieces) - 1
        pieces: list[Piece] = []
        self._clickable = []
        for binding, usable in bindings:
            name, word = f" {key_name(binding.key)}", f" {binding.description} "
            wide = cell_len(name) + cell_len(word)
            if wide > room:
                # A shorter one may fit.
                continue
            room -= wide
            pieces += [(name, "key" if usable else "dim"), (word, "" if usable else "dim")]
            self._clickable.append(binding.key.split(",")[0])
        self._clickable.append("question_mark")
        self.show((tuple(pieces), help_pieces))
