"""Turns: what was recorded stays, whatever becomes of the ref that recorded it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.models import Turn
from appliance.core.store.audit import Attempt, AuditLog
from appliance.core.store.database import Database, StoreError
from appliance.core.store.sessions import SessionStore
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.recording.conftest import (
    AGENTS,
    TURNS,
    assert_turns_are_kept,
    fetches,
    new_session,
    record,
    record_turn,
    session_of,
    turns_of,
)
from tests.serving.conftest import Node, commit_turn, entry_of, make_turn
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_result, refs
from tests.support.pkt import ZERO, raw_push


@pytest.mark.slow
def test_a_forced_push_loses_no_turn(node: Node, tmp_path: Path) -> None:
    """A session that is rewritten, rewound and replaced keeps each commit that it was at, fetchable."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    commits = [record_turn(guest, name, "one")]
    git("commit", "--quiet", "--amend", "-m", "one, again", cwd=guest)
    commits.append(git("rev-parse", "HEAD", cwd=guest))
    record(guest, name)
    git("reset", "--quiet", "--hard", "HEAD~1", cwd=guest)
    commits.append(node.tip)
    record(guest, name)
    commits.append(record_turn(guest, name, "another"))
    assert [turn.commit for turn in turns_of(node, name)] == commits
    assert git("rev-parse", f"{AGENTS}{name}", cwd=node.mirror) == commits[-1]
    for number, commit in enumerate(commits):
        assert fetches(node, commit, tmp_path / f"fetch-{number}")
    assert_turns_are_kept(node)


def test_the_book_is_true_when_the_push_returns(node: Node, tmp_path: Path) -> None:
    """As soon as a guest hears that its turn is recorded, the listing has it."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    for number in range(1, 4):
        commit = record_turn(guest, name, f"turn {number}")
        row = session_of(node, name)
        assert row is not None
        assert (row["tip"], row["turns"], row["commits"]) == (commit, number, number)
    [listed] = [row for row in node.serve.cli_json("sessions") if row["session"] == name]
    assert listed["tip"] == commit


def test_a_push_that_fails_leaves_no_turn(node: Node, tmp_path: Path) -> None:
    """Two guests that saw the ref at the same commit: the slower one fails, and leaves nothing but its row."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    first, other = record_turn(guest, name, "first"), make_turn(node.mirror, "other")
    answer = raw_push(
        *node.serve.git_address, f"/{WIDGETS}", [(other.base, other.commit, f"{AGENTS}{name}")], other.pack
    )
    assert not answer.accepted
    entry = entry_of(node.serve, f"{AGENTS}{name}")
    assert (entry["verdict"], entry["outcome"], entry["new"]) == ("accepted", "failed", other.commit)
    assert f"{TURNS}{entry['id']}" not in refs(node.mirror)
    assert [turn.commit for turn in turns_of(node, name)] == [first]
    assert_turns_are_kept(node)


def test_of_one_push_the_good_refs_are_turns_and_the_bad_one_is_none(node: Node) -> None:
    """If one ref of a push fails, exactly the others are recorded."""
    good, bad, made = new_session(), new_session(), make_turn(node.mirror, "several")
    answer = raw_push(
        *node.serve.git_address,
        f"/{WIDGETS}",
        [(ZERO, made.commit, f"{AGENTS}{good}"), (made.base, made.commit, f"{AGENTS}{bad}")],
        made.pack,
    )
    assert answer.report[f"{AGENTS}{good}"] == "ok" and answer.report[f"{AGENTS}{bad}"] != "ok"
    assert [turn.commit for turn in turns_of(node, good)] == [made.commit]
    assert session_of(node, bad) is None
    assert_turns_are_kept(node)


def test_a_recording_is_a_commit(node: Node, tmp_path: Path) -> None:
    """A tag object, a tree or a blob has no history to read and is refused, on the guest's terminal too."""
    guest = node.guest(tmp_path / "guest")
    git("tag", "-a", "-m", "a tag", "t1", cwd=guest)
    for kind, revision in (("tag", "t1"), ("tree", "HEAD^{tree}"), ("blob", "HEAD:README.md")):
        name = new_session()
        code, _, stderr = git_result("push", "origin", f"{revision}:{AGENTS}{name}", cwd=guest)
        assert code == 1
        reason = f"a recorded object has to be a commit, but {git('rev-parse', revision, cwd=guest)} is a {kind}"
        assert f"remote: gitmirror: refused '{AGENTS}{name}': {reason}" in stderr
        assert f"-> {AGENTS}{name} ({reason})" in stderr, "also where git reports on the ref"
        entry = entry_of(node.serve, f"{AGENTS}{name}")
        assert (entry["outcome"], entry["reason"]) == ("failed", reason)
        assert session_of(node, name) is None
    assert_turns_are_kept(node)


