"""What Node shows: figures over time that can be read off, and in words, in full, everything about the node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.core.models import Hydration, State
from appliance.core.ops import doctor
from appliance.core.store.figures import Figures, FigureSeries
from appliance.tui.screens.node import NodeScreen
from appliance.tui.screens.node_charts import NodeCharts
from appliance.tui.screens.node_lines import backup_lines, damage_lines
from appliance.tui.widgets.chart import SCALE, Chart, bar_lines, time_line
from appliance.tui.widgets.lines import Line, Lines
from tests.tui.drive import NARROW, Seen, drive
from tests.tui.scene import NOW, PULSE, STORAGE, FixedQueries, Make, Scene, build


def drawn(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in left) for left, _ in lines]


def words_of(seen: Seen, name: str = "facts") -> str:
    return seen.app.screen.query_one(f"#{name}", Lines).text


def test_bars_can_be_read_off() -> None:
    """A small value is seen, none is not, and where nothing was counted stands something else."""
    values = (8.0, 4.0, 0.001, 0.0, None, None)
    gone = (False,) * 5 + (True,)
    lines = drawn(bar_lines(Chart("", "", values, lambda value: f"{value:g} s", gone=gone), 2))
    assert lines == [f"{'8 s':>{SCALE - 1}} █     ", f"{'0 s':>{SCALE - 1}} ██▁  ┄"]
    shaded = drawn(bar_lines(Chart("", "", (4.0, 0.0, None), str, second=(8.0, 8.0, None)), 2))
    assert [line[SCALE:] for line in shaded] == ["░░ ", "█░ "]
    tall = drawn(bar_lines(Chart("", "", (50.0,), lambda value: f"{value:.0f}%", top=100.0), 6))
    assert [line.split() for line in tall] == [["100%"], [], ["50%"], ["█"], ["█"], ["0%", "█"]]
    time = drawn([time_line(3_600, 80)])[0]
    assert len(time) == 80 and time.split("ago")[0].strip() == "1h" and time.endswith("now") and "30m ago" in time


def test_every_slot_is_in_one_column_whatever_the_width() -> None:
    slots: list[Figures | None] = [Figures(refreshes=6, bytes=10 * 2**20) for _ in range(60)]
    slots[7] = None
    hydrated = Figures()
    hydrated.hydrated(Hydration("a/b", "1", 1, "full", "hit", 1, 0.0, 2.0, "c", "git"))
    slots[8] = hydrated
    for width in (40, 71, 200):
        text = drawn(NodeCharts(FigureSeries(0, 10, slots)).lines(width, 40, 5, (3, 4)))
        assert {len(line) for line in text if line[:SCALE].strip() in ("0", "100%")} == {width}
        titles = " ".join(text)
        assert "1.0 MiB/s" in titles and "580 MiB in 10m" in titles and "348 refreshes in 10m" in titles
        assert "5 now" in titles and "75% in 10m" in titles and "of 1 in 10m" in titles


@pytest.mark.slow
def test_spans_change_by_key_and_by_mouse(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(seen: Seen) -> None:
        await seen.press("4")
        await seen.shows("270 in 10m", "10m ago")
        await seen.press("t")
        await seen.shows("in 1h", "45m ago")
        await seen.press("t")
        await seen.shows("in 1d", "18h ago")
        await seen.pilot.click("#summary", offset=(9, 0))
        await seen.shows("270 in 10m")

    drive(Scene(make_once("scene", build)).app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_one_hit_ratio(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the list of repositories, over the same time."""

    async def script(seen: Seen) -> None:
        await seen.shows("hit ratio 86%")
        await seen.press("4")
        await seen.shows("Hit ratio  86% in 10m")
        assert words_of(seen).count("%") == 0

    drive(Scene(make_once("scene", build)).app(monkeypatch), script)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 32), (200, 60)])
