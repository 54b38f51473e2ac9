"""The audit log: one chain, whatever writes it at once, and any tampering is found."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.core.backup.database_copy import copied
from appliance.core.layout import Layout
from appliance.core.store import chain
from appliance.core.store.audit import Attempt, AuditLog, FoundTurn, LogBehind, TurnRef
from appliance.core.store.chain import GENESIS, HASHED, VERSION, canonical_form
from appliance.core.store.database import Database, StoreError
from appliance.core.store.told import HeadUnreadable
from tests.support.serve import ROOT

ZERO, ONE, TWO = "0" * 40, "1" * 40, "2" * 40
NOW = 1_700_000_000.25


def attempt(ref: str = "refs/agents/s1", verdict: str = "accepted", **changes: Any) -> Attempt:
    """One attempted ref, as the PushAuthorizer logs it."""
    columns: dict[str, Any] = {
        "push": "p1", "repo": "acme/widgets", "ref": ref, "session": ref.rpartition("/")[2], "old": None, "new": ONE,
        "verdict": verdict, "reason": None, "client": "10.0.0.7",
    }  # fmt: skip
    return Attempt(**columns | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "gitmirror.db"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    """An empty log with a clock that stands still."""
    database = Database(path)
    yield AuditLog(database, lambda: NOW)
    database.close()


def fill(log: AuditLog, pushes: int = 5) -> list[int]:
    """Some attempts, each other one with an outcome; returns the attempts' ids."""
    ids = []
    for number in range(pushes):
        ids += log.record_attempts([attempt(f"refs/agents/s{number}")])
        if number % 2 == 0:
            log.record_outcomes([(ids[-1], "applied", None)])
    return ids


def tamper(path: Path, *statements: str) -> None:
    """Tampers as anybody with the file can: dropping the triggers takes one more statement."""
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("DROP TRIGGER IF EXISTS audit_no_update")
        connection.execute("DROP TRIGGER IF EXISTS audit_no_delete")
        for statement in statements:
            connection.execute(statement)
    connection.close()


# What is written


def test_an_attempt_and_its_outcome_are_two_events_and_one_entry(log: AuditLog) -> None:
    """The contract's keys and words, newest first."""
    [first] = log.record_attempts([attempt()])
    log.record_outcomes([(first, "applied", None)])
    [second] = log.record_attempts([attempt("refs/heads/main", "rejected", session=None, reason="branches ...")])
    found = log.entries()
    assert [list(entry) for entry in found] == 2 * [
        ["id", "at", "repo", "session", "ref", "old", "new", "verdict", "outcome", "reason", "client", "hash", "guest"]
    ]
    assert [(e["id"], e["verdict"], e["outcome"], e["reason"]) for e in found] == [
        (second, "rejected", None, "branches ..."),
        (first, "accepted", "applied", None),
    ]
    assert found[0]["at"] == "2023-11-14T22:13:20.250Z"
    assert [event["kind"] for event in log.events()] == ["attempt", "outcome", "attempt"]


def test_an_accepted_attempt_is_pending_until_its_outcome_is_known(log: AuditLog) -> None:
    """Until then it is an open attempt, with the facts needed to settle it."""
    ids = log.record_attempts([attempt("refs/agents/a"), attempt("refs/agents/b"), attempt("refs/x", "rejected")])
    assert [entry["outcome"] for entry in log.entries()] == [None, "pending", "pending"]
    assert [(o.id, o.ref, o.new, o.push, o.repo) for o in log.open_attempts()] == [
        (ids[0], "refs/agents/a", ONE, "p1", "acme/widgets"),
        (ids[1], "refs/agents/b", ONE, "p1", "acme/widgets"),
    ]
    log.record_outcomes([(ids[0], "failed", "no space left")])
    assert [o.id for o in log.open_attempts()] == [ids[1]]
    assert (log.entries()[2]["outcome"], log.entries()[2]["reason"]) == ("failed", "no space left")


