"""The dialogs: one row whole, questions, and forms. In a question, the safe answer has the focus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Static

from appliance.core.units import parse_duration
from appliance.tui.text import plain
from appliance.tui.widgets.scrolling import SCROLL_KEYS, Scrolling

CANCEL = ""


Fact = tuple[str, str]
"""The name of something known of a row, and its text, which may have many lines."""


class Whole(Scrolling, ModalScreen[None]):
    """Shows one row whole; `copy` puts a text on the terminal's clipboard."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "close", "close"),
        Binding("y", "copy", "copy", tooltip="copy all of it"),
        *SCROLL_KEYS,
    ]

    def __init__(self, title: str, facts: Sequence[Fact], copy: Callable[[str], None]) -> None:
        super().__init__()
        self._heading = plain(title)
        self._facts = [(plain(name), "\n".join(map(plain, text.split("\n")))) for name, text in facts if text]
        self._copy = copy

    @property
    def text(self) -> str:
        """All of it, as it is copied."""
        return "\n".join([self._heading, *(f"{name}: {text}" for name, text in self._facts)])

    def compose(self) -> ComposeResult:
        """Yields the title, the facts, which scroll, and the keys."""
        with Vertical(classes="dialog whole"):
            yield Label(self._heading, classes="question", markup=False)
            with VerticalScroll(id="facts-of-row"):
                for name, text in self._facts:
                    with Horizontal(classes="fact"):
                        yield Label(name, classes="label", markup=False)
                        yield Static(text, markup=False, classes="told")
            yield Label("y copies all of it · escape closes", classes="hint")

    @property
    def scrolled(self) -> VerticalScroll:
        """The facts."""
        return self.query_one(VerticalScroll)

    def on_mount(self) -> None:
        """Focuses what scrolls."""
        self.scrolled.focus()

    def action_close(self) -> None:
        """Goes back."""
        self.dismiss()

    def action_copy(self) -> None:
        """Copies all of it."""
        self._copy(self.text)


class Ask(ModalScreen[str]):
    """Asks a question whose answers are pairs of id and label. Ends with the chosen id or with CANCEL."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel"),
        Binding("left", "app.focus_previous", "before", show=False),
        Binding("right", "app.focus_next", "next", show=False),
    ]

    def __init__(self, question: str, text: str, answers: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._question = plain(question)
        self._text = plain(text)
        self._answers = answers

    def compose(self) -> ComposeResult:
        """Yields the question, its consequences, and the answers."""
        with Vertical(classes="dialog"):
            yield Label(self._question, classes="question", markup=False)
            yield Label(self._text, classes="consequence", markup=False)
            with Horizontal(classes="answers"):
                yield Button("Cancel", id="cancel", compact=True)
                for name, label in self._answers:
                    yield Button(label, id=name, compact=True, classes="serious")

    def on_mount(self) -> None:
        """Focuses Cancel, so that a key pressed once too often does nothing."""
        self.query_one("#cancel").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Ends with the answer."""
        self.dismiss(CANCEL if event.button.id == "cancel" else str(event.button.id))

    def action_cancel(self) -> None:
        """Ends as if the question had not been asked."""
        self.dismiss(CANCEL)


class Form(ModalScreen[dict[str, str]]):
    """Asks for fields, each a name, label, value and placeholder. Ends with the input, which is empty if cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "cancel")]

    def __init__(self, title: str, text: str, fields: Sequence[tuple[str, str, str, str]]) -> None:
        super().__init__()
        self._title_text = plain(title)
        self._text = plain(text)
        self._fields = fields

    def compose(self) -> ComposeResult:
        """Yields the title, the fields, and a line for what is wrong with them."""
        with Vertical(classes="dialog"):
            yield Label(self._title_text, classes="question", markup=False)
            yield Label(self._text, classes="consequence", markup=False)
            for name, label, value, placeholder in self._fields:
                with Horizontal(classes="field"):
                    yield Label(label, classes="label")
                    yield Input(value, placeholder=placeholder, id=name, compact=True)
            yield Label("", id="wrong", markup=False)
            yield Label("enter confirms · tab goes to the next field · escape cancels", classes="hint")

    def check(self, entered: dict[str, str]) -> str | None:
        """Returns what is wrong with the input, or None."""
        return None if entered[self._fields[0][0]] else f"{self._fields[0][1]} is needed"

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Ends with the input, or shows what is wrong with it."""
        entered = {name: self.query_one(f"#{name}", Input).value.strip() for name, *_ in self._fields}
        wrong = self.check(entered)
        if wrong is None:
            self.dismiss(entered)
        else:
            self.query_one("#wrong", Label).update(plain(wrong))

    def action_cancel(self) -> None:
        """Ends with empty input."""
        self.dismiss({})


class AddRepo(Form):
    """Asks for the arguments of `add-repo`."""

    def __init__(self) -> None:
        super().__init__(
            "Add a repository",
            "Its first clone starts at once, in the background.",
            [
                ("url", "URL", "", "https://github.com/OWNER/REPO"),
                ("name", "name", "", "OWNER/REPO; by default from the end of the URL"),
                ("branch", "branch", "", "by default the upstream's HEAD"),
                ("interval", "interval", "", "30s, 5m; by default that of the config"),
            ],
        )

    def check(self, entered: dict[str, str]) -> str | None:
        """Checks that the interval is a duration; registering checks the rest."""
        try:
            if entered["interval"] and parse_duration(entered["interval"]) < 1:
                return "the interval must be at least 1s"
        except ValueError as error:
            return f"the interval is not {error}"
        return super().check(entered)

    @staticmethod
    def arguments(entered: dict[str, str]) -> dict[str, Any]:
        """Returns the arguments of `add`, which then does not wait for the clone."""
        return {
            "url": entered["url"],
            "name": entered["name"] or None,
            "branch": entered["branch"] or None,
            "interval": parse_duration(entered["interval"]) if entered["interval"] else None,
            "allow_local": False,
            "wait": False,
        }
