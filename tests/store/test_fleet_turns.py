"""Turns, ends and keeps of other nodes in SQLite: on every node what the stream's order says, whatever came twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.errors import NotFound
from appliance.core.fleet.incoming import digest_of, fields_of
from appliance.core.fleet.messages import Attached, SessionEnd, SessionKept, TurnAttached, TurnRow
from appliance.core.fleet.wire import read, write
from appliance.core.models import Turn
from appliance.core.store.audit import UNKNOWN, Attempt, FoundTurn, TurnRef
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet_turns import FIRST_AWAY, Arrived
from appliance.core.store.stores import Stores

REPO = "acme/widgets"
Message = TurnRow | TurnAttached | SessionEnd | SessionKept
KINDS: tuple[type[Message], ...] = (TurnRow, TurnAttached, SessionEnd, SessionKept)


class FleetNode:
    """The database of one node, with what it takes itself, and how far it has read the stream."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        directory = directory / name
        directory.mkdir()
        self.stores = Stores.over(Database(directory / "gitmirror.db"))
        self.stores.fleet_turns.join(name)
        self.stores.fleet_turns.begin("first", 0)

    def push(self, session: str, commit: str, client: str = "10.0.0.1:1") -> int:
        """Takes a turn; returns its id."""
        ref = f"refs/agents/{session}"
        audit = self.stores.audit
        [attempt] = audit.record_attempts([Attempt(commit, REPO, ref, session, None, commit, "accepted", None, client)])
        audit.record_outcomes([(attempt, "applied", None)])
        self.stores.sessions.record(turn(attempt, session, commit, client))
        return attempt

    def rows_to_send(self) -> list[TurnRow]:
        """What is not in the fleet yet, as it goes out."""
        with self.stores.database.reading() as connection:
            found = rows(connection, "SELECT * FROM turns WHERE seq IS NULL AND away = 0 ORDER BY id")
        return [row_of(self.name, each) for each in found]

    def waiting(self) -> list[Message]:
        """The ends and keeps that wait; they go out."""
        waiting = self.stores.fleet.waiting("end", "kept")
        self.stores.fleet.sent(*(each.id for each in waiting))
        return [
            SessionKept(self.name, **each.document)
            if each.kind == "kept"
            else SessionEnd(self.name, **_end(each.document))
            for each in waiting
        ]

    def drop(self, session: str) -> None:
        """Ends a session, as an operator does."""
        attempts = self.stores.sessions.applied(REPO, session)
        _, upto = self.stores.sessions.extent(REPO, session)
        last = {session: max(attempts, default=0)}
        self.stores.sessions.end(REPO, last, "ended by an operator", 1e9, {session: upto})

    def read(self, stream: list[Message], first: int = 1) -> Any:
        """Applies the stream from `first` on."""
        return self.stores.fleet_turns.apply([arrived(seq, each) for seq, each in enumerate(stream, 1)][first - 1 :])

    def listed(self) -> list[tuple[Any, ...]]:
        """What every node must agree on."""
        sessions = self.stores.sessions.all()
        return sorted(
            (row["session"], row["node"], row["tip"], row["turns"], row["kept"], row["bytes"],
             tuple((turn.commit, turn.node) for turn in self.stores.sessions.turns(REPO, row["session"])))
            for row in sessions
        )  # fmt: skip


def _end(document: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: document[name] for name in ("repo", "session", "upto", "reason")}
    return named | {"uids": tuple(document["uids"])}


def turn(number: int, session: str, commit: str, client: str = "10.0.0.1:1") -> Turn:
    return Turn(number, REPO, session, commit, None, "2026-11-27T08:00:00.000Z", "s", 1, 1, 1, 1, client, 7)


def row_of(node: str, found: Mapping[str, Any]) -> TurnRow:
    plain = ("id", "repo", "session", "base", "at", "subject", "commits", "files_changed", "insertions", "deletions")
    return TurnRow(
        uid=found["uid"], node=node, commit=found["commit_id"], old=None, client=found["client"], guest=None,
        bytes=found["bytes"], bundle=None, bundle_size=0, bundle_sha256=None, **{name: found[name] for name in plain},
    )  # fmt: skip


