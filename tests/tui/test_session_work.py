"""Sessions are found, compared side by side, read with their notes, and acted on several at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from appliance.core.config.settings import load_config
from appliance.core.layout import Layout
from appliance.core.node.node import Node as StateNode
from appliance.core.node.sessions import Sessions
from appliance.core.node.state_dir import open_stores
from appliance.core.store.turn_details import AttachmentRow, store_notes
from appliance.tui.data.session_query import Found, Sought, parse_query
from appliance.tui.screens.compare import CompareScreen
from appliance.tui.screens.diff import DiffScreen
from appliance.tui.screens.notes import LIMIT, attachment_text
from appliance.tui.widgets.listing import Listing
from tests.conftest import WIDGETS
from tests.tui.conftest import Node
from tests.tui.drive import NARROW, WIDE, Seen, drive, make_app
from tests.tui.scene import NOW, Make, Scene
from tests.tui.test_marking import FIRST, LATER, build_more, mark
from tests.tui.test_session_list import row

DAY = 86_400.0


def build_noted(state: Path) -> None:
    """Four sessions that can be searched; the first has two notes, and two attachments, one of which is no text."""
    build_more(state)
    layout = Layout(state)
    stores = open_stores(layout)
    turn = stores.sessions.turns(WIDGETS, FIRST)[-1]
    with stores.database.writing() as connection:
        store_notes(connection, [turn.id], {"model": "m-1", "task": "say \x1b[31mhello"})
    for name, data in (("transcript.txt", b"user: hello\nagent: \x1b[2Jdone\n"), ("screen.png", b"\x89PNG\0\1")):
        digest = hashlib.sha256(data).hexdigest()
        attached = AttachmentRow(WIDGETS, turn.id, name, len(data), digest)
        path = layout.attachments / attached.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        stores.details.attach(attached, FIRST, turn.commit, turn.at, "c", None)
    Sessions(StateNode(layout, load_config(None), create=False)).search(text="greet")
    stores.database.close()


@pytest.fixture(scope="session")
def noted(make_once: Make) -> Scene:
    """The node with notes."""
    return Scene(make_once("noted-scene", build_noted))


def names(seen: Seen) -> list[str]:
    """The sessions that are listed."""
    return [each.name for each in seen.app.screen.session_listing.rows]  # type: ignore[attr-defined]


def test_what_is_typed_is_understood() -> None:
    """Keys, phrases and times; what is wrong is said and matches nothing, and a word of the row matches at once."""
    old = row("old-one", "vm-7")
    query = parse_query('"fix dns" path:src/x.py before:7d repo:x guest:vm-7', NOW)
    assert query.sought == Sought("src/x.py", ("fix dns",)) and query.before == NOW - 7 * DAY
    assert query.meaning == (
        "sessions that touched src/x.py, or something below it; have fix dns in the name or a message; "
        "were last written more than 7d ago; are of x; were last written by vm-7"
    )
    assert not query.matches(old, Found())
    key = frozenset({("o/x", "old-one")})
    assert query.matches(old, Found(query.sought, key, {"fix dns": key}))
    assert parse_query("OLD repo:o/x", NOW).matches(old, Found())
    assert not parse_query("since:1h", NOW).matches(old, Found())
    for typed, said in (("since:2x", "since:2x is not a duration"), ("guest:a guest:b", "guest: is given twice")):
        wrong = parse_query(typed, NOW)
        assert wrong.wrong.startswith(said) and not wrong.matches(old, Found())
    assert parse_query("path: fix:", NOW).sought == Sought(None, ("fix:",))
    advice = [parse_query(typed, NOW).advice for typed in ("x.py", "path:x.py", "fix")]
    assert "For a file: path:" in advice[0] and "a path whole" in advice[1] and not advice[2]


@pytest.mark.slow
def test_a_search_finds_what_the_list_does_not_show(noted: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a file, by the message of an earlier turn, by a note, by age; it says what it means and how many there are."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows("4 sessions")
        await seen.press("slash")
        await seen.shows("path:src/x.py", "before:7d")
        for typed, found in (
            ("path:src/server", [FIRST, LATER]),
            ("path:docs/a.md", [FIRST]),
            ("whoever", [FIRST]),
            ("model=m-1", [FIRST]),
            ("path:src greet before:1h", [LATER]),
        ):
            await seen.type(typed)
            await seen.until(lambda found=found: names(seen) == found, f"{typed} finds {found}")  # type: ignore[misc]
        await seen.shows("1 of 4 sessions", "touched src, or something below it; have greet in", "more than 1h ago")
        await seen.type("path:/etc")
        await seen.shows("'/etc' is not a path inside a repository")
        await seen.type("before:soon")
        await seen.shows("before:soon is not a duration")
        assert names(seen) == []
        await seen.shows("* mark all")
        await seen.press("enter", "asterisk")
        await seen.says("there is nothing to mark")
        await seen.press("escape")
        await seen.shows("4 sessions")
        await seen.hides("* mark all")
        await seen.press("enter")
        await seen.until(
            lambda: isinstance(seen.app.screen, DiffScreen) and seen.app.screen.files.row, "the diff has files"
        )
        await seen.press("o")
        await seen.shows("of 4 sessions", "repo:acme/widgets path:")

    drive(noted.app(monkeypatch), script, NARROW)


@pytest.mark.slow
def test_two_stand_side_by_side(noted: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a wide terminal: who changed which file, and both changes; the same key shows how one differs."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows("4 sessions")
        await mark(seen, FIRST, LATER)
        await seen.press("equals_sign")
        await seen.shows("both, not alike", "only the left", "unchanged", "not where the other did")
        assert isinstance(seen.app.screen, CompareScreen)
        await seen.shows("+     return f'HELLO {name}'", "+ greet = print")
        await seen.press("n")
        await seen.shows("# A", f"{LATER} did not change it")
        await seen.press("equals_sign")
        await seen.shows(f"+ {LATER}", f"- {FIRST}")
        assert isinstance(seen.app.screen, DiffScreen)
        await seen.press("escape", "escape")
        await seen.shows("2 marked")

    drive(noted.app(monkeypatch), script, WIDE)


@pytest.mark.slow
def test_notes_and_attachments(noted: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the turn; the text of an attachment escaped, what is no text named, and both saved to new files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")

    async def script(seen: Seen) -> None:
        await seen.press("2", "down")
        await seen.shows("note model: m-1", "note task: say \\x1b[31mhello", "file transcript.txt", "28 B")
        await seen.press("v")
        await seen.shows("2 notes, 2 attachments", "m-1")
        await seen.press("G")
        await seen.shows("agent: \\x1b[2Jdone")
        await seen.press("e")
        await seen.shows("Save transcript.txt of turn 2")
        await seen.type("taken")
        await seen.press("enter")
        await seen.says("taken already exists")
        await seen.press("e", "enter")
        await seen.says("transcript.txt: 28 B")
        assert (tmp_path / "transcript.txt").read_bytes() == b"user: hello\nagent: \x1b[2Jdone\n"
        assert (tmp_path / "taken").read_text() == "mine"
        await seen.press("p")
        await seen.shows("It is not text: e saves it to a file.")
        await seen.press("p", "e")
        await seen.says("only an attachment is saved")

    drive(noted.app(monkeypatch), script, WIDE)


def test_a_session_without_notes_says_how_there_would_be_some(noted: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In full, in the narrowest form that has the text beside the list."""

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.settled()
        seen.app.screen.query_one("#list").select((WIDGETS, LATER))  # type: ignore[attr-defined]
        await seen.press("v")
        await seen.shows("No turn has a note or an attachment.", "gitmirror_record --note KEY=VALUE --attach FILE")

    drive(noted.app(monkeypatch), script, (120, 32))


