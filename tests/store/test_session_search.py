"""Sessions are found by what their turns touched and said, and what they are found by ends with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import UsageError
from appliance.core.models import Turn
from appliance.core.store.audit import Attempt
from appliance.core.store.database import Database, rows
from appliance.core.store.sessions import SessionStore
from appliance.core.store.stores import Stores
from appliance.core.store.turn_index import TurnContents

A, B = "o/a", "o/b"
ROWS = "appliance.core.store.sessions.rows"
AT = "2026-01-01T00:00:{:02}.000Z"


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """All stores over an empty database."""
    database = Database(tmp_path / "gitmirror.db")
    yield Stores.over(database)
    database.close()


Record = Callable[..., int]


@pytest.fixture
def record(stores: Stores) -> Record:
    """Records a turn at the next second, and, unless `indexed` is false, what it is found by; returns its id."""

    def add(session: str, *paths: str | bytes, said: str = "", repo: str = A, indexed: bool = True, **more: str) -> int:
        attempt = Attempt("p", repo, f"refs/agents/{session}", session, None, "1" * 40, "accepted", None, "c")
        [number] = stores.audit.record_attempts([attempt])
        stores.audit.record_outcomes([(number, "applied", None)])
        made = Turn(
            id=number, repo=repo, session=session, commit=f"{number:040}", base=more.get("base", "b" * 40),
            at=AT.format(number), subject="", commits=1, files_changed=0, insertions=0, deletions=0, client="c",
            bytes=1,
        )  # fmt: skip
        stores.sessions.record(made)
        if indexed:
            names = sorted(path.encode() if isinstance(path, str) else path for path in paths)
            known_to = more["known_to"].encode() if "known_to" in more else None
            index_next(stores, TurnContents(names, known_to, said))
        return number

    return add


def index_next(stores: Stores, contents: TurnContents) -> bool:
    """Stores what the newest turn that is not indexed is found by."""
    return stores.turn_index.record(stores.turn_index.missing()[0], contents)


def found(stores: Stores, **wanted: Any) -> list[str]:
    return [row["session"] for row in stores.sessions.find(**wanted)[0]]


def stored(stores: Stores) -> tuple[int, int]:
    """How many turns and paths the index has, dangling ones too."""
    with stores.database.reading() as connection:
        return connection.table("turn_texts").count, connection.table("turn_paths").count


# By path


def test_a_file_or_a_directory_finds_the_sessions_that_touched_it(stores: Stores, record: Record) -> None:
    """Exactly: no neighbour with a longer or shorter name, and no pattern."""
    record("one", "src/app.py", "README.md")
    record("two", "src/app.py.orig", "src-old/app.py")
    record("three", "src/sub/deep/app.py", "a*b", b"caf\xe9/x")
    # "0" comes next after "/".
    record("four", "src0", "src0.py", "src!")
    assert found(stores, path="src/app.py") == ["one"]
    assert found(stores, path="src") == ["three", "two", "one"]
    assert found(stores, path="src-old") == ["two"]
    assert found(stores, path="src/sub") == ["three"]
    assert found(stores, path="./src//sub/") == ["three"]
    assert found(stores, path="src/ap") == found(stores, path="app.py") == found(stores, path="SRC") == []
    assert found(stores, path="a*b") == ["three"]
    assert found(stores, path="a*") == found(stores, path="%") == found(stores, path="src/app_py") == []
    assert found(stores, path="caf\udce9") == ["three"]


def test_any_turn_of_a_session_counts(stores: Stores, record: Record) -> None:
    """Also one that a later turn took back."""
    record("s", "first.py")
    record("s", "second.py")
    assert found(stores, path="first.py") == found(stores, path="second.py") == ["s"]
    [row] = stores.sessions.find(path="first.py")[0]
    assert row == stores.sessions.all()[0]


def test_a_turn_with_too_many_paths_may_have_touched_what_follows(stores: Stores, record: Record) -> None:
    """What is stored is exact up to the last stored path, and a guess after it: no session is missed."""
    record("cut", "a.py", "m/x.py", known_to="m/x.py")
    assert found(stores, path="a.py") == found(stores, path="m/x.py") == found(stores, path="m") == ["cut"]
    assert found(stores, path="b.py") == found(stores, path="a") == found(stores, path="m/a.py") == []
    assert found(stores, path="m/y.py") == found(stores, path="z.py") == ["cut"]
    record("unknown", known_to="")
    assert found(stores, path="a.py") == ["unknown", "cut"]


@pytest.mark.parametrize("path", ["", ".", "/", "/etc/passwd", "..", "a/../b", "./", "\ud800"])
def test_what_is_no_path_inside_a_repository_is_refused(stores: Stores, path: str) -> None:
    """It would find nothing, or everything, for ever."""
    with pytest.raises(UsageError, match="is not a path inside a repository") as caught:
        stores.sessions.find(path=path)
    assert "src/app.py" in caught.value.hint


# By text, time and repository


def test_text_is_found_in_names_and_in_messages(stores: Stores, record: Record) -> None:
    """In upper and lower case of any script, as it stands: no pattern."""
    record("fix-DNS", said="Résolve the name\n\nIt timed out 100% of the time.")
    record("other", said="STRASSE, \N{GREEK CAPITAL LETTER SIGMA}\N{GREEK CAPITAL LETTER SIGMA}")
    assert found(stores, text="dns") == found(stores, text="Fix-d") == found(stores, text="RÉSOLVE") == ["fix-DNS"]
    assert found(stores, text="name\n\nit TIMED") == found(stores, text="100% of") == ["fix-DNS"]
    assert found(stores, text="straße") == found(stores, text="\N{GREEK SMALL LETTER FINAL SIGMA}") == ["other"]
    assert found(stores, text="t_e") == found(stores, text="100%%") == found(stores, text="\udce9") == []
    assert found(stores, text="") == ["other", "fix-DNS"]


def test_all_that_is_given_must_match(stores: Stores, record: Record) -> None:
    """Path, text, time of the last turn, repository."""
    record("s", "a.py", said="alpha")
    record("s", "a.py", said="alpha", repo=B)
    record("t", "b.py", said="alpha", repo=B)
    later = record("s", "b.py", said="beta")
    assert found(stores, repo=B, path="a.py") == ["s"]
    assert found(stores, path="b.py", text="alpha") == ["s", "t"]
    assert found(stores, since=AT.format(later)) == ["s"]
    assert found(stores, since=AT.format(later), repo=B) == []
    assert found(stores) == ["s", "t", "s"]


def test_found_sessions_are_paged(stores: Stores, record: Record) -> None:
    """Each once, also those of one moment, and while turns arrive; a session that moved to the front is there."""
    for number in range(7):
        record(f"s{number}", "a.py" if number != 3 else "b.py")
    with stores.database.writing() as connection:
        connection.execute("UPDATE sessions SET last_at = ?", [AT.format(1)])
    whole, pages, after = found(stores, path="a.py"), list[str](), None
    assert whole == ["s0", "s1", "s2", "s4", "s5", "s6"]
    while True:
        rows, after = stores.sessions.find(path="a.py", after=after, limit=2)
        pages += [row["session"] for row in rows]
        if after is None:
            break
        record(f"new{len(pages)}", "a.py")
    assert pages == whole
    assert stores.sessions.find(limit=100)[1] is None
    with pytest.raises(UsageError, match="the cursor is not one of this list"):
        stores.sessions.find(after="nonsense")


# What is indexed


def test_a_turn_is_missing_until_it_is_indexed(stores: Stores, record: Record) -> None:
    """Until then it has no paths and no messages, and its session is listed and found by its name."""
    number = record("s", indexed=False)
    [turn] = stores.turn_index.missing()
    assert (turn.id, turn.session, turn.commit, turn.base) == (number, "s", f"{number:040}", "b" * 40)
    assert (turn.previous, turn.previous_id) == (None, None)
    assert stores.turn_index.pending() == 1
    assert found(stores, path="a.py") == [] and found(stores, text="S") == ["s"]
    assert stores.turn_index.record(turn, TurnContents([b"a.py"]))
    assert (stores.turn_index.pending(), stores.turn_index.missing(), stores.turn_index.path_count()) == (0, [], 1)
    assert not stores.turn_index.record(turn, TurnContents([b"twice"])), "another process was quicker"
    assert stored(stores) == (1, 1)


def test_a_path_that_git_names_twice_is_stored_once(stores: Stores, record: Record) -> None:
    """A tree that an old tool made may hold a name twice."""
    record("s", "a.py", "a.py", "b.py")
    assert stored(stores) == (1, 2) and found(stores, path="a.py") == ["s"]


def test_a_turn_is_compared_with_the_one_before_on_the_same_base(stores: Stores, record: Record) -> None:
    """On another base, what changed since the turn before is mostly what others did upstream."""
    first = record("s", indexed=False)
    record("s", indexed=False)
    record("s", indexed=False, base="c" * 40)
    record("s", indexed=False, repo=B)
    assert [turn.previous_id for turn in stores.turn_index.missing()] == [None, None, first, None]
    assert [turn.previous_id for turn in stores.turn_index.missing(below=first + 2, limit=1)] == [None]
    assert [turn.id for turn in stores.turn_index.missing(below=first + 1)] == [first]


def test_rows_end_with_their_turns(stores: Stores, record: Record) -> None:
    """When a session is dropped, and when a repository is purged with all of its sessions."""
    record("s", "a.py")
    record("s", "b.py")
    record("t", "c.py")
    record("u", "d.py", repo=B)
    last = max(stores.sessions.applied(A, "s"))
    stores.sessions.end(A, {"s": last}, "dropped", 0.0)
    assert stored(stores) == (2, 2)
    stores.sessions.end_all(A, "purged", 0.0)
    assert stored(stores) == (1, 1)
    assert found(stores, path="d.py") == ["u"]


def test_what_is_left_of_a_session_is_indexed_anew(stores: Stores, record: Record) -> None:
    """A turn that came after the end was compared with one that is gone."""
    first = record("s", "a.py")
    record("s", "b.py")
    stores.sessions.end(A, {"s": first}, "dropped", 0.0)
    assert stored(stores) == (0, 0)
    [turn] = stores.turn_index.missing()
    assert turn.previous is None
    assert found(stores, path="b.py") == []
    assert stores.turn_index.record(turn, TurnContents([b"a.py", b"b.py"]))
    assert found(stores, path="a.py") == ["s"]


def test_what_was_read_of_a_turn_that_ended_meanwhile_is_not_stored(stores: Stores, record: Record) -> None:
    """Neither of the turn itself, nor of one that was compared with it."""
    first = record("s", indexed=False)
    record("s", indexed=False)
    compared, gone = stores.turn_index.missing()
    stores.sessions.end(A, {"s": first}, "dropped", 0.0)
    assert not stores.turn_index.record(gone, TurnContents([b"a.py"]))
    assert not stores.turn_index.record(compared, TurnContents([b"b.py"]))
    assert stored(stores) == (0, 0) and stores.turn_index.pending() == 1


def test_listing_has_the_rows_and_order_that_it_had(stores: Stores, record: Record) -> None:
    """`all` is a search for everything."""
    for session in ("a", "b", "c"):
        record(session)
    assert isinstance(stores.sessions, SessionStore)
    assert stores.sessions.all() == stores.sessions.find()[0]
    assert [row["session"] for row in stores.sessions.all(A)] == ["c", "b", "a"]


# Beside others


@pytest.mark.parametrize("wanted", [{"text": "a"}, {"path": "a.py"}, {}])
def test_a_search_holds_up_no_push(
    stores: Stores, record: Record, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any]
) -> None:
    """While it runs, another thread reads and writes."""
    record("agent", "a.py")
    waited = list[bool]()

    def beside(connection: Any, sql: str, *values: Any) -> list[dict[str, Any]]:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM sessions").fetchall()
        other = threading.Thread(target=stores.sessions.keep, args=(A, "agent", True), daemon=True)
        monkeypatch.setattr(ROWS, rows)
        other.start()
        other.join(10)
        waited.append(other.is_alive())
        return rows(connection, sql, *values)

    monkeypatch.setattr(ROWS, beside)
    # Its view is that of its beginning, and the next search has the change.
    assert [row["kept"] for row in stores.sessions.find(**wanted)[0]] == [False]
    assert waited == [False]
    assert [row["kept"] for row in stores.sessions.find(**wanted)[0]] == [True]
