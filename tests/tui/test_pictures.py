"""Every screen as a picture: normal, at 80x24, empty, in trouble; light, and without colours.

REMAKE_PICTURES=1 writes them anew; look at them before committing.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input

from appliance.core.models import State
from appliance.tui.screens import diff
from appliance.tui.widgets.listing import Listing
from tests.tui.drive import Seen, drive
from tests.tui.scene import BROKEN, LONG, TRANSFERS, WIDGETS, Make, Scene, build, build_empty, remake

PICTURES = Path(__file__).with_name("pictures")
NORMAL, SMALL = (120, 32), (80, 24)
Step = tuple[str, Sequence[str]]

WALK: list[Step] = [
    ("repositories", ()),
    ("remove", ("end", "home", "D")),
    ("add", ("escape", "a")),
    ("help", ("escape", "question_mark")),
    ("repository", ("escape", f"={WIDGETS}", "enter")),
    ("refs", ("tab",)),
    ("hydrations", ("tab",)),
    ("repository-sessions", ("tab",)),
    ("sessions", ("escape", "2")),
    ("marked", ("space", "space")),
    ("comparison", ("equals_sign",)),
    ("diff", ("escape", "end", "enter")),
    ("turn", ("right_square_bracket",)),
    ("activity", ("escape", "3")),
    ("node", ("4",)),
    ("guests", ("5",)),
    ("guest-sessions", ("s", "s", "home", "enter")),
]


@pytest.fixture(scope="session")
def scene(make_once: Make) -> Scene:
    """The node in its usual state."""
    return Scene(make_once("scene", build), sent=TRANSFERS)


@pytest.fixture(scope="session")
def empty(make_once: Make) -> Scene:
    """A node on which nothing is registered."""
    return Scene(make_once("empty-scene", build_empty))


@pytest.fixture(autouse=True)
def no_colour_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the terminal of whoever runs this says of itself."""
    for name in ("NO_COLOR", "COLORFGBG", "TEXTUAL_ANIMATIONS"):
        monkeypatch.delenv(name, raising=False)


def normalised(svg: str) -> str:
    """Without the ids, which are random, and without fonts from elsewhere."""
    return (
        re.sub(r" *@font-face \{.*?\}\n", "", re.sub(r"terminal-\d+", "terminal", svg), flags=re.DOTALL).rstrip() + "\n"
    )


