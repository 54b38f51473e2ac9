"""The app: its screens and keys, what can be asked for, and how to get from one view to another."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from typing import Any, ClassVar

from textual.binding import Binding, BindingType

from appliance.core.errors import GitmirrorError
from appliance.core.node import sessions as core_sessions
from appliance.core.node.queries import NodeQueries
from appliance.tui.data.activity import moved_words
from appliance.tui.data.follower import Reading
from appliance.tui.data.messages import ActionDone, ActionFailed
from appliance.tui.data.rows import SessionRow
from appliance.tui.palette import PaletteCommands
from appliance.tui.screens.activity import ActivityScreen
from appliance.tui.screens.diff import DiffScreen
from appliance.tui.screens.health import HealthScreen
from appliance.tui.screens.help import HelpScreen
from appliance.tui.screens.repositories import RepositoriesScreen
from appliance.tui.screens.repository import RepositoryScreen
from appliance.tui.screens.sessions import SessionsScreen
from appliance.tui.screens.view import View
from appliance.tui.text import count, plain
from appliance.tui.themes import DARK, LIGHT, TERMINAL, THEMES, terminal_theme, wanted_theme
from appliance.tui.widgets.diffview import DiffView
from appliance.tui.widgets.listing import Listing


class Tui(Reading):
    """The live view of one appliance."""

    TITLE = "gitmirror"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, Any]] = {
        "repositories": RepositoriesScreen,
        "sessions": SessionsScreen,
        "activity": ActivityScreen,
        "health": HealthScreen,
    }
    DEFAULT_MODE = "repositories"
    COMMANDS: ClassVar[Any] = {PaletteCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "go('repositories')", "repositories", show=False),
        Binding("2", "go('sessions')", "sessions", show=False),
        Binding("3", "go('activity')", "activity", show=False),
        Binding("4", "go('health')", "health", show=False),
        Binding("colon,ctrl+p", "command_palette", "commands", tooltip="every command and repository, by name"),
        Binding("q", "quit", "quit"),
        Binding("question_mark", "help", "help", show=False),
        Binding("T", "theme", "light, dark, the terminal's own", show=False),
    ]

    def __init__(
        self, queries: NodeQueries, *, command: str = "gitmirror.pyz", clock: Callable[[], float] = time.time
    ) -> None:
        theme = wanted_theme(os.environ)
        super().__init__(queries, clock, ansi_color=True if theme == TERMINAL else None)
        for each in (*THEMES, terminal_theme()):
            self.register_theme(each)
        self.theme = theme
        self.sessions = core_sessions.Sessions(queries.node)
        self.command = command

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our tones for a theme that has none."""
        return dict(THEMES[0].variables)

    def notify(self, message: str, **options: Any) -> None:
        """Says it as it is: an error or a subject may quote a guest, and Textual passes escape sequences on."""
        options["title"] = plain(options.get("title", ""))
        super().notify("\n".join(map(plain, message.split("\n"))), **options)

    # What was asked for

    def on_action_done(self, message: ActionDone) -> None:
        """Says so."""
        self.notify(message.text, markup=False)
        self.read_repos()
        view = self._view()
        if view is not None:
            view.done()

    def on_action_failed(self, message: ActionFailed) -> None:
        """Says what happened and what to do."""
        hint = f"\n{message.error.hint}" if message.error.hint else ""
        self.notify(f"{message.error.message}{hint}", title=message.what, severity="error", timeout=12, markup=False)

    def refresh_repos(self, names: list[str]) -> None:
        """Refreshes these, or all for none, and says what moved."""
        node = self.node

        def work() -> str:
            outcomes = node.current().refresh(names)
            failed = [outcome for outcome in outcomes if outcome["error"]]
            if failed:
                raise GitmirrorError(f"{failed[0]['repo']}: {failed[0]['error']}")
            moved = [outcome for outcome in outcomes if outcome["moved"]]
            if len(outcomes) == 1:
                said = moved_words(outcomes[0]["moved"]) if moved else "nothing moved"
                return f"{outcomes[0]['repo']}: {said}"
            return f"{count(len(outcomes), 'repository', 'repositories')} refreshed, {len(moved)} moved"

        self.loader.act(f"refresh {names[0] if len(names) == 1 else 'all'}", work)

    def copy(self, line: str) -> None:
        """Copies to the terminal's clipboard (OSC 52), and shows the line for terminals that have none."""
        self.copy_to_clipboard(line)
        self.notify(line, title="copied", timeout=8, markup=False)

    def clone_line(self, name: str) -> str:
        """What a guest types."""
        serve = self.node.config.serve
        pulse = self.model.pulse or {
            "git": serve.public_git or (f"git://{serve.git}" if serve.git else None),
            "http": serve.public_http or (f"http://{serve.http}" if serve.http else None),
        }
        return f"git clone {pulse['git'] or pulse['http'] or ''}/{name}"

    def checkout_line(self, session: SessionRow, turn: int | None) -> str:
        """What lays the session's files out."""
        words = ["session", "checkout", session.repo, session.name, f"./{session.name}"]
        return f"{self.command} {shlex.join(words)}" + (f" --turn {turn}" if turn else "")

    # Where to

    def open_repository(self, name: str) -> None:
        """The view of one."""
        self.push_screen(RepositoryScreen(name))

    def open_diff(self, session: SessionRow, turn: int | None) -> None:
        """What it changed."""
        self.push_screen(DiffScreen(session, turn))

    def action_go(self, mode: str) -> None:
        """To one of the four; from a view that was opened over it, back to it."""
        if mode == self.current_mode:
            while len(self.screen_stack) > 1:
                self.pop_screen()
        else:
            self.switch_mode(mode)

    def action_help(self) -> None:
        """Every key."""
        self.push_screen(HelpScreen(help_sections(self._view())))

    def action_theme(self) -> None:
        """The next one."""
        names = [DARK, LIGHT, TERMINAL]
        self.theme = names[(names.index(self.theme) + 1) % 3] if self.theme in names else DARK


def help_sections(here: View | None) -> list[tuple[str, list[BindingType]]]:
    """Every key, those of this view first."""
    views: list[type[View]] = [
        RepositoriesScreen,
        RepositoryScreen,
        SessionsScreen,
        DiffScreen,
        ActivityScreen,
        HealthScreen,
    ]
    views.sort(key=lambda view: view is not type(here))
    return [
        *((f"In {view.heading}", list(view.BINDINGS)) for view in views[:1]),
        ("Everywhere", list(Tui.BINDINGS)),
        ("In every list", list(Listing.BINDINGS)),
        *((f"In {view.heading}", list(view.BINDINGS)) for view in views[1:]),
        ("In a diff's text", list(DiffView.BINDINGS)),
    ]