def away_row(number: int, session: str = "s", node: str = "b", **changes: Any) -> TurnRow:
    found = asdict(turn(number, session, f"{number:040x}")) | {"uid": f"{number:064x}", "commit_id": f"{number:040x}"}
    row = asdict(row_of(node, found)) | changes
    return read(write(TurnRow(**row)), TurnRow)


def arrived(seq: int, message: Message) -> Arrived:
    data = write(message)
    checked: Message = read(data, *KINDS)
    return Arrived(seq, checked.KIND, fields_of(checked), data.decode(), digest_of(data))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FleetNode]:
    made = FleetNode(tmp_path, "a")
    yield made
    made.stores.database.close()


def test_a_turn_of_another_node_is_listed(node: FleetNode) -> None:
    node.read([away_row(1, notes={"task": "X-1"}, attachments=[Attached("log", 3, "e" * 64)])])
    [session] = node.stores.sessions.all()
    assert (session["session"], session["node"], session["turns"], session["bytes"]) == ("s", "b", 1, 7)
    [listed] = node.stores.sessions.turns(REPO, "s")
    assert (listed.away, listed.node, listed.id) == (True, "b", FIRST_AWAY)
    details = node.stores.details.of_session(REPO, "s")[listed.id]
    assert details["notes"] == {"task": "X-1"} and details["attachments"][0]["name"] == "log"
    assert node.stores.sessions.find(text="x-1")[0] == [session]


def test_readers_of_what_is_here_do_not_see_it(node: FleetNode) -> None:
    """Quota, backups and the index of turns."""
    node.push("s", "a" * 40)
    node.read([away_row(2, attachments=[Attached("log", 3, "e" * 64)]), away_row(3, "t")])
    sessions, details = node.stores.sessions, node.stores.details
    assert (
        sessions.recorded_bytes() == 7 and sessions.turn_count(REPO, "s") == 1 and sessions.turn_count(REPO, "t") == 0
    )
    assert sessions.packs_by_repo() == {REPO: 7}
    assert [each.commit for each in sessions.recorded(REPO)] == ["a" * 40]
    assert (
        details.recorded_attachments() == [] and len(details.all_attachments()) == 1 and details.attached_bytes() == 0
    )
    assert [each.commit for each in node.stores.turn_index.missing()] == ["a" * 40]
    assert details.turn_of(REPO, "s", f"{2:040x}") is None
    node.stores.turn_index.brought(FIRST_AWAY)
    assert [each.id for each in node.stores.turn_index.missing()] == [FIRST_AWAY, 1]


def test_the_order_is_the_streams(node: FleetNode) -> None:
    """Whatever has no place yet comes last, and gets its place when its own row arrives."""
    own = node.push("s", "a" * 40)
    [mine] = node.rows_to_send()
    assert node.read([away_row(9)]).met == []
    assert [each.commit for each in node.stores.sessions.turns(REPO, "s")] == [f"{9:040x}", "a" * 40]
    [met] = node.read([away_row(9), mine, away_row(10, old="a" * 40)], 2).met[1:]
    assert met.nodes == ("a", "b") and met.continues and met.node == "b"
    turns = node.stores.sessions.turns(REPO, "s")
    assert [(each.id, each.away) for each in turns] == [(FIRST_AWAY, True), (own, False), (FIRST_AWAY + 1, True)]
    assert node.rows_to_send() == []
    with node.stores.database.reading() as connection:
        assert [row["seq"] for row in rows(connection, "SELECT seq FROM turns ORDER BY turn")] == [1, 2, 3]


def test_an_end_spares_what_was_never_sent(node: FleetNode) -> None:
    node.push("s", "a" * 40)
    applied = node.read([away_row(1), SessionEnd("b", REPO, "s", 1, (), "ended by retention")])
    assert applied.ended == {(REPO, "s"): ("b", "ended by retention")}
    assert node.listed() == [("s", "a", "a" * 40, 1, False, 7, (("a" * 40, "a"),))]
    assert node.stores.fleet_turns.leftovers() == {REPO: {"s": {FIRST_AWAY: f"{1:040x}"}}}
    assert node.waiting() == []
    notes = [event for event in node.stores.audit.events() if event["kind"] == "note"]
    assert [note["reason"] for note in notes] == ["ended by retention, on node b"]
    node.stores.fleet_turns.cleaned(REPO, "s", {FIRST_AWAY: ""})
    assert node.stores.fleet_turns.leftovers() == {}