def test_no_guest_sees_or_moves_a_turn(node: Node, tmp_path: Path) -> None:
    """The refs that keep turns are in no listing, and a push to one is refused."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    record_turn(guest, name, "kept")
    before = {ref: oid for ref, oid in refs(node.mirror).items() if ref.startswith(TURNS)}
    for version in (0, 2):
        shown = git("-c", f"protocol.version={version}", "ls-remote", node.url, cwd=guest)
        assert f"{AGENTS}{name}" in shown and "gitmirror" not in shown
    for target in (*before, f"{TURNS}999999"):
        assert git_result("push", "--force", "origin", f"HEAD:{target}", cwd=guest)[0] == 1
        assert git_result("push", "origin", f":{target}", cwd=guest)[0] == 1
    assert {ref: oid for ref, oid in refs(node.mirror).items() if ref.startswith(TURNS)} == before


@pytest.mark.slow
def test_a_refresh_with_prune_and_a_night_of_maintenance_keep_every_turn(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """Branches go and come upstream, everything is repacked: each turn of a rewritten session is still fetchable."""
    node = make_node()
    name, guest = new_session(), node.guest(tmp_path / "guest")
    commits = []
    for text in ("one", "two", "three"):
        commits.append(record_turn(guest, name, text))
        git("reset", "--quiet", "--hard", "HEAD~1", cwd=guest)
    upstream = node.upstream.path(WIDGETS)
    git("update-ref", "refs/heads/gone", "refs/heads/main", cwd=upstream)
    node.serve.cli("refresh", WIDGETS)
    git("update-ref", "-d", "refs/heads/gone", cwd=upstream)
    add_commit(upstream, "main", {"moved.txt": "on"})
    node.serve.cli("refresh", WIDGETS)
    node.serve.terminate()
    lab = Lab(node.serve.state)
    try:
        repo = lab.repo(node.upstream.url(WIDGETS))
        assert lab.run(lab.maintainer(repo, locks=MirrorLocks(), clock=lambda: 2e9).room.maintain(repo, whole=True))
    finally:
        lab.close()
    node.serve.start()
    for number, commit in enumerate(commits):
        assert fetches(node, commit, tmp_path / f"fetch-{number}")
    assert_turns_are_kept(node)


@pytest.mark.slow
def test_forty_pushes_race_for_one_session_and_each_that_won_is_a_turn(node: Node, tmp_path: Path) -> None:
    """Eight guests force one session at the same time: turns are counted in the order the ref went through."""
    name = new_session()
    guests = [node.guest(tmp_path / f"guest-{number}") for number in range(8)]

    def work(number: int) -> None:
        for turn in range(5):
            commit_turn(guests[number], f"{number}-{turn}")
            git_result("push", "--quiet", "--force", "origin", f"HEAD:{AGENTS}{name}", cwd=guests[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = [entry for entry in reversed(assert_turns_are_kept(node)) if entry["session"] == name]
    applied = [entry["new"] for entry in entries if entry["outcome"] == "applied"]
    assert [turn.commit for turn in turns_of(node, name)] == applied
    row = session_of(node, name)
    assert row is not None
    assert row["tip"] == applied[-1] == git("rev-parse", f"{AGENTS}{name}", cwd=node.mirror)


def test_a_turn_that_the_log_does_not_know_is_refused(tmp_path: Path) -> None:
    """An older copy of the database was put in place meanwhile, whose log will give that id to another turn."""
    database = Database(tmp_path / "db")
    try:
        made = Turn(
            id=7, repo=WIDGETS, session="s", commit="1" * 40, base=None, at="2026-01-01", subject="", commits=1,
            files_changed=0, insertions=0, deletions=0, client="", bytes=1,
        )  # fmt: skip
        with pytest.raises(StoreError, match="the audit log has no event 7"):
            SessionStore(database).record(made)
        assert SessionStore(database).all() == []
    finally:
        database.close()


def test_turns_count_in_the_order_of_the_log_however_late_one_is_booked(tmp_path: Path) -> None:
    """A turn that is booked after its successor, as after a crash, still comes before it."""
    database = Database(tmp_path / "db")
    try:
        store = SessionStore(database)
        attempt = Attempt("p", WIDGETS, f"{AGENTS}s", "s", None, "1" * 40, "accepted", None, "")
        assert AuditLog(database, lambda: 0.0).record_attempts([attempt] * 3) == [1, 2, 3]
        for number in (3, 1, 2):
            made = Turn(
                id=number, repo=WIDGETS, session="s", commit=str(number) * 40, base=None, at=f"2026-01-0{number}",
                subject="", commits=number, files_changed=0, insertions=0, deletions=0, client="", bytes=1,
            )  # fmt: skip
            store.record(made)
        assert [turn.id for turn in store.turns(WIDGETS, "s")] == [1, 2, 3]
        [row] = store.all(WIDGETS)
        assert (row["tip"], row["turns"], row["bytes"]) == ("3" * 40, 3, 3)
        assert (row["first_at"], row["last_at"]) == ("2026-01-01", "2026-01-03")
    finally:
        database.close()
