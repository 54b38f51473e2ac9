"""On a wide terminal the chosen repository stands beside the list, and costs nothing while the cursor moves."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.tui.screens import repositories
from appliance.tui.widgets.lines import Lines
from tests.tui.drive import NARROW, Seen, drive
from tests.tui.scene import WIDGETS, FixedQueries, Make, Scene, build


def beside(seen: Seen) -> str:
    return " ".join(seen.app.screen.query_one("#beside", Lines).text.split())


@pytest.mark.slow
def test_the_chosen_one_is_told_in_full(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(seen: Seen) -> None:
        await seen.settled()
        assert "acme/infra is failing: behind for 2h 3m, 9 failures in a row next try in 48s" in beside(seen)
        assert "'https://github.com/acme/infra/': Could not resolve host https://github.com/acme/infra" in beside(seen)
        await seen.until(lambda: "nothing in the last 40 refreshes" in beside(seen), "its refreshes are read")
        seen.app.screen.query_one("#list").select(WIDGETS)  # type: ignore[attr-defined]
        await seen.until(lambda: "is fresh: equal to its upstream 12s ago" in beside(seen), "the cursor is followed")
        for words in ("Moved last 12s ago main", "snapshot vm-7", "fix-login-timeout", "hit ratio 86%", "36m ago main"):
            await seen.until(lambda words=words: words in beside(seen), words)  # type: ignore[misc]
        assert "infra" not in beside(seen)

    drive(Scene(make_once("scene", build)).app(monkeypatch), script, (120, 32))


@pytest.mark.slow
def test_details_are_read_once_the_cursor_rests(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each row that it passes, and not at all where there is no room for them."""
    read: list[str | None] = []
    refreshes = FixedQueries.refreshes

    def noted(queries: FixedQueries, name: str | None, limit: int) -> list[dict[str, Any]]:
        read.append(name)
        return refreshes(queries, name, limit)

    monkeypatch.setattr(FixedQueries, "refreshes", noted)
    monkeypatch.setattr(repositories, "RESTS", 1.0)

    async def wide(seen: Seen) -> None:
        await seen.until(lambda: "acme/infra" in read, "the first row is read")
        await seen.settled()
        read.clear()
        for _ in range(3):
            seen.app.screen.query_one("#list").action_move(1)  # type: ignore[attr-defined]
            await seen.pilot.pause()
        chosen = seen.app.screen.query_one("#list").row.repo.name  # type: ignore[attr-defined]
        await seen.until(lambda: chosen in read, "the last row is read")
        assert set(read) <= {"acme/infra", chosen}

    drive(Scene(make_once("scene", build)).app(monkeypatch), wide, (120, 32))
    read.clear()

    async def narrow(seen: Seen) -> None:
        await seen.settled()
        await seen.press("down", "down")
        await seen.settled()
        await seen.shows("its first clone is under way")
        assert read == []

    drive(Scene(make_once("scene", build)).app(monkeypatch), narrow, NARROW)


@pytest.mark.slow
def test_one_repository_has_its_other_lists_beside(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the one that is shown, on a terminal with room; its figures stand above at any width."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        seen.app.screen.query_one("#list").select(WIDGETS)  # type: ignore[attr-defined]
        await seen.press("enter")
        await seen.shows("14 refs, 384 MiB, 2 sessions, 5 hydrations a minute, hit ratio 86%")
        if seen.app.size.width < 150:
            await seen.settled()
            assert "Hydrated last" not in seen.text and "from the command line" not in seen.text
            return
        await seen.shows("Hydrated last", "snapshot  vm-7", "30m ago  fix-login-timeout")
        await seen.hides("Moved last")
        await seen.press("tab", "tab")
        await seen.shows("Moved last", "36m ago  main")
        await seen.hides("Hydrated last")

    for size in ((160, 48), NARROW):
        drive(Scene(make_once("scene", build)).app(monkeypatch), script, size)