def test_a_purge_of_another_node_ends_this_nodes_turns_alone(node: FleetNode) -> None:
    """The repository may be there again, with a turn that a third node has taken in the session since."""
    node.push("s", "a" * 40)
    [mine] = node.rows_to_send()
    node.read([mine, away_row(1)])
    node.stores.sessions.end_all(REPO, "its repository was purged on node c", 1e9, own_only=True)
    assert node.listed() == [("s", "b", f"{1:040x}", 1, False, 7, ((f"{1:040x}", "b"),))]
    [waiting] = node.stores.fleet.waiting("end")
    assert waiting.document["rows"] == [1], "so the fleet knows the session, and is told"
    [end] = node.waiting()
    assert isinstance(end, SessionEnd) and (end.uids, end.upto) == ((mine.uid,), 0)


def test_what_was_ended_here_does_not_come_back(node: FleetNode) -> None:
    """Its row was on its way when the session was ended."""
    node.push("s", "a" * 40)
    [mine] = node.rows_to_send()
    node.drop("s")
    [end] = node.waiting()
    assert isinstance(end, SessionEnd) and end.uids == (mine.uid,)
    node.read([mine, end, mine])
    assert node.listed() == []


def test_a_row_that_was_before_the_turn_becomes_it(node: FleetNode) -> None:
    """With durability "sync" the fleet has the row before this node knows the outcome."""
    ref = "refs/agents/s"
    [attempt] = node.stores.audit.record_attempts(
        [Attempt("p", REPO, ref, "s", None, "a" * 40, "accepted", None, "10.0.0.1:1")]
    )
    uid = next(iter(node.stores.audit.events()))["hash"]
    row = row_of("a", asdict(turn(attempt, "s", "a" * 40)) | {"uid": uid, "commit_id": "a" * 40})
    node.read([row])
    assert [each.away for each in node.stores.sessions.turns(REPO, "s")] == [True]
    node.stores.audit.record_outcomes([(attempt, "applied", None)])
    assert node.stores.sessions.record(turn(attempt, "s", "a" * 40)) == 1
    [listed] = node.stores.sessions.turns(REPO, "s")
    assert (listed.id, listed.away, listed.node) == (attempt, False, "a")
    assert node.rows_to_send() == []


@pytest.mark.parametrize("row_first", [True, False])
def test_a_turn_that_was_found_is_the_one_of_its_row(node: FleetNode, row_first: bool) -> None:
    """The database is an older copy, and the mirror has the turn."""
    row = away_row(5, node="a")
    if row_first:
        node.read([row])
    node.stores.audit.record_found([FoundTurn(TurnRef(REPO, 5, row.commit), "s")])
    node.stores.sessions.record(turn(5, "s", row.commit, UNKNOWN))
    node.read([row])
    [listed] = node.stores.sessions.turns(REPO, "s")
    assert (listed.id, listed.away) == (5, False)
    assert node.rows_to_send() == []


def test_a_keep_may_arrive_before_the_session(node: FleetNode) -> None:
    node.read([SessionKept("b", REPO, "s", True), away_row(1)])
    assert node.stores.sessions.all()[0]["kept"]
    node.stores.sessions.keep(REPO, "s", False)
    assert node.waiting() == [SessionKept("a", REPO, "s", False)]


def test_of_several_keeps_the_last_one_goes_out(node: FleetNode) -> None:
    """And none of a session that ended: the next one of that name would be kept."""
    node.push("s", "a" * 40)
    for kept in (True, False, True):
        node.stores.sessions.keep(REPO, "s", kept)
    assert node.waiting() == [SessionKept("a", REPO, "s", True)]
    node.drop("s")
    assert [type(each) for each in node.waiting()] == [SessionEnd]


def test_an_end_that_is_said_again_leaves_the_next_session_kept(node: FleetNode) -> None:
    """A node that is killed before it knows that an end is stored says it again minutes later."""
    end, kept = SessionEnd("b", REPO, "s", 1, (f"{1:064x}",), "ended"), SessionKept("c", REPO, "s", True)
    stream: list[Message] = [away_row(1), end, away_row(2), kept, end]
    node.read(stream)
    assert [(row[0], row[2], row[4]) for row in node.listed()] == [("s", f"{2:040x}", True)]
    node.read([*stream, SessionEnd("b", REPO, "s", 3, (f"{2:064x}",), "ended"), away_row(3)])
    assert [(row[0], row[2], row[4]) for row in node.listed()] == [("s", f"{3:040x}", False)]