def words_of(svg: str) -> list[str]:
    """The text of a picture, a line of the terminal each."""
    lines: dict[float, list[str]] = {}
    for y, text in re.findall(r'<text [^>]*\by="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        lines.setdefault(float(y), []).append(html.unescape(text).replace("\xa0", " "))
    return ["".join(parts) for _, parts in sorted(lines.items())]


def compare(name: str, svg: str) -> None:
    """With the picture of that name."""
    path, svg = PICTURES / f"{name}.svg", normalised(svg)
    if remake():
        path.write_text(svg)
    assert path.exists(), f"there is no picture {name}: REMAKE_PICTURES=1 makes it"
    kept = path.read_text()
    if svg != kept:
        changed = "\n".join(difflib.unified_diff(words_of(kept), words_of(svg), name, "now", lineterm=""))
        raise AssertionError(f"{name} looks otherwise:\n{changed or 'other colours, the same words'}")


async def walk(seen: Seen, form: str, steps: Sequence[Step]) -> None:
    """Goes through the screens, and looks at each."""
    await seen.settled()
    for name, keys in steps:
        for key in keys:
            if key.startswith("="):
                seen.app.screen.query_one("#list").select(key[1:])  # type: ignore[attr-defined]
            else:
                await seen.press(key)
            await seen.settled()
        for field in seen.app.screen.query(Input):
            field.cursor_blink = False
        await seen.pilot.pause()
        compare(f"{name}-{form}", seen.app.export_screenshot(simplify=True))


@pytest.mark.slow
def test_normal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every screen, with room."""
    drive(scene.app(monkeypatch), lambda seen: walk(seen, "normal", WALK), NORMAL)


@pytest.mark.slow
def test_small(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every screen at 80x24."""
    drive(scene.app(monkeypatch), lambda seen: walk(seen, "small", WALK), SMALL)


@pytest.mark.slow
def test_empty(empty: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing registered: each screen says what it is for."""
    steps: list[Step] = [("repositories", ()), ("sessions", ("2",)), ("activity", ("3",)), ("node", ("4",))]
    steps.append(("guests", ("5",)))
    drive(empty.app(monkeypatch), lambda seen: walk(seen, "empty", steps), SMALL)


@pytest.mark.slow
def test_trouble(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """No serve, things to mend, a mirror that is gone."""
    broken = replace(scene, pulse=None, checks=BROKEN)
    steps: list[Step] = [
        ("repositories", ("end", "b")),
        ("repository", ("enter",)),
        ("refs", ("tab",)),
        ("sessions", ("escape", "2", "slash", "z", "z", "enter")),
        ("activity", ("3", "f")),
        ("node", ("4",)),
        ("guests", ("5",)),
    ]
    drive(broken.app(monkeypatch), lambda seen: walk(seen, "trouble", steps), SMALL)


def test_a_diff_whose_commits_are_gone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is dropped while it is looked at."""

    def gone(*_: object) -> None:
        from appliance.core.errors import GitmirrorError

        raise GitmirrorError("git failed: fatal: bad object 0123456789", hint="its session may have been ended")

    app = scene.app(monkeypatch)
    monkeypatch.setattr(type(app.context.sessions), "files", gone)
    drive(app, lambda seen: walk(seen, "trouble", [("diff", ("2", "enter"))]), SMALL)


def test_a_diff_that_is_too_long_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it ends, and how to see the rest."""
    monkeypatch.setattr(diff, "LIMIT", 60)

    async def script(seen: Seen) -> None:
        await seen.press("2", "down", "enter")
        await seen.shows("cut here, after 60 B: the key e exports all of it")

    drive(scene.app(monkeypatch), script, SMALL)


@pytest.mark.slow
def test_the_database_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which, whatever the screen."""
    app = Scene(Path("/var/lib/gitmirror-that-is-not-there"), pulse=None).app(monkeypatch)
    drive(app, lambda seen: walk(seen, "missing", [("repositories", ()), ("sessions", ("2",))]), SMALL)


@pytest.mark.parametrize("form", ["light", "nocolour"])
@pytest.mark.slow
def test_other_colours(scene: Scene, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A light terminal; one that wants no colours."""
    monkeypatch.setenv(*(("COLORFGBG", "0;15") if form == "light" else ("NO_COLOR", "1")))
    steps: list[Step] = [
        ("repositories", ()),
        ("diff", ("2", "down", "enter")),
        ("comparison", ("escape", "home", "space", "space", "equals_sign")),
    ]
    drive(scene.app(monkeypatch), lambda seen: walk(seen, form, steps), SMALL)


def test_tiny(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """20x5: the list, and which key helps."""
    drive(scene.app(monkeypatch), lambda seen: walk(seen, "tiny", [("repositories", ())]), (20, 5))


@pytest.mark.slow
def test_a_filter_and_an_order(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed filters at once; escape drops it; the order is named."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        await seen.press("slash", *"failing")
        assert "acme/infra" in seen.text and WIDGETS not in seen.text
        await seen.press("enter", "escape")
        assert WIDGETS in seen.text
        orders = []
        for _ in range(6):
            await seen.press("s")
            first = seen.text.splitlines()[3].split()[0].strip("▌…")
            orders.append((seen.text.splitlines()[1].rsplit("by ", 1)[1], first))
        assert [(order, LONG[-20:] if LONG.endswith(first) else first) for order, first in orders] == [
            ("name", "acme/infra"), ("lag", "acme/infra"), ("size", LONG[-20:]), ("sessions", WIDGETS),
            ("hydrations", WIDGETS), ("state", "acme/infra"),
        ]  # fmt: skip

    drive(scene.app(monkeypatch), script, SMALL)


def test_the_cursor_stays_on_its_row(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the row goes, and when it goes away on the one that takes its place; untouched, it is on the worst."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        listing, model = seen.app.screen.query_one("#list", Listing), seen.app.context.model

        def now(**states: State) -> str:
            model.repos = {
                name: replace(view, state=states.get(name.partition("/")[2], view.state))
                for name, view in model.repos.items()
                if states.get(name.partition("/")[2]) is not State.NEW
            }
            seen.app.context.follower.tell("repos")
            return str(listing.row.repo.name if listing.row else None)

        assert now(infra=State.FRESH) == "acme/search"
        await seen.press("down", "down")
        assert listing.cursor == 2 and now() == "acme/infra"
        assert now(infra=State.FAILING) == "acme/infra" and listing.cursor == 0
        assert now(infra=State.DISABLED) == "acme/infra" and listing.cursor == 4
        assert now(infra=State.NEW) == "acme/web"

    drive(scene.app(monkeypatch), script, SMALL)
