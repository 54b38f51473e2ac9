"""What a screen may ask of the app, and the messages by which it asks to go somewhere else.

Screens are made with a `Context` and import nothing of the app, so each can be read, and replaced, by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from textual.binding import BindingType
from textual.message import Message
from textual.notifications import SeverityLevel
from textual.screen import ModalScreen

from appliance.core.node.node import Node
from appliance.core.node.queries import NodeQueries
from appliance.core.node.sessions import Sessions
from appliance.tui.data.follower import Follower
from appliance.tui.data.loader import Loader
from appliance.tui.data.model import Model
from appliance.tui.data.rows import SessionRow

Answer = TypeVar("Answer")


class Say(Protocol):
    """Shows a notice for some seconds."""

    def __call__(self, text: str, *, severity: SeverityLevel = "information") -> None:
        """`text` may quote a guest or upstream: control characters are shown as escapes; brackets are not markup."""


class AskUser(Protocol):
    """Opens a dialog."""

    def __call__(self, dialog: ModalScreen[Answer], answered: Callable[[Answer | None], None]) -> None:
        """Calls `answered` on the UI thread with the result of the dialog."""


@dataclass(frozen=True)
class Context:
    """One live view as its screens see it. All but `node`, `queries` and `sessions` is for the UI thread alone."""

    node: Node
    """Carries out orders, each of which may block: call it in `act`."""
    queries: NodeQueries
    """Reads the node, and may block: call it in work given to `loader`."""
    sessions: Sessions
    """Reads sessions and carries out orders about them; blocks as `node` and `queries` do."""
    model: Model
    """What is known now. `model.clock` gives Unix seconds."""
    loader: Loader
    """Runs reads off the UI thread."""
    follower: Follower
    """Keeps `model` current, and reads what events announce."""
    say: Say
    ask: AskUser
    copy: Callable[[str], None]
    """Puts a line on the terminal's clipboard, and shows it."""
    keys: Sequence[BindingType]
    """The keys that work in every view."""
    complete: Callable[[str], str | None]
    """Completes a command that is being typed; None if nothing fits."""
    command: str
    """The command that starts this program, for command lines that the user copies."""

    def act(self, what: str, work: Callable[[], str]) -> None:
        """Runs an order off the UI thread and shows what it returns; `what` names it if it fails."""
        self.loader.act(what, work)


@dataclass
class GoTo(Message):
    """Go to one of the views that are always there, by its mode."""

    mode: str
    words: str | None = None
    """What is filtered there, as if it had been typed; None leaves the filter as it is."""


@dataclass
class CommandTyped(Message):
    """Carry out a command that was typed, such as `refresh acme/widgets`."""

    text: str


@dataclass
class OpenRepository(Message):
    """Open the view of the repository of that name over this one."""

    name: str


@dataclass
class OpenGuestSessions(Message):
    """Go to the sessions of the known guest of that name."""

    name: str


@dataclass
class OpenComparison(Message):
    """Open what two sessions of one repository changed, side by side."""

    left: SessionRow
    right: SessionRow


@dataclass
class OpenNotes(Message):
    """Open the notes and attachments of a session, those of the given turn first."""

    session: SessionRow
    turn: int | None = None


@dataclass
class OpenDiff(Message):
    """Open what a session changed over this view; `turn` counts from 1, None is the whole session.

    With `against`, open how the session differs from the last turn of that one.
    """

    session: SessionRow
    turn: int | None = None
    against: SessionRow | None = None