def test_a_stream_made_anew_is_read_from_its_start(node: FleetNode) -> None:
    node.push("s", "a" * 40)
    [mine] = node.rows_to_send()
    node.read([mine, away_row(1), away_row(2, "t")])
    before = node.listed()
    assert node.stores.fleet_turns.begin("first", 3, digest_of(write(away_row(2, "t")))) == 3
    assert node.stores.fleet_turns.begin("second", 0) == 0
    assert node.rows_to_send() == [mine]
    assert {row[0] for row in node.listed()} == {"s", "t"}
    node.read([away_row(2, "t"), mine])
    assert sorted(row[:3] for row in node.listed()) == [("s", "a", "a" * 40), ("t", "b", f"{2:040x}")]
    assert {row[0] for row in before} == {"s", "t"}


@pytest.mark.parametrize(("last", "digest"), [(1, None), (2, "other")])
def test_a_stream_that_lost_its_end_is_too(node: FleetNode, last: int, digest: str | None) -> None:
    node.read([away_row(1), away_row(2)])
    assert node.stores.fleet_turns.begin("first", last, digest) == 0
    node.read([away_row(1), away_row(2)])
    assert [each.commit for each in node.stores.sessions.turns(REPO, "s")] == [f"{1:040x}", f"{2:040x}"]


def test_a_row_that_speaks_of_another_turn_is_refused(node: FleetNode) -> None:
    node.push("s", "a" * 40)
    [mine] = node.rows_to_send()
    forged = read(write(TurnRow(**asdict(mine) | {"session": "other"})), TurnRow)
    assert len(node.read([forged]).refused) == 1
    assert [row[0] for row in node.listed()] == ["s"]


def test_a_node_alone_tells_nobody(tmp_path: Path) -> None:
    node = FleetNode(tmp_path, "a")
    node.stores.fleet_turns.leave()
    node.push("s", "a" * 40)
    node.stores.sessions.keep(REPO, "s", True)
    assert node.stores.sessions.all()[0]["node"] is None
    node.drop("s")
    assert node.waiting() == []
    node.push("kept", "b" * 40)
    node.stores.sessions.keep(REPO, "kept", True)
    node.stores.fleet_turns.join("a")
    assert node.waiting() == [SessionKept("a", REPO, "kept", True)]
    assert node.stores.sessions.all()[0]["node"] == "a"
    node.stores.database.close()


SESSIONS = ("s", "t")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("push", "push", "drop", "keep", "free", "send", "send", "again", "read")),
        st.sampled_from("ab"),
        st.sampled_from(SESSIONS),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(STEPS, st.data())
def test_every_node_comes_to_the_same(steps: list[tuple[str, str, str]], data: st.DataObject) -> None:
    """Whatever is pushed, ended and kept where, and however much of it is sent twice or read late."""
    with TemporaryDirectory() as directory:
        nodes = {name: FleetNode(Path(directory), name) for name in "abc"}
        stream: list[Message] = []
        for number, (what, where, session) in enumerate(steps):
            node = nodes[where]
            if what == "push":
                node.push(session, f"{number + 1:040x}")
            elif what == "drop":
                node.drop(session)
            elif what in ("keep", "free"):
                with suppress(NotFound):
                    node.stores.sessions.keep(REPO, session, what == "keep")
            elif what == "send":
                stream += node.rows_to_send() + node.waiting()
            elif what == "again" and stream:
                stream.append(data.draw(st.sampled_from(stream)))
            else:
                node.read(stream)
        for node in nodes.values():
            node.read(stream)
            stream += node.rows_to_send() + node.waiting()
        for node in nodes.values():
            node.read(stream)
        late = FleetNode(Path(directory), "late")
        late.read(stream)
        listed = {name: node.listed() for name, node in nodes.items()}
        assert listed["a"] == listed["b"] == listed["c"] == late.listed(), json.dumps(
            [json.loads(write(each)) for each in stream], indent=1
        )
        for node in (*nodes.values(), late):
            assert node.rows_to_send() == [] and node.waiting() == []
            assert node.stores.audit.verify().broken is None
            node.stores.database.close()
