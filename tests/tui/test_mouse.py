"""One click: tabs, keys in the last line, headings, the lists of a repository; a second one opens a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.tui.app import Tui
from appliance.tui.screens.dialogs import Whole
from appliance.tui.screens.help import HelpScreen
from appliance.tui.screens.repository import RepositoryScreen
from appliance.tui.widgets.columns import Column, Sorting
from tests.tui.drive import Seen, drive
from tests.tui.scene import WIDGETS, Scene, build


@pytest.fixture(scope="session")
def scene(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Scene:
    return Scene(make_once("scene", build))


async def click(seen: Seen, words: str, line: int | None = None) -> None:
    """On the middle of the words, in that line of the screen or in the first that has them."""
    # What is still being laid out may move away under the pointer.
    await seen.settled()
    lines = seen.text.splitlines()
    y = next(n for n, text in enumerate(lines) if words in text) if line is None else line % len(lines)
    await seen.pilot.click(offset=(lines[y].index(words) + len(words) // 2, y))
    await seen.settled()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
def test_tabs_and_keys(scene: Scene, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """A tab by its number or its name; a key does what it does, even while a filter is typed."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        assert isinstance(seen.app, Tui)
        for words, mode in (("Sessions", "sessions"), ("3", "activity"), ("Guests", "guests"), ("1", "repositories")):
            await click(seen, words, 0)
            assert seen.app.current_mode == mode
        await click(seen, "filter", -1)
        assert seen.app.focused is not None and seen.app.focused.id == "filter"
        await seen.press(*"infra")
        await click(seen, "open", -1)
        await seen.until(lambda: isinstance(seen.app.screen, RepositoryScreen), "it opens")
        await seen.until(lambda: "refreshes  refs" in seen.text, "its tabs are drawn")
        tabs = next(n for n, line in enumerate(seen.text.splitlines()) if "refreshes  refs" in line)
        await click(seen, "hydrations", tabs)
        assert seen.app.screen.listing.id == "hydrations"  # type: ignore[attr-defined]
        await click(seen, "back", -1)
        await click(seen, "help", -1)
        assert isinstance(seen.app.screen, HelpScreen)

    drive(scene.app(monkeypatch), script, size)


def test_rows(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first click chooses, and the second opens."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        listing: Any = seen.app.screen.query_one("#list")
        await click(seen, WIDGETS)
        assert listing.row.repo.name == WIDGETS and seen.app.screen is listing.screen
        await seen.shows(f"● {WIDGETS}")
        await click(seen, f"▌{WIDGETS}")
        await seen.until(lambda: isinstance(seen.app.screen, RepositoryScreen), "it opens")
        await seen.shows("11:59:49")
        await click(seen, "11:59:49")
        await click(seen, "11:59:49")
        assert isinstance(seen.app.screen, Whole)

    drive(scene.app(monkeypatch), script)


def test_headings(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up, down, and as before; the cursor stays on its row; the order that the key `s` asks for replaces it."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        listing: Any = seen.app.screen.query_one("#list")

        def names() -> list[str]:
            return [view.repo.name for view in listing.rows]

        before = names()
        await click(seen, WIDGETS)
        await click(seen, "REPOSITORY")
        assert names() == sorted(before) and listing.row.repo.name == WIDGETS
        await seen.shows("REPOSITORY", "▲", "sorted by repository")
        await click(seen, "REPOSITORY")
        assert names() == sorted(before, reverse=True)
        await click(seen, "REPOSITORY")
        assert names() == before and listing.row.repo.name == WIDGETS
        await click(seen, "SIZE")
        sizes = [view.health.size for view in listing.rows]
        assert sizes == sorted(sizes)
        await seen.press("s")
        assert names() == sorted(before)

    drive(scene.app(monkeypatch), script)


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["1", "2", "3", "5"])
def test_every_heading_sorts(scene: Scene, monkeypatch: pytest.MonkeyPatch, tab: str) -> None:
    """Whatever is missing in a row: each column of each list has an order."""

    async def script(seen: Seen) -> None:
        await seen.press(tab)
        await seen.settled()
        listing: Any = seen.app.screen.query_one("#list")
        assert listing.rows
        for column in listing.columns:
            order: Sorting[Any] = Sorting()
            assert order.click(column), column.title
            assert sorted(map(id, order.apply(listing.rows))) == sorted(map(id, listing.rows))

    drive(scene.app(monkeypatch), script)


def test_a_column_without_an_order_is_not_sorted_by() -> None:
    """And a click on its heading changes nothing."""
    order: Sorting[int] = Sorting()
    assert not order.click(Column("X", lambda _: (), 1, 0)) and order.title == ""
    assert order.apply([2, 1]) == [2, 1]
