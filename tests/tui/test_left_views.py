"""A view that is left while something is read for it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.node.queries import NodeQueries
from appliance.core.node.sessions import Sessions
from appliance.tui.screens.view import View
from tests.tui.drive import Seen, drive
from tests.tui.scene import WIDGETS, Make, Scene, build


class SlowFailure:
    """A read that fails once it may."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        """Waits, and raises GitmirrorError."""
        self.began.set()
        assert self.may_end.wait(60)
        raise GitmirrorError("there is no mirror")


@pytest.mark.parametrize(
    ("of", "read", "keys"),
    [
        pytest.param(NodeQueries, "refs", ("enter",), id="repository", marks=pytest.mark.slow),
        pytest.param(Sessions, "files", ("2", "enter"), id="diff"),
    ],
)
def test_what_fails_after_a_view_was_left_does_no_harm(
    make_once: Make, monkeypatch: pytest.MonkeyPatch, of: type[Any], read: str, keys: tuple[str, ...]
) -> None:
    slow = SlowFailure()

    async def script(seen: Seen) -> None:
        await seen.shows(WIDGETS)
        await seen.settled()
        for key in keys:
            await seen.press(key)
            await seen.pilot.pause()
        await seen.until(slow.began.is_set, "it reads")
        top = seen.app.screen
        await seen.press("escape")
        await seen.until(lambda: seen.app.screen is not top, "the view is left")
        slow.may_end.set()
        await seen.settled()
        await seen.shows("acme/")

    monkeypatch.setattr(of, read, slow)
    drive(Scene(make_once("scene", build)).app(monkeypatch), script)


def test_what_waits_to_be_read_is_not_read_for_a_view_that_is_gone(
    make_once: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the whole program ends, which removes the widgets first."""
    read: list[str] = []

    async def script(seen: Seen) -> None:
        await seen.shows(WIDGETS)
        await seen.settled()
        follower, below = seen.app.context.follower, seen.app.screen
        await seen.press("enter")
        await seen.until(lambda: seen.app.screen is not below, "the view is open")
        top = seen.app.screen
        assert isinstance(top, View)
        follower.soon(lambda: read.append("at once"), top)
        follower.soon(lambda: read.append("later"), top)
        await seen.press("escape")
        await seen.until(lambda: not top.is_attached and not follower._later, "the view is left")
        assert "later" not in read

    drive(Scene(make_once("scene", build)).app(monkeypatch), script)