def test_what_is_shown_of_an_attachment() -> None:
    """Text up to a bound that may go through a character; no binary, nothing of nothing."""
    text, said = attachment_text(("é" * LIMIT).encode()[: LIMIT + 1])
    assert set(text) == {"é"} and "cut here, after 256 KiB" in said
    assert attachment_text(b"a\0")[0] == "" == attachment_text(b"\xff\xfe")[0]
    assert attachment_text(b"") == ("", "It is empty.")


@pytest.mark.slow
def test_several_are_acted_on_at_once(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a filter shows: exported, kept, ended after one question; the failure of one stops none, and is said."""
    guest = node.guest("several")
    for name in ("many-a", "many-b", "many-c", "other"):
        node.record(guest, name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "many-b.patch").write_text("mine")

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows("many-a", "other", "● serving")
        await seen.press("slash")
        await seen.type("many repo:widgets")
        await seen.shows("3 of ")
        await seen.press("enter", "asterisk")
        await seen.shows("3 marked")
        await seen.press("e")
        await seen.shows("Export 3 sessions", f"3 turns in {WIDGETS}")
        await seen.press("enter")
        await seen.shows("1 of 3 not exported", "many-b: ", "already exists", timeout=60)
        await seen.says("2 sessions are exported")
        assert sorted(each.name for each in (tmp_path / "sessions").iterdir()) == [f"many-{n}.patch" for n in "abc"]
        assert (tmp_path / "sessions" / "many-b.patch").read_text() == "mine"
        await seen.press("escape")
        await seen.shows("1 marked")
        await seen.press("c")
        await seen.shows("Check out 1 session", f"1 turn in {WIDGETS}")
        await seen.press("enter")
        await seen.says("1 session is checked out")
        assert (tmp_path / "sessions" / "many-b" / "src" / "hello.py").exists()
        await seen.hides("marked")
        await mark(seen, "many-b")
        await seen.press("K")
        await seen.shows("Keep 1 session?")
        await seen.press("right", "enter")
        await seen.says("1 session is kept")
        await seen.hides("marked")
        await seen.press("asterisk", "X")
        await seen.shows("End 2 sessions?", "The newest is many-c", "kept stays, too")
        await seen.press("enter")
        assert len(node.serve.cli_json("sessions")) == 4
        await seen.press("X", "right", "enter")
        await seen.says("2 sessions are ended")
        await seen.shows("1 of 2 sessions")
        assert {each["session"] for each in node.serve.cli_json("sessions")} == {"many-b", "other"}

    drive(make_app(node.serve), script, WIDE)
    for name in ("many-b", "other"):
        node.serve.cli("session", "drop", WIDGETS, name, "--yes")


@pytest.mark.slow
def test_several_repositories_at_once(node: Node) -> None:
    """Refreshed, disabled, removed: what fails is named and keeps its mark."""
    for name in ("acme/gone-a", "acme/gone-b"):
        node.serve.cli("add-repo", node.upstream.url(name), "--no-wait")

    async def script(seen: Seen) -> None:
        await seen.shows("gone-a", "gone-b", "widgets", "● serving")
        await seen.press("asterisk")
        await seen.shows("3 marked", "widgets ✓")
        await seen.press("r")
        await seen.shows("2 of 3 not refreshed", "acme/gone-a: ", "acme/gone-b: ")
        await seen.says("1 repository is refreshed")
        await seen.press("escape")
        await seen.shows("2 marked")
        await seen.press("d")
        await seen.shows("Disable 2 repositories?")
        await seen.press("right", "enter")
        await seen.says("2 repositories are disabled")
        await seen.shows("2 disabled")
        await seen.press("slash")
        await seen.type("gone")
        await seen.press("enter", "asterisk", "escape")
        await seen.shows("2 marked", "widgets")
        seen.app.screen.query_one("#list", Listing).select(WIDGETS)
        await seen.shows(f"▌{WIDGETS}", " d enable ")
        await seen.press("D")
        await seen.shows("Remove 2 repositories?")
        await seen.press("right", "right", "enter")
        await seen.says("2 repositories are removed")
        await seen.hides("gone-a ", "marked")

    drive(make_app(node.serve), script, WIDE)
    assert [repo["name"] for repo in node.serve.cli_json("repos")] == [WIDGETS]
