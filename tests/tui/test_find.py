"""`/` in every list and in a diff: letters go into the field, however fast they come, and are never commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.widgets import Input

from appliance.core.models import RefText
from appliance.tui.data.messages import RefsRead
from appliance.tui.screens.view import View
from tests.tui.drive import Seen, drive
from tests.tui.scene import NOW, WIDGETS, Scene, build

LETTERS = "adDrRXKq2:/?"
"""Each is a command somewhere."""


@pytest.fixture(scope="session")
def scene(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Scene:
    return Scene(make_once("scene", build))


async def burst(seen: Seen, text: str) -> None:
    """Keys that arrive at once, as they do when a line is pasted into a terminal or comes over a slow connection."""
    for letter in text:
        key = {"/": "slash", ":": "colon", "?": "question_mark"}.get(letter, letter)
        seen.app.post_message(events.Key(key, letter))
    await seen.settled()


WAYS = {
    "repositories": (),
    "sessions": ("2",),
    "activity": ("3",),
    "guests": ("5",),
    "repository": ("end", "enter"),
    "refs": ("end", "enter", "tab"),
    "diff": ("2", "enter"),
    "files": ("2", "enter", "tab"),
}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=name, marks=() if name in ("repositories", "refs", "diff") else pytest.mark.slow)
        for name, way in WAYS.items()
    ],
)
def test_letters_are_not_commands(scene: Scene, monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]) -> None:
    """Whichever list it is; what was typed is all in the field, no dialog opens, and no other view."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        for key in way:
            await seen.press(key)
            await seen.settled()
        here = seen.app.screen
        await burst(seen, f"/{LETTERS}")
        assert seen.app.screen is here and isinstance(here, View)
        assert isinstance(seen.app.focused, Input) and seen.app.focused.value == LETTERS
        await seen.press("escape")
        await seen.settled()
        assert seen.app.screen is here and not isinstance(seen.app.focused, Input)
        assert not any(field.has_class("-shown") for field in here.query(Input))

    drive(scene.app(monkeypatch), script)


def test_one_of_a_thousand_refs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each list of a repository has a filter of its own, which is there again when the list is."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("enter", "tab")
        await seen.settled()
        screen: Any = seen.app.screen
        refs = [RefText(f"refs/heads/topic-{n:04}", f"{n:040x}", int(NOW) - n, f"Subject {n}") for n in range(1000)]
        screen.on_refs_read(RefsRead(WIDGETS, refs))
        await burst(seen, "/0999 SUBJ")
        await seen.shows("topic-0999", "1 row of the filter")
        await seen.hides("topic-0001")
        await seen.press("enter", "tab")
        await seen.hides("of the filter")
        await seen.press("shift+tab")
        await seen.shows("1 row of the filter")
        await burst(seen, "/zzz")
        await seen.press("end", *"zzz")
        await seen.shows("No row matches")
        await seen.press("escape")
        await seen.shows("topic-0001")

    drive(scene.app(monkeypatch), script)


def test_keys_in_the_help(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have all the words; escape shows all again, and then closes."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("question_mark")
        await seen.settled()
        await burst(seen, "/qui")
        await seen.shows("quit")
        await seen.hides("In Repositories")
        await seen.press("escape")
        await seen.shows("In Repositories")
        await seen.press("escape")
        assert isinstance(seen.app.screen, View)

    drive(scene.app(monkeypatch), script)


def test_matches_in_a_diff(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, gone through in both directions, marked; they are looked for in the next file too."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("2", "down", "enter")
        await seen.settled()
        await burst(seen, "/HELLO")
        await seen.shows("no match in this file")
        await seen.press("enter", "n")
        await seen.shows("1 of 2 matches", "m next match")
        await seen.press("m")
        await seen.shows("2 of 2 matches")
        await seen.press("m")
        await seen.shows("1 of 2 matches")
        await seen.press("M")
        await seen.shows("2 of 2 matches")
        marked = [
            segment.text
            for y in range(seen.app.screen.diff.size.height)  # type: ignore[attr-defined]
            for segment in seen.app.screen.diff.render_line(y)  # type: ignore[attr-defined]
            if segment.style and (segment.style.underline or segment.style.reverse)
        ]
        assert [text.lower() for text in marked] == ["hello", "hello"]
        await seen.press("escape")
        await seen.hides("matches", "next match")

    drive(scene.app(monkeypatch), script)


@pytest.mark.slow
def test_files_of_a_diff_are_filtered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """While their list has the focus."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("2", "down", "enter")
        await seen.settled()
        await seen.press("tab")
        await burst(seen, "/greet")
        assert [file.path for file in seen.app.screen.query_one("#list").rows] == ["src/server/greeting.py"]  # type: ignore[attr-defined]
        await seen.shows("return")

    drive(scene.app(monkeypatch), script)


@pytest.mark.parametrize("way", [(), ("question_mark",), ("slash", "x")], ids=["list", "dialog", "field"])
def test_ctrl_c_quits_from_anywhere(scene: Scene, monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]) -> None:
    """From a list, a dialog and a field; a selection in a field is copied instead."""

    async def script(seen: Seen) -> None:
        ended: list[bool] = []
        await seen.settled()
        await seen.press(*way)
        await seen.settled()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seen.app, "exit", lambda: ended.append(True))
            if isinstance(field := seen.app.focused, Input):
                field.select_all()
                await seen.press("ctrl+c")
                await seen.until(lambda: seen.app.clipboard == "x", "the selection is copied")
                field.value = ""
                assert not ended
            await seen.press("ctrl+c")
            await seen.until(lambda: ended, "the view ends")

    drive(scene.app(monkeypatch), script)
