"""The command palette: every view, every repository, every theme, and whatever the view can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from textual.binding import Binding
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.markup import escape

from appliance.tui.context import OpenRepository
from appliance.tui.screens.view import View
from appliance.tui.text import plain
from appliance.tui.themes import DARK, LIGHT, TERMINAL

Command = tuple[str, str, Callable[[], object]]
MOST = 50
"""The most repositories that a search offers."""


class PaletteCommands(Provider):
    """Offers commands, and finds them by what is typed."""

    def _general(self) -> Iterator[Command]:
        app = self.app
        for mode, title in (
            ("repositories", "Repositories"),
            ("sessions", "Sessions"),
            ("activity", "Activity"),
            ("node", "Node"),
            ("guests", "Guests"),
        ):
            yield title, f"go to {title}", partial(app.run_action, f"go({mode!r})")
        if isinstance(self.screen, View):
            for binding in self.screen.BINDINGS:
                if isinstance(binding, Binding) and binding.show:
                    run = partial(self.screen.run_action, binding.action)
                    yield binding.description.capitalize(), f"here, by the key {binding.key.split(',')[0]}", run
        for theme, word in ((DARK, "dark"), (LIGHT, "light"), (TERMINAL, "the terminal's own colours")):
            yield f"Theme: {word}", "colours", partial(setattr, app, "theme", theme)
        yield "Help", "every key", partial(app.run_action, "help")
        yield "Quit", "leave the live view; serve keeps running", app.exit

    async def discover(self) -> Hits:
        """Offers commands before anything is typed."""
        for title, text, run in self._general():
            yield DiscoveryHit(title, run, help=text)

    async def search(self, query: str) -> Hits:
        """Finds the commands and repositories that match."""
        matcher = self.matcher(query)
        for title, text, run in self._general():
            if (score := matcher.match(title)) > 0:
                yield Hit(score, matcher.highlight(title), run, help=text)
        found = 0
        repos = self.screen.context.model.repos if isinstance(self.screen, View) else {}
        for name, view in repos.items():
            if query.lower() in name.lower():
                # Escaped, because the palette reads markup, in which the brackets of an IPv6 address may be a tag.
                text = escape(plain(f"{view.state}, {view.repo.url}"))
                yield Hit(0.9, name, partial(self.app.post_message, OpenRepository(name)), help=text)
                found += 1
                if found == MOST:
                    return
