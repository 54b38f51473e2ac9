"""Two sessions are marked and compared: from all sessions, and from those of one repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.binding import Binding

from appliance.core.layout import Layout
from appliance.core.models import Turn
from appliance.core.node.state_dir import open_stores
from appliance.core.store.audit import Attempt
from appliance.core.units import rfc3339
from appliance.tui.screens.diff import DiffScreen
from appliance.tui.screens.session_list import SessionList
from appliance.tui.widgets.keys import Keys
from appliance.tui.widgets.lines import Lines
from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git
from tests.tui.conftest import Node
from tests.tui.drive import NARROW, Seen, drive, make_app
from tests.tui.scene import NOW, Make, Scene, build

FIRST, SECOND, LATER, ELSEWHERE = "fix-login-timeout", "a-session-with-a", "later", "elsewhere"


def build_more(state: Path) -> None:
    """The usual node, with a session on a later commit of the upstream, and one of another repository."""
    build(state)
    mirror = Layout(state).mirror(WIDGETS)
    base = add_commit(mirror, "main", {"upstream.txt": "moved\n"}, "The upstream moves")
    git("branch", "--force", "work", base, cwd=mirror)
    commit = add_commit(mirror, "work", {"src/server/greeting.py": "greet = print\n"}, "Greet otherwise")
    stores = open_stores(Layout(state))
    for number, (repo, session) in enumerate([(WIDGETS, LATER), ("acme/search", ELSEWHERE)], 1):
        at, ref = NOW - 7000.0 * number, f"refs/agents/{session}"
        push = Attempt(f"m{number}", repo, ref, session, None, commit, "accepted", None, "10.0.4.1")
        [attempt] = stores.audit.record_attempts([push])
        stores.sessions.record(Turn(attempt, repo, session, commit, base, rfc3339(at), "Greet", 1, 1, 1, 0, "c", 9))
    stores.database.close()


@pytest.fixture(scope="session")
def scene(make_once: Make) -> Scene:
    """A node with four sessions."""
    return Scene(make_once("marked-scene", build_more))


async def mark(seen: Seen, *sessions: str) -> None:
    """Goes to each of the sessions and marks it."""
    for name in sessions:
        await seen.press("home")
        listing = seen.app.screen.session_listing  # type: ignore[attr-defined]
        await seen.press(*["down"] * next(n for n, row in enumerate(listing.rows) if row.name.startswith(name)))
        await seen.press("space")
    await seen.settled()


def key_is_lit(seen: Seen, word: str) -> bool:
    """Whether the key line offers a key as one that does something now."""
    [(pieces, _)] = seen.app.screen.query_one(Keys)._lines
    place = next(n for n, (text, _) in enumerate(pieces) if text.strip() == word)
    return pieces[place - 1][1] == "key"


@pytest.mark.slow
def test_two_marked_sessions_are_compared(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second against the first, titled by both; the marks are in the rows, and `=` is lit by the second."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows(FIRST, SECOND)
        assert "space mark" in seen.text and not key_is_lit(seen, "compare")
        await mark(seen, SECOND)
        assert seen.line(SECOND).startswith(" ✓ ") and "4 sessions, 1 marked" in seen.text
        assert "✓" not in seen.line(FIRST) and not key_is_lit(seen, "compare")
        await mark(seen, FIRST)
        assert seen.line(FIRST).strip("▌ ").startswith("✓ ◆ ") and key_is_lit(seen, "compare")
        await seen.press("=")
        await seen.shows(f"+ {FIRST}  ", f"- {SECOND}", f"in {WIDGETS}", "a [b] c.txt", "greeting.py")
        assert "turn 2 of 2  3 files" in seen.text
        await seen.press("left_square_bracket")
        await seen.shows("turn 1 of 2  2 files", "Greet whoever comes")
        assert "▲" not in seen.text
        await seen.press("escape")
        await seen.shows("2 marked")
        await seen.press("escape")
        await seen.hides("✓", "marked")
        assert not key_is_lit(seen, "compare")

    drive(scene.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_what_to_mark_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With none, one and three marks, and with marks in two repositories; nothing is opened."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows(FIRST, SECOND, ELSEWHERE)
        await seen.press("=")
        await seen.says("no session is marked: mark two with space")
        await mark(seen, FIRST)
        await seen.press("=")
        await seen.says(f"only {FIRST} is marked: mark one more with space")
        await mark(seen, ELSEWHERE)
        await seen.press("=")
        await seen.says(f"{FIRST} is in {WIDGETS}, {ELSEWHERE} in acme/search: mark two of one repository")
        await mark(seen, SECOND)
        await seen.press("=")
        await seen.says("3 sessions are marked: take marks off with space until two are left")
        assert not isinstance(seen.app.screen, DiffScreen)
        await mark(seen, ELSEWHERE)
        assert "2 marked" in seen.text
        await seen.press("=")
        await seen.shows(f"+ {SECOND}", f"- {FIRST}")

    drive(scene.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_from_one_repository(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its list of sessions, whose keys are offered only there; in its other lists space is a page down."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        seen.app.screen.query_one("#list").select(WIDGETS)  # type: ignore[attr-defined]
        await seen.press("enter", "u")
        await seen.shows("refreshes", "equal to its upstream")
        await seen.settled()
        assert "space mark" not in seen.text
        listing = seen.app.screen.query_one("#refreshes")
        await seen.press("space")
        assert listing.cursor > 1  # type: ignore[attr-defined]
        await seen.press("shift+tab")
        await seen.shows("space mark", "= compare")
        await mark(seen, FIRST, SECOND)
        assert "2 marked" in seen.text and key_is_lit(seen, "compare")
        await seen.press("=")
        await seen.shows(f"+ {SECOND}", f"- {FIRST}")

    drive(scene.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_different_bases_are_in_the_heading(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the two names, wrapped: a file that only the upstream changed is in the list."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows(FIRST, LATER)
        await mark(seen, FIRST, LATER)
        await seen.press("=")
        await seen.shows(f"+ {LATER}", f"- {FIRST}", "▲ the bases differ, so the diff also has", "upstream.txt")
        title = seen.app.screen.query_one("#title", Lines)
        assert title.size.height == len(title._lines) > 2, "all of it is seen"

    drive(scene.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_a_space_in_the_filter_marks_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does `=` compare there; marks outlast a filter that hides their rows."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows(FIRST, SECOND)
        await mark(seen, FIRST)
        await seen.press("slash", *"a b=")
        await seen.shows("No session matches a b=")
        assert seen.said == ""
        await seen.press("escape")
        await seen.shows("1 marked")
        await seen.press("escape")
        await seen.hides("marked")

    drive(scene.app(monkeypatch), script, NARROW)


def test_the_mark_of_a_session_that_ended_goes(scene: Scene) -> None:
    """It does not count towards the two."""
    from appliance.tui.data.messages import SessionsRead
    from tests.tui.test_session_list import row

    sessions = SessionList(None)
    nothing: object = None
    one, two = replace(row("one"), last_at=2.0), row("two")
    sessions.take(SessionsRead(None, [one, two], 2), nothing, nothing)  # type: ignore[arg-type]
    sessions.marks.toggle(two)
    sessions.marks.toggle(one)
    assert sessions.marked == [two, one]
    sessions.take(SessionsRead(None, [one], 1), nothing, nothing)  # type: ignore[arg-type]
    assert sessions.marked == [one] and not sessions.marks.has(replace(two, name="three"))


@pytest.mark.slow
def test_export_of_a_comparison(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that makes the files of the second session from those of the first; a new turn of it is shown at once."""
    one, other = node.guest("one"), node.guest("other")
    node.record(one, "mark-one", "print('one')\n")
    node.record(other, "mark-other", "print('other')\n")
    monkeypatch.chdir(tmp_path)

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows("mark-one", "mark-other", "● serving")
        await mark(seen, "mark-one", "mark-other")
        await seen.press("=")
        await seen.shows("+ mark-other", "- mark-one", "- print('one')", "+ print('other')")
        await seen.press("e")
        await seen.shows("Export mark-other against mark-one")
        await seen.press("enter")
        await seen.says("`git apply` takes it")
        git("apply", str(tmp_path / "mark-other.patch"), cwd=one)
        assert (one / "src" / "hello.py").read_text() == "print('other')\n"
        git("checkout", "--quiet", ".", cwd=one)
        node.record(one, "mark-one", "print('other')\n", "As the other")
        await seen.shows("Nothing differs: both have the same files.")

    drive(make_app(node.serve), script, NARROW)


def test_the_help_names_both_keys() -> None:
    """In the sections of both lists."""
    from appliance.tui.app import help_sections

    for title, bindings in help_sections(None):
        keys = {each.key for each in bindings if isinstance(each, Binding)}
        assert ("equals_sign" in keys) == (title in ("In Sessions", "In Repository", "In Side by side"))
