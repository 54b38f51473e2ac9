"""What is typed after `:`, one table: it completes, names the nearest, and asks as its key does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.tui.commands import TABLE
from appliance.tui.screens.dialogs import Ask
from appliance.tui.screens.diff import DiffScreen
from appliance.tui.screens.repository import RepositoryScreen
from tests.support.serve import ROOT
from tests.tui.conftest import Node
from tests.tui.drive import Seen, drive, make_app
from tests.tui.scene import WIDGETS, Scene, build


@pytest.fixture(scope="session")
def scene(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Scene:
    return Scene(make_once("scene", build))


async def command(seen: Seen, text: str) -> None:
    """Types it."""
    await seen.press("colon")
    await seen.type(text)
    await seen.press("enter")
    await seen.settled()


@pytest.mark.parametrize("words", sorted({each.words for each in TABLE} - {"help", "quit"}))
def test_the_words_are_those_of_the_command_line(words: str) -> None:
    """With the same options."""
    from appliance.cli.main import cli

    found: Any = cli
    for word in words.split():
        found = found.commands[word]
    options = {option for parameter in found.params for option in parameter.opts}
    assert all(set(each.options) <= options for each in TABLE if each.words == words)


def test_every_command_is_documented() -> None:
    """In the table of docs/tui.md, with its options."""
    page = (ROOT / "docs" / "tui.md").read_text().partition("\n## Commands\n")[2].partition("\n## ")[0]
    for each in TABLE:
        assert re.search(rf"`{each.words}\b", page), each.words
        assert all(f"[{option} " in page for option in each.options), each.words


@pytest.mark.slow
def test_going_somewhere(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """From anywhere, filtered; a name alone opens the repository; a session's diff at a turn."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await command(seen, f"sessions --repo {WIDGETS} --grep fix-")
        await seen.shows("1 of 2 sessions", "fix-login-timeout")
        await command(seen, f"session diff {WIDGETS} fix-login-timeout --turn=1")
        await seen.shows("turn 1 of 2")
        assert isinstance(seen.app.screen, DiffScreen)
        await command(seen, f"audit --repo {WIDGETS}")
        await seen.shows("✗ refused")
        await seen.hides("hydrate ")
        await command(seen, WIDGETS)
        await seen.until(lambda: isinstance(seen.app.screen, RepositoryScreen), "it opens")
        await command(seen, "guests")
        await seen.shows("4 known")
        await command(seen, "help")
        await seen.shows("Everywhere")

    drive(scene.app(monkeypatch), script)


@pytest.mark.slow
def test_what_is_wrong_and_what_is_right(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong command, option, repository, session, number of arguments, or quote."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        for text, told in (
            ("refesh", "did you mean `refresh`?"),
            ("widgets", f"did you mean `{WIDGETS}`?"),
            ("sessions --rpeo a/b", "did you mean --repo?"),
            ("disable widgets", f"did you mean {WIDGETS}?"),
            (f"session show {WIDGETS} none", f"{WIDGETS} has no session none"),
            ("disable", "type: disable REPO"),
            (f"session diff {WIDGETS} fix --turn x", "turns count from 1"),
            (f"session diff {WIDGETS} fix --turn ²", "--turn ² is no turn"),
            (f"session checkout {WIDGETS} absent ~nobody-has-this-name/x", "absent"),
            ('refresh "', "No closing quotation"),
        ):
            await command(seen, text)
            await seen.says(told)

    drive(scene.app(monkeypatch), script)


def test_completion(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of commands, options and repositories; tab takes it."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        complete = seen.app.context.complete
        assert complete("refr") == "refresh " and complete("session dr") == "session drop "
        assert complete("refresh acme/wi") == f"refresh {WIDGETS}"
        assert complete(f"refresh {WIDGETS} acme/inf") == f"refresh {WIDGETS} acme/infra"
        assert complete("sessions --repo acme/wi") == f"sessions --repo {WIDGETS}"
        assert complete("sessions --gr") == "sessions --grep "
        assert complete(f"session drop {WIDGETS} acme/wi") is None and complete("zzz") is None
        await seen.press("colon", *"disab", "tab", *"acme/w", "tab")
        assert seen.app.focused.value == "disable acme/web"  # type: ignore[union-attr]
        await seen.press("escape")
        await seen.shows("? help")

    drive(scene.app(monkeypatch), script)


@pytest.mark.slow
def test_what_cannot_be_undone_asks(node: Node) -> None:
    """As its key does; and what needs no question is done at once, by the running serve."""
    guest = node.guest("commander")
    node.record(guest, "typed-1")

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        for text, question in (
            (f"disable {WIDGETS}", f"Disable {WIDGETS}?"),
            (f"remove-repo {WIDGETS}", f"Remove {WIDGETS}?"),
            (f"session drop {WIDGETS} typed-1", "End the session typed-1?"),
        ):
            await command(seen, text)
            await seen.shows(question)
            assert isinstance(seen.app.screen, Ask) and seen.app.focused is not None
            assert seen.app.focused.id == "cancel"
            await seen.press("enter")
        await command(seen, f"refresh {WIDGETS}")
        await seen.says("nothing moved")
        await command(seen, f"session keep {WIDGETS} typed-1")
        await seen.says("typed-1 is kept")
        await command(seen, f"session drop {WIDGETS} typed-1")
        await seen.press("right", "enter")
        await seen.says("typed-1 is ended")

    drive(make_app(node.serve), script)


@pytest.mark.slow
def test_without_a_serve(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is changed, and it says so."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await command(seen, f"disable {WIDGETS}")
        await seen.says("serve is not running")

    drive(Scene(scene.state, pulse=None).app(monkeypatch), script)