def test_the_first_outcome_stays(log: AuditLog) -> None:
    """Concluding twice (after a restart, for one) adds nothing."""
    [first] = log.record_attempts([attempt()])
    log.record_outcomes([(first, "applied", None)])
    log.record_outcomes([(first, "failed", "too late")])
    assert [event["outcome"] for event in log.events()] == [None, "applied"]


def test_attempts_of_one_push_are_logged_together_or_not_at_all(log: AuditLog) -> None:
    """A push whose third ref cannot be logged has no row, and its guest is told so."""
    with pytest.raises(StoreError):
        log.record_attempts([attempt("refs/agents/a"), attempt("refs/agents/b", verdict="perhaps")])
    assert log.entries() == []
    assert log.verify().broken is None


def test_entries_can_be_narrowed_and_limited(log: AuditLog) -> None:
    """By repository, by session, by number."""
    log.record_attempts(
        [attempt("refs/agents/a"), attempt("refs/agents/b", repo="o/r"), attempt("refs/agents/a", repo="o/r")]
    )
    assert [e["id"] for e in log.entries(repo="o/r")] == [3, 2]
    assert [e["id"] for e in log.entries(session="a")] == [3, 1]
    assert [e["id"] for e in log.entries(repo="o/r", session="a")] == [3]
    assert [e["id"] for e in log.entries(limit=2)] == [3, 2]
    assert log.entries(repo="none/such") == []


def test_a_later_push_that_started_from_a_commit_proves_that_one(log: AuditLog) -> None:
    """Only an applied one, of the same ref and repository, and a later one."""

    def led_on(*later: Attempt, outcome: str = "applied") -> bool:
        [first] = log.record_attempts([attempt(new=TWO)])
        [opened] = [each for each in log.open_attempts() if each.id == first]
        for each in log.record_attempts(later):
            log.record_outcomes([(each, outcome, None)])
        return log.led_on(opened)

    assert led_on(attempt(old=TWO))
    log.record_outcomes([(each.id, "failed", None) for each in log.open_attempts()])
    assert not led_on(), "an earlier one proves nothing of a later"
    assert not led_on(attempt(old=TWO), outcome="failed")
    assert not led_on(attempt("refs/agents/other", old=TWO))
    assert not led_on(attempt(old=TWO, repo="o/r"))
    assert not led_on(attempt(old=ONE))


# The chain


def test_the_canonical_form_is_what_the_documents_say(log: AuditLog) -> None:
    """Anybody can check an export with nothing but this sentence."""
    fill(log)
    text = (ROOT / "docs" / "operations.md").read_text()
    text = " ".join(text.split())
    assert ", ".join(HASHED[1]) in text and ", ".join(HASHED[VERSION][len(HASHED[1]) :]) in text
    prev = "0" * 64
    for event in log.events():
        hashed = {key: value for key, value in event.items() if key != "hash"}
        assert set(hashed) == set(HASHED[VERSION])
        canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        assert canonical == canonical_form(event)
        assert event["prev"] == prev
        prev = hashlib.sha256(canonical).hexdigest()
        assert event["hash"] == prev
    assert log.head() == prev


def test_an_untouched_log_holds(log: AuditLog) -> None:
    """Empty, and with events; `head` is the newest event's hash."""
    assert log.verify() == log.verify(GENESIS)
    assert (log.verify().events, log.head()) == (0, GENESIS)
    fill(log)
    verdict = log.verify()
    assert (verdict.broken, verdict.events, verdict.head) == (None, 8, log.head())


@pytest.mark.parametrize("column", [name for name in HASHED[VERSION] if name not in ("id", "prev")])
def test_a_changed_column_is_found(log: AuditLog, path: Path, column: str) -> None:
    """The report names the changed event, whichever column it is."""
    fill(log)
    value = "2" if column == "attempt" else "'applied'" if column == "outcome" else "'changed'"
    if column in ("kind", "verdict"):
        value = {"kind": "'outcome'", "verdict": "'rejected'"}[column]
    if column == "version":
        value = "1"
    tamper(path, f"UPDATE audit_events SET {column} = {value} WHERE id = 4")
    assert log.verify().broken == 4


