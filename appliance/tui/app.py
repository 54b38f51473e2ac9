"""The app: puts the parts together, holds the keys that work everywhere, and goes from one view to another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

from textual import on
from textual.actions import SkipAction
from textual.app import App, ScreenStackError
from textual.binding import Binding, BindingType
from textual.notifications import SeverityLevel
from textual.screen import ModalScreen
from textual.widgets import Input

from appliance.core.node.queries import NodeQueries
from appliance.core.node.sessions import Sessions
from appliance.tui.commands import Commands
from appliance.tui.context import (
    Answer,
    CommandTyped,
    Context,
    GoTo,
    OpenComparison,
    OpenDiff,
    OpenGuestSessions,
    OpenNotes,
    OpenRepository,
)
from appliance.tui.data.follower import Follower
from appliance.tui.data.loader import Loader
from appliance.tui.data.messages import ActionDone, ActionFailed, BatchDone, FollowerMessage, SessionRead
from appliance.tui.data.model import Model
from appliance.tui.palette import PaletteCommands
from appliance.tui.screens.activity import ActivityScreen
from appliance.tui.screens.compare import CompareScreen
from appliance.tui.screens.dialogs import Whole
from appliance.tui.screens.diff import DiffScreen
from appliance.tui.screens.guests import GuestsScreen
from appliance.tui.screens.help import HelpScreen
from appliance.tui.screens.node import NodeScreen
from appliance.tui.screens.notes import NotesScreen
from appliance.tui.screens.repositories import RepositoriesScreen
from appliance.tui.screens.repository import RepositoryScreen
from appliance.tui.screens.session_list import OF_GUEST
from appliance.tui.screens.sessions import SessionsScreen
from appliance.tui.screens.view import View
from appliance.tui.text import plain
from appliance.tui.themes import DARK, LIGHT, TERMINAL, THEMES, terminal_theme, wanted_theme
from appliance.tui.widgets.diffview import DiffView
from appliance.tui.widgets.listing import Listing

STARTS: dict[str, type[View]] = {
    "repositories": RepositoriesScreen,
    "sessions": SessionsScreen,
    "activity": ActivityScreen,
    "node": NodeScreen,
    "guests": GuestsScreen,
}
"""The five views that are always there, by mode; the other two open over them."""


class Tui(App[None]):
    """The live view of one node."""

    TITLE = "gitmirror"
    CSS_PATH = "app.tcss"
    DEFAULT_MODE = "repositories"
    COMMANDS: ClassVar[Any] = {PaletteCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "go('repositories')", "repositories", show=False),
        Binding("2", "go('sessions')", "sessions", show=False),
        Binding("3", "go('activity')", "activity", show=False),
        Binding("4", "go('node')", "node", show=False),
        Binding("5", "go('guests')", "guests", show=False),
        Binding("colon", "command_line", "command", tooltip="type a command, as on the command line"),
        Binding("ctrl+p", "command_palette", "find", show=False, tooltip="find any command and repository by letters"),
        Binding("q", "quit", "quit"),
        # Before what has the focus, since a dialog and a field take the key for copying alone.
        Binding("ctrl+c", "interrupt", "quit", show=False, priority=True, tooltip="quit, or copy a selection"),
        Binding("question_mark", "help", "help", show=False),
        Binding("T", "theme", "light, dark, the terminal's own", show=False),
    ]

    def __init__(
        self,
        queries: NodeQueries,
        *,
        command: str = "gitmirror.pyz",
        clock: Callable[[], float] = time.time,
        greeting: str = "",
    ) -> None:
        """`greeting` is shown for a while at the start."""
        theme = wanted_theme(os.environ)
        super().__init__(ansi_color=True if theme == TERMINAL else None)
        for each in (*THEMES, terminal_theme()):
            self.register_theme(each)
        self.theme = theme
        self._greeting = greeting
        model, loader = Model(clock), Loader(self)
        self.context = Context(
            node=queries.node,
            queries=queries,
            sessions=Sessions(queries.node),
            model=model,
            loader=loader,
            follower=Follower(queries, model, loader, self, self._view),
            say=self.say,
            ask=self.ask,
            copy=self.copy,
            complete=self._complete,
            keys=self.BINDINGS,
            command=command,
        )
        self._commands = Commands(self.context, self)
        for mode, screen in STARTS.items():
            self.add_mode(mode, partial(screen, self.context))

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Adds our tones to a theme that lacks them."""
        return dict(THEMES[0].variables)

    def clear_selection(self) -> None:
        """Clears the selection on the screen, once there is one.

        From Python 3.12 on, Textual starts widgets at once, also those of the first screen, which is no screen of the
        app's until they have all begun. Each field clears the selection when it begins.
        """
        with suppress(ScreenStackError):
            super().clear_selection()

    def on_mount(self) -> None:
        """Starts reading."""
        self.context.follower.start()
        if self._greeting:
            self.notify(self._greeting, timeout=10, markup=False)

    def on_unmount(self) -> None:
        """Stops following events."""
        self.context.follower.close()

    def _view(self) -> View | None:
        """The visible view, even below a dialog, once it has its widgets."""
        views = (s for s in reversed(self.screen_stack) if isinstance(s, View) and s.is_mounted)
        view = next(views, None)
        return view if view is not None and view.has_widgets else None

    def _complete(self, text: str) -> str | None:
        return self._commands.complete(text)

    # What screens ask for

    def notify(self, message: str, **options: Any) -> None:
        """Escapes control characters, because an error or a subject may quote a guest and Textual passes them on."""
        options["title"] = plain(options.get("title", ""))
        super().notify("\n".join(map(plain, message.split("\n"))), **options)

    def say(self, text: str, *, severity: SeverityLevel = "information") -> None:
        """See `Context.say`."""
        self.notify(text, severity=severity, markup=False)

    def ask(self, dialog: ModalScreen[Answer], answered: Callable[[Answer | None], None]) -> None:
        """See `Context.ask`."""
        self.push_screen(dialog, answered)

    def copy(self, line: str) -> None:
        """Copies to the terminal's clipboard (OSC 52), and shows the line for terminals that have none."""
        self.copy_to_clipboard(line)
        self.notify(line, title="copied", timeout=8, markup=False)

    def on_action_done(self, message: ActionDone) -> None:
        """Shows what was done, and reads again what it may have changed."""
        self.say(message.text)
        self.context.follower.read_repos()
        view = self._view()
        if view is not None:
            view.done()

    def on_batch_done(self, message: BatchDone) -> None:
        """Shows what became of orders on several things, and reads again what they may have changed."""
        message.finished(message.batch)
        self.context.follower.read_repos()
        view = self._view()
        if view is not None:
            view.done()

    def on_action_failed(self, message: ActionFailed) -> None:
        """Shows what went wrong and what to do."""
        hint = f"\n{message.error.hint}" if message.error.hint else ""
        self.notify(f"{message.error.message}{hint}", title=message.what, severity="error", timeout=12, markup=False)

    @on(FollowerMessage)
    def follow(self, message: FollowerMessage) -> None:
        """Passes a message to the follower."""
        self.context.follower.receive(message)

    # Navigation

    def on_open_repository(self, message: OpenRepository) -> None:
        """Opens the view of a repository."""
        self.push_screen(RepositoryScreen(self.context, message.name))

    async def on_open_guest_sessions(self, message: OpenGuestSessions) -> None:
        """Goes to the sessions, and shows those of one known guest."""
        await self.on_go_to(GoTo("sessions", f"{OF_GUEST}{message.name}"))

    async def on_go_to(self, message: GoTo) -> None:
        """Goes to one of the five views, and filters it."""
        await self.switch_mode(message.mode)
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        if message.words is not None and (view := self._view()):
            view.filter_by(message.words)

    def on_command_typed(self, message: CommandTyped) -> None:
        """Carries out a command that was typed, or says what is wrong with it."""
        self._commands.run(message.text)

    def on_session_read(self, message: SessionRead) -> None:
        """Goes on with the session that a command names."""
        message.then(message.session, message.turns)

    def on_open_diff(self, message: OpenDiff) -> None:
        """Opens the diff of a session."""
        self.push_screen(DiffScreen(self.context, message.session, message.turn, message.against))

    def on_open_comparison(self, message: OpenComparison) -> None:
        """Opens two sessions side by side."""
        self.push_screen(CompareScreen(self.context, message.left, message.right))

    def on_open_notes(self, message: OpenNotes) -> None:
        """Opens the notes and attachments of a session."""
        self.push_screen(NotesScreen(self.context, message.session, message.turn))

    def action_go(self, mode: str) -> None:
        """Goes to one of the five views, even from a view that opened over it."""
        if mode == self.current_mode:
            while len(self.screen_stack) > 1:
                self.pop_screen()
        else:
            self.switch_mode(mode)

    def action_command_line(self) -> None:
        """Opens the line on which commands are typed."""
        if isinstance(self.screen, View):
            self.screen.action_command()

    def action_help(self) -> None:
        """Shows every key."""
        self.push_screen(HelpScreen(help_sections(self._view())))

    def action_interrupt(self) -> None:
        """Quits, because nothing here would be lost; where text is selected, Textual copies it."""
        field = self.focused
        if self.screen.get_selected_text() or (isinstance(field, Input) and field.selected_text):
            raise SkipAction
        self.exit()

    def action_theme(self) -> None:
        """Changes to the next theme."""
        names = [DARK, LIGHT, TERMINAL]
        self.theme = names[(names.index(self.theme) + 1) % 3] if self.theme in names else DARK


def help_sections(here: View | None) -> list[tuple[str, list[BindingType]]]:
    """Returns every key by section, those of the view `here` first."""
    views: list[type[View]] = [
        RepositoriesScreen,
        RepositoryScreen,
        SessionsScreen,
        DiffScreen,
        CompareScreen,
        NotesScreen,
        ActivityScreen,
        NodeScreen,
        GuestsScreen,
    ]
    views.sort(key=lambda view: view is not type(here))
    return [
        *((f"In {view.heading}", list(view.BINDINGS)) for view in views[:1]),
        ("Everywhere", list(Tui.BINDINGS)),
        ("In every list", list(Listing.BINDINGS)),
        *((f"In {view.heading}", list(view.BINDINGS)) for view in views[1:]),
        ("In a diff's text", list(DiffView.BINDINGS)),
        ("In a row shown whole", list(Whole.BINDINGS)),
    ]