def test_nothing_is_cut(make_once: Make, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """A long error is there to its end, and so is everything below it."""
    found = " ".join(f"word{number}" for number in range(40))
    checks = [doctor.Check("storage", False, found, "raise the budget"), doctor.Check("git", True, "git version")]
    repos = [{"name": f"acme/repo-{number:02}", "bytes": 2**20, "by": {}} for number in range(60)]
    monkeypatch.setattr(FixedQueries, "room", replace(FixedQueries.room, storage={**STORAGE, "repos": repos}))

    async def script(seen: Seen) -> None:
        await seen.press("4")
        await seen.shows("1 thing to put right", "raise the budget")
        shown = " ".join(words_of(seen, "attention").split())
        assert found in shown and "…" not in shown
        await seen.until(lambda: "repo-00" in words_of(seen), "the disk was read")
        await seen.settled()
        assert ("repo-12" in words_of(seen)) == (size[1] == 60) and "more, " in words_of(seen)
        seen_lines = list[str]()
        page = seen.app.screen.query_one("#page")
        for _ in range(20):
            seen_lines += seen.text.splitlines()
            if page.scroll_offset.y >= page.max_scroll_y:
                break
            await seen.press("pagedown")
            await seen.pilot.pause()
        everything = "\n".join(seen_lines)
        for words in ("Guests", "Disk", "Damage", "Backup", "proved 2d 4h ago", "Checked and in order", "git version"):
            assert words in everything, words
        await seen.press("home")
        await seen.until(lambda: page.scroll_offset.y == 0, "the top is back")

    drive(Scene(make_once("scene", build), checks=checks).app(monkeypatch), script, size)


def test_whether_the_backup_is_good() -> None:
    def told(**differs: object) -> str:
        return "\n".join(drawn(backup_lines({**PULSE["backup"], **differs}, True, NOW, 100)))

    assert "● made 2h 48m ago, 1.2 GiB, in /mnt/backup/node1" in told() and "● proved 2d 4h ago" in told()
    assert "▲ not proved to be good yet: gitmirror.pyz backup verify /mnt/backup/node1" in told(verified_at=None)
    assert "✗ proved 2d 4h ago: 2 faults" in told(faults=2)
    assert "▲ none was made yet" in told(at=None, bytes=None)
    assert "▲ made" in told(error="disk full") and "the last try failed: disk full" in told(error="disk full")
    assert "no backup is configured" in "\n".join(drawn(backup_lines(None, True, NOW, 100)))


@pytest.mark.slow
def test_damage_is_told_with_what_is_done_about_it(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = Scene(make_once("scene", build)).app(monkeypatch).context.queries
    views = queries.repos()
    assert "● no mirror is known to be damaged" in drawn(damage_lines(views, NOW, 100))[0]
    health = replace(views[0].health, damage="bad object 1234", cloned=True, verified_whole_at=NOW - 7200)
    damaged = replace(views[0], state=State.DAMAGED, health=health)
    text = "\n".join(drawn(damage_lines([damaged, *views[1:]], NOW, 100)))
    assert f"■ {damaged.repo.name}: bad object 1234" in text and "healing goes on by itself" in text
    assert "the oldest read was 2h ago" in text and "not read in full yet: 4 of 5 mirrors" in text


@pytest.mark.slow
def test_what_serve_warns_of_is_listed_once(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's check of `serve` joins its warnings; something else that it finds has a row."""
    checks = [doctor.Check("storage", False, "full", "raise the budget"), doctor.Check("serve", False, "a; b", "mend")]

    async def script(seen: Seen) -> None:
        await seen.press("4")
        await seen.shows("3 things to put right")
        screen = seen.app.screen
        assert isinstance(screen, NodeScreen)
        found = [(row.name, row.found) for row in screen.rows]
        assert found == [("serve warns", "a"), ("serve warns", "b"), ("storage", "full")]

    drive(Scene(make_once("scene", build), {**PULSE, "warnings": ["a", "b"]}, checks).app(monkeypatch), script)

    async def with_other_words(seen: Seen) -> None:
        await seen.press("4")
        await seen.shows("3 things to put right", "a; b")

    drive(Scene(make_once("scene", build), {**PULSE, "warnings": ["a"]}, checks).app(monkeypatch), with_other_words)