@pytest.mark.parametrize("version", [0, 3, "'two'"])
def test_an_event_of_an_unknown_version_breaks_the_chain(log: AuditLog, path: Path, version: object) -> None:
    """It is never taken for one that cannot be checked."""
    fill(log)
    tamper(path, f"UPDATE audit_events SET version = {version} WHERE id = 4")
    assert log.verify().broken == 4


@pytest.mark.parametrize("column", ["guest", "digest"])
def test_an_old_event_cannot_be_given_a_guest(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """The hash of version 1 does not cover these columns, and every command shows them."""
    monkeypatch.setattr(chain, "VERSION", 1)
    fill(log)
    tamper(path, f"UPDATE audit_events SET {column} = 'vm-7' WHERE id = 4")
    assert log.verify().broken == 4


def test_events_of_both_versions_form_one_chain(log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old log goes on in the new form; an event of the old form after one of the new is found."""
    monkeypatch.setattr(chain, "VERSION", 1)
    fill(log)
    assert {event["version"] for event in log.events()} == {1}
    monkeypatch.undo()
    log.record_attempts([attempt(guest="vm-7")])
    newest = list(log.events())[-1]
    assert (newest["version"], newest["guest"]) == (2, "vm-7")
    assert log.verify().broken is None
    tamper(path, f"UPDATE audit_events SET guest = 'vm-8' WHERE id = {newest['id']}")
    assert log.verify().broken == newest["id"]
    tamper(path, f"UPDATE audit_events SET guest = 'vm-7' WHERE id = {newest['id']}")
    monkeypatch.setattr(chain, "VERSION", 1)
    log.record_attempts([attempt()])
    verdict = log.verify()
    assert verdict.broken == newest["id"] + 1
    assert "older" in (verdict.reason or "")


def test_a_changed_event_with_its_hash_made_anew_is_found_at_the_next(log: AuditLog, path: Path) -> None:
    """The next one names the hash that was there."""
    fill(log)
    events = list(log.events())
    forged = events[3] | {"client": "10.9.9.9"}
    digest = hashlib.sha256(canonical_form(forged)).hexdigest()
    tamper(path, f"UPDATE audit_events SET client = '10.9.9.9', hash = '{digest}' WHERE id = 4")
    verdict = log.verify()
    assert verdict.broken == 5
    assert "does not follow the previous event" in (verdict.reason or "")


def test_a_deleted_event_is_found(log: AuditLog, path: Path) -> None:
    """In the middle, and the first."""
    fill(log)
    tamper(path, "DELETE FROM audit_events WHERE id = 5")
    assert log.verify().broken == 5


def test_a_deleted_beginning_is_found(log: AuditLog, path: Path) -> None:
    """The first event must follow on nothing."""
    fill(log)
    tamper(path, "DELETE FROM audit_events WHERE id <= 2")
    assert log.verify().broken == 1


def test_an_inserted_event_is_found(log: AuditLog, path: Path) -> None:
    """Even with a valid hash of its own, because the next event names another hash."""
    fill(log)
    events = list(log.events())
    tamper(path, "DELETE FROM audit_events WHERE id = 5")
    forged = dict(events[4]) | {"client": "10.9.9.9", "prev": events[3]["hash"]}
    forged["hash"] = hashlib.sha256(canonical_form(forged)).hexdigest()
    columns = ", ".join(forged)
    marks = ", ".join("?" for _ in forged)
    with sqlite3.connect(path) as connection:
        connection.execute(f"INSERT INTO audit_events ({columns}) VALUES ({marks})", list(forged.values()))
    connection.close()
    assert log.verify().broken == 6


def test_two_swapped_events_are_found(log: AuditLog, path: Path) -> None:
    """Order is part of what is hashed."""
    fill(log)
    tamper(path, *(f"UPDATE audit_events SET id = {new} WHERE id = {old}" for old, new in ((3, 99), (4, 3), (99, 4))))
    assert log.verify().broken == 3


def test_a_cut_off_end_is_found(log: AuditLog, path: Path) -> None:
    """The file remembers how many were written, as long as nobody changes that too."""
    fill(log)
    tamper(path, "DELETE FROM audit_events WHERE id > 6")
    verdict = log.verify()
    assert verdict.broken == 7
    assert "up to 8 were written" in (verdict.reason or "")


def test_a_cut_off_end_that_was_covered_up_is_found_by_a_kept_head(log: AuditLog, path: Path) -> None:
    """A head that an operator noted elsewhere must still be in the chain, at its end or not."""
    fill(log, 3)
    middle = log.head()
    fill(log, 2)
    end = log.head()
    assert log.verify(middle).broken is None
    assert log.verify(end).broken is None
    tamper(
        path, "DELETE FROM audit_events WHERE id > 6", "UPDATE sqlite_sequence SET seq = 6 WHERE name = 'audit_events'"
    )
    assert "lacks event" in (log.verify().reason or ""), "the file beside the database remembers"
    path.with_name("audit-head").unlink()
    assert log.verify().broken is None
    assert log.verify(middle).broken is None
    assert "no longer contains" in (log.verify(end).reason or "")


def test_a_head_of_another_log_is_not_in_this_one(log: AuditLog) -> None:
    """As after the whole file was replaced."""
    fill(log)
    assert log.verify("f" * 64).broken is not None


def test_a_log_emptied_whole_is_found(log: AuditLog, path: Path) -> None:
    """Nothing left is no empty log."""
    fill(log)
    tamper(path, "DELETE FROM audit_events")
    assert log.verify().broken == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET client = 'x' WHERE id = 1",
        "DELETE FROM audit_events WHERE id = 1",
        "DELETE FROM audit_events",
        "INSERT OR REPLACE INTO audit_events (id, kind, at, push, repo, ref, client, prev, hash) "
        "VALUES (1, 'attempt', '', '', '', '', '', '', 'x')",
    ],
    ids=["update", "delete", "delete all", "replace"],
)
def test_the_log_is_append_only(log: AuditLog, path: Path, statement: str) -> None:
    """The chain shows tampering; these triggers stop mistakes, also by another program."""
    fill(log)
    before = list(log.events())
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.DatabaseError, match="append-only"), connection:
        connection.execute(statement)
    connection.close()
    assert list(log.events()) == before


def test_a_cut_off_end_stays_found_when_the_log_goes_on(log: AuditLog, path: Path) -> None:
    """An id is never given twice: new events do not close the gap."""
    fill(log)
    tamper(path, "DELETE FROM audit_events WHERE id > 6")
    log.record_attempts([attempt()])
    assert log.verify().broken == 7


def test_what_is_written_during_a_verification_is_no_break(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """`audit verify` runs beside a serve that goes on logging."""
    fill(log)
    walk = log.events

    def walk_then_log(**bounds: Any) -> Iterator[dict[str, Any]]:
        yield from walk(**bounds)
        log.record_attempts([attempt()])

    monkeypatch.setattr(log, "events", walk_then_log)
    assert log.verify().broken is None


def test_a_write_that_failed_leaves_no_gap(log: AuditLog) -> None:
    """Its id is given to the next: a gap always means that something was taken out."""
    fill(log)
    with pytest.raises(StoreError):
        log.record_attempts([attempt(), attempt(verdict="perhaps")])
    fill(log)
    assert (log.verify().broken, log.verify().events) == (None, 16)


def test_a_large_log_is_read_in_pages_and_in_order(log: AuditLog) -> None:
    """More events than one page holds, none twice, none left out."""
    for start in range(0, 2500, 500):
        log.record_attempts([attempt(f"refs/agents/s{start + number}") for number in range(500)])
    assert [event["id"] for event in log.events()] == list(range(1, 2501))
    assert log.verify().events == 2500


WRITER = """
import sys, time
from pathlib import Path
from appliance.core.store.audit import Attempt, AuditLog, FoundTurn, LogBehind, TurnRef
from appliance.core.store.database import Database
log = AuditLog(Database(Path(sys.argv[1])), time.time)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    attempt = Attempt(sys.argv[2], "o/r", f"refs/agents/{number}", "s", None, None, "accepted", None, "c")
    [made] = log.record_attempts([attempt])
    log.record_outcomes([(made, "applied", None)])
"""


def test_writers_in_several_processes_keep_one_chain(path: Path) -> None:
    """All at once on a fresh file: nothing is lost, nobody is told that the database is locked."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), f"w{number}", "25"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for number in range(4)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout and writer.stdin
        assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    log = AuditLog(Database(path), lambda: NOW)
    verdict = log.verify()
    assert (verdict.events, verdict.broken) == (200, None)
    by_writer: dict[str, list[str]] = {}
    for entry in reversed(log.entries()):
        assert entry["outcome"] == "applied"
    for event in log.events():
        if event["kind"] == "attempt":
            by_writer.setdefault(event["push"], []).append(event["ref"])
    assert by_writer == {f"w{n}": [f"refs/agents/{m}" for m in range(25)] for n in range(4)}


def test_threads_of_one_process_keep_one_chain_too(log: AuditLog) -> None:
    """serve writes from many threads through one connection."""
    from concurrent.futures import ThreadPoolExecutor

    def push(number: int) -> None:
        [made] = log.record_attempts([attempt(f"refs/agents/s{number}")])
        log.record_outcomes([(made, "applied", None)])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(push, range(100)))
    assert (log.verify().events, log.verify().broken) == (200, None)
    assert log.open_attempts() == []


Write = Callable[[AuditLog], object]


@pytest.mark.parametrize(
    "write",
    [lambda log: log.record_attempts([attempt()]), lambda log: log.record_outcomes([(1, "applied", None)])],
    ids=["attempt", "outcome"],
)
def test_what_cannot_be_written_is_an_error_in_words(log: AuditLog, path: Path, write: Write) -> None:
    """An unwritable database must raise an error, so that the push is refused, and leave nothing half done."""
    fill(log, 1)
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    with pytest.raises(StoreError, match="is not a file") as caught:
        write(log)
    assert caught.value.hint
    path.rmdir()
    path.with_suffix(".away").rename(path)
    assert log.verify().events == 2


def found(number: int, repo: str = "acme/widgets") -> FoundTurn:
    """A turn that a mirror has and the log has not."""
    return FoundTurn(TurnRef(repo, number, TWO), f"found-{number}")


def test_found_turns_keep_their_ids_and_the_chain_holds(log: AuditLog) -> None:
    """The gap in ids before a found turn does not break the chain; later events have higher ids."""
    fill(log, 2)
    last = log.last_id()
    taken = log.record_found([found(9000), found(last + 5), found(1), found(9000, "acme/other")])
    assert [turn.ref.id for turn in taken] == [last + 5, 9000], "an id is given once"
    assert log.verify().broken is None
    assert log.unknown([turn.ref for turn in taken]) == []
    assert log.unknown([TurnRef("acme/other", 9000, TWO), TurnRef("acme/widgets", 9000, ONE)]) != []
    entries = {entry["id"]: entry for entry in log.entries()}
    assert (entries[9000]["client"], entries[9000]["outcome"]) == ("unknown", "applied")
    assert "found" in entries[9000]["reason"]
    [new] = log.record_attempts([attempt()])
    assert new > 9000 and log.verify().broken is None


def test_an_outcome_is_not_that_of_another_push(log: AuditLog) -> None:
    """After an older copy of the log was put back, an id may be missing, or another push's."""
    mine, others = log.record_attempts([attempt(push="mine"), attempt(push="others")])
    outcomes = [(number, "applied", None) for number in (mine, others, others + 1)]
    assert log.record_outcomes(outcomes, "mine") == {mine}
    assert {event["attempt"] for event in log.events() if event["kind"] == "outcome"} == {mine}


def test_a_gap_before_anything_else_is_a_break(log: AuditLog, path: Path) -> None:
    """Only the hash of a found turn may vouch for what is not there."""
    fill(log, 2)
    log.record_found([found(50)])
    fill(log, 1)
    tamper(path, "DELETE FROM audit_events WHERE id = 52")
    assert log.verify().broken == 52


def test_a_log_that_lacks_what_was_told_says_so_until_it_is_accepted(tmp_path: Path) -> None:
    """An older copy: whatever it goes on to log, the loss stays known, and the note about it is in the chain."""
    path = tmp_path / "gitmirror.db"
    database = Database(path)
    log = AuditLog(database, lambda: NOW)
    log.check()
    fill(log, 1)
    log.check()
    with closing(sqlite3.connect(tmp_path / "backup.db")) as target, database.reading() as connection:
        connection.conn.backup(target)
    fill(log, 3)
    told = log.head()
    database.close()
    for left in tmp_path.glob("gitmirror.db*"):
        left.unlink()
    (tmp_path / "backup.db").rename(path)
    database = Database(path)
    log = AuditLog(database, lambda: NOW + 1)
    fill(log, 9)
    with pytest.raises(LogBehind, match="lacks event"):
        log.check()
    assert "lacks event" in (log.verify().reason or "")
    assert log.accept_loss() and not log.accept_loss()
    log.check()
    assert log.verify().broken is None
    note = list(log.events())[-1]
    assert note["kind"] == "note" and told in note["reason"]
    database.close()


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_file_in_which_nothing_was_told_yet_is_no_loss(log: AuditLog, path: Path, text: str) -> None:
    """A kill between making it and writing to it; and the first start with this version."""
    fill(log, 1)
    path.with_name("audit-head").write_text(text)
    log.check()
    fill(log, 1)
    assert log.head() in path.with_name("audit-head").read_text()


@pytest.mark.parametrize("text", ["garbage", "1 2 3", "x" * 86, "12 abc"])
def test_a_file_that_makes_no_sense_is_a_loss(log: AuditLog, path: Path, text: str) -> None:
    """Where a write is concerned, it is refused rather than guessed."""
    fill(log, 1)
    path.with_name("audit-head").write_text(text)
    with pytest.raises(LogBehind):
        log.check()


def test_a_file_that_cannot_be_read_is_no_loss(log: AuditLog, path: Path) -> None:
    """As when the process is out of descriptors: nobody is told that events are lost, and no copy says so for good."""
    fill(log, 2)
    head, aside = path.with_name("audit-head"), path.with_name("aside")
    head.rename(aside)
    head.mkdir()
    layout = Layout(path.parent)
    layout.run.mkdir()
    for use in (log.check, log.verify, log.accept_loss, copied(layout).__enter__):
        with pytest.raises(HeadUnreadable, match="cannot be read from audit-head: Is a directory"):
            use()
    fill(log, 1)
    head.rmdir()
    aside.rename(head)
    log.check()
    assert not log.accept_loss()
    assert log.verify().broken is None
    with copied(layout) as copy:
        assert copy.audit_head.read_text().split()[1] == log.head()
    assert not list(layout.run.iterdir())


def test_what_cannot_be_told_is_no_reason_to_lose_the_event(log: AuditLog, path: Path) -> None:
    """The file beside it cannot be written: the event is logged all the same."""
    path.with_name("audit-head").unlink(missing_ok=True)
    path.with_name("audit-head").mkdir()
    log.record_attempts([attempt()])
    assert len(log.entries()) == 1
