"""`audit verify --fleet` finds a log that was cut off, rewritten, put back from a backup, or is another one."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.core.fleet.messages import LogHead
from appliance.core.layout import Layout
from tests.fleet.log_book import LogBook, grow
from tests.support.fleet import TestFleet
from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve


@pytest.fixture
def book(tmp_path: Path, module_nats: NatsCluster) -> LogBook:
    """A log with three published heads, of the events 2, 4 and 6."""
    book = LogBook(tmp_path, module_nats)
    for _ in range(3):
        book.grow(2)
        book.publish()
    return book


def found(book: LogBook) -> dict[str, Any]:
    """What the comparison says, which must be that something is wrong."""
    return dict(json.loads(book.verify("--json", codes=(3,)))["fleet"])


def cut_off(book: LogBook) -> None:
    """Remove the newest events and every trace of them on the disk."""
    with closing(sqlite3.connect(book.layout.database)) as database:
        database.execute("DROP TRIGGER audit_no_delete")
        database.execute("DELETE FROM audit_events WHERE id > 3")
        database.execute("UPDATE sqlite_sequence SET seq = 3 WHERE name = 'audit_events'")
        database.commit()
    book.layout.audit_head.unlink()


def make_anew(book: LogBook) -> None:
    """Replace the disk by one on which as many other events happened after the same beginning."""
    cut_off(book)
    book.grow(5)


def test_a_log_that_holds_every_head_verifies(book: LogBook) -> None:
    said = book.verify()
    assert "6 events, the chain holds" in said and "3 published heads are in the log" in said
    document = json.loads(book.verify("--json"))
    assert (document["events"], document["broken"], document["fleet"]["held"]) == (6, None, 3)


@pytest.mark.parametrize("how", [cut_off, pytest.param(make_anew, marks=pytest.mark.slow)])
def test_a_log_that_was_cut_off_or_made_anew_is_found(book: LogBook, how: Callable[[LogBook], None]) -> None:
    how(book)
    assert book.serve.here("audit", "verify").startswith(("3 events", "8 events")), "by itself it looks intact"
    [lost] = found(book)["lost"]
    assert (lost["own"], lost["after"], lost["first"]["id"], lost["last"]["id"]) == (True, 2, 4, 6)
    done = book.serve.cli("audit", "verify", "--fleet", check=False)
    assert done.returncode == 3
    assert "event 4 (" in done.stderr and "published at 20" in done.stderr and "accept-loss" in done.stderr


def test_a_disk_of_yesterday_is_found(tmp_path: Path, module_nats: NatsCluster) -> None:
    book = LogBook(tmp_path, module_nats)
    book.grow(2)
    book.publish()
    saved = book.save()
    book.grow(2)
    book.publish()
    book.put_back(saved)
    [lost] = found(book)["lost"]
    assert (lost["own"], lost["after"], lost["last"]["id"]) == (True, 2, 4)


@pytest.mark.slow
def test_an_empty_disk_is_found(book: LogBook) -> None:
    shutil.rmtree(book.layout.state)
    [lost] = found(book)["lost"]
    assert (lost["own"], lost["last"]["id"]) == (False, 6)
    done = book.serve.cli("audit", "verify", "--fleet", check=False)
    assert "a had an earlier log" in done.stderr and "restore --from-fleet a" in done.stderr


@pytest.mark.parametrize("how", [cut_off, make_anew, lambda book: shutil.rmtree(book.layout.state)])
def test_an_operator_accepts_a_loss_once(book: LogBook, how: Callable[[LogBook], None]) -> None:
    how(book)
    assert "noted in the log" in book.serve.here("audit", "accept-loss")
    assert "no events" in book.serve.here("audit", "accept-loss"), "there is nothing left to accept"
    book.verify()
    # What is published from now on is not covered by that note.
    saved = book.save()
    book.grow(3)
    book.publish()
    book.verify()
    book.put_back(saved)
    assert len(found(book)["lost"]) == 1


@pytest.mark.slow
def test_a_message_that_is_no_head_is_skipped_and_a_forged_one_is_named(book: LogBook) -> None:
    book.say(b"hello")
    book.say(LogHead("b", "a" * 64, 1, "b" * 64, "2026-11-27T08:00:00Z"))
    document = json.loads(book.verify("--json"))["fleet"]
    assert (document["held"], document["skipped"]) == (3, 2)
    book.say(LogHead("a", "a" * 64, 9, "b" * 64, "2026-11-27T08:00:00Z"))
    done = book.serve.cli("audit", "verify", "--fleet", check=False)
    assert done.returncode == 3 and "published in this node's name" in done.stderr


def test_a_broken_chain_is_named_with_and_without_the_fleet(book: LogBook) -> None:
    with closing(sqlite3.connect(book.layout.database)) as database:
        database.execute("DROP TRIGGER audit_no_update")
        database.execute("UPDATE audit_events SET client = 'x' WHERE id = 2")
        database.commit()
    document = json.loads(book.verify("--json", codes=(3,)))
    assert document["broken"] == 2 and document["fleet"]["held"] == 3


@pytest.mark.slow
def test_without_the_fleet_the_chain_is_verified_and_the_code_is_1(tmp_path: Path, nats: NatsCluster) -> None:
    book = LogBook(tmp_path, nats)
    book.grow(2)
    nats.servers[0].stop()
    done = book.serve.cli("audit", "verify", "--fleet", check=False)
    assert done.returncode == 1
    assert "2 events, the chain holds" in done.stdout and "were not checked" in done.stderr


def test_a_node_alone_has_nothing_to_compare(tmp_path: Path) -> None:
    done = Serve(tmp_path / "alone").cli("audit", "verify", "--fleet", check=False)
    assert done.returncode != 0 and "belongs to no fleet" in done.stderr


@pytest.mark.slow
def test_beside_a_running_serve(fleet: TestFleet) -> None:
    """One head is published at the end, and one more where the first `serve` just published when the log grew."""
    node = fleet["a"].start()
    grow(Layout(node.state), 3)
    assert node.terminate() == 0
    node.start()
    wait_until(
        lambda: re.search("[12] published heads? (is|are) in the log", node.cli("audit", "verify", "--fleet").stdout),
        message="the head is published",
    )
