"""Drives the live view with no terminal: keys go in, what is on screen comes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from textual.pilot import Pilot
from textual.widgets import Input

from appliance.core.config.settings import load_config
from appliance.core.layout import Layout
from appliance.core.node.node import Node
from appliance.core.node.queries import NodeQueries
from appliance.tui.app import Tui
from appliance.tui.screens.view import View
from tests.support.serve import Serve

NARROW, WIDE = (80, 24), (130, 36)

_T = TypeVar("_T")


class Seen:
    """A running view, as somebody at the terminal has it."""

    def __init__(self, app: Tui, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot
        self.looking = 0.0
        """Seconds of processor time that went into `text`, and not into the view."""

    @property
    def text(self) -> str:
        """What is on screen, line by line."""
        start = time.thread_time()
        strips = self.app.screen._compositor.render_strips()
        text = "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)
        self.looking += time.thread_time() - start
        return text

    @property
    def said(self) -> str:
        """The notifications so far."""
        return "\n".join(note.message for note in self.app._notifications)

    async def press(self, *keys: str) -> None:
        """Keys, one after the other."""
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Fills the field that has the focus."""
        focused = self.app.focused
        assert isinstance(focused, Input), focused
        focused.value = text
        await self.pilot.pause()

    async def until(self, look: Callable[[], _T | None], message: str, timeout: float = 60.0) -> _T:
        """Waits until it is so, and returns what `look` returned."""
        first = time.monotonic()
        while not (found := look()):
            waited = time.monotonic() - first
            if waited > timeout:
                raise AssertionError(f"not within {timeout} s: {message}\n{self.said}\n{self.text}")
            # To look at the screen takes the processor that what is waited for needs.
            await asyncio.sleep(min(max(0.01, waited / 20), 0.1))
        return found

    async def shows(self, *words: str, timeout: float = 60.0) -> None:
        """Waits until all of it is on screen."""
        await self.until(lambda: all(word in self.text for word in words), f"the screen shows {words}", timeout)

    async def hides(self, *words: str, timeout: float = 60.0) -> None:
        """Waits until none of it is on screen."""
        await self.until(lambda: not any(word in self.text for word in words), f"{words} are gone", timeout)

    async def says(self, words: str, timeout: float = 60.0) -> None:
        """Waits for a notification."""
        await self.until(lambda: words in self.said, f"it says {words}", timeout)

    async def settled(self) -> None:
        """Waits until nothing is being read, and nothing on screen changes.

        Right after a switch to another screen, nothing is drawn yet. Only the smallest one stays so.
        """
        before = ""
        deadline = time.monotonic() + 60
        while self.app.context.loader.busy or self._is_waiting() or self.text != before or self._is_blank(before):
            assert time.monotonic() < deadline, f"it never settles\n{self.text}"
            before = self.text
            await asyncio.sleep(0.05)
            await self.pilot.pause()

    def _is_blank(self, text: str) -> bool:
        return not text and self.app.size.width > 1

    def _is_waiting(self) -> bool:
        return isinstance(self.app.screen, View) and self.app.screen.is_waiting

    def line(self, words: str) -> str:
        """The first line with these words."""
        return next((line for line in self.text.splitlines() if words in line), "")


def make_app(serve: Serve, command: str = "gitmirror.pyz") -> Tui:
    """The view of a serve that runs, or does not."""
    return Tui(NodeQueries(Node(Layout(serve.state), load_config(serve.config), create=False)), command=command)


def drive(app: Tui, script: Callable[[Seen], Awaitable[None]], size: tuple[int, int] = WIDE) -> None:
    """Runs the view, and the script beside it."""

    async def run() -> None:
        if hasattr(asyncio, "eager_task_factory"):
            # As Textual does in a terminal, from Python 3.12 on.
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with app.run_test(size=size, notifications=True) as pilot:
            await script(Seen(app, pilot))

    asyncio.run(run())
