"""`restore --from-fleet` makes a node anew of what its fleet has, whole or not at all."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from appliance.cli.fleet_restore import restore_node
from appliance.core.errors import Conflict, GitmirrorError, UsageError
from appliance.core.fleet.log_check import check_log
from appliance.core.fleet.messages import SessionEnd, SessionKept, TurnAttached
from appliance.core.node import from_fleet
from appliance.core.node.node import Node
from appliance.core.store.log_heads import LogHeads
from tests.conftest import WIDGETS
from tests.fleet.gone_node import AT, GoneNode
from tests.support.gitutil import refs
from tests.support.nats import NatsCluster
from tests.support.nats_proxy import NatsProxy


@pytest.fixture
def gone(tmp_path: Path, module_nats: NatsCluster, generated_bare: Path) -> GoneNode:
    """A node that died, of which the fleet has nothing yet but a repository."""
    return GoneNode(tmp_path, module_nats, generated_bare)


def leave_sessions(gone: GoneNode) -> None:
    """Two sessions of two turns each, one kept, one with another node's turn between; a third that was ended."""
    one, two, three, four, five, *_ = gone.commits
    log = gone.attach("build.log", b"all is well")
    gone.say(
        gone.row(3, "s1", one, guest="vm-1", notes={"model": "m"}),
        gone.row(4, "old", five),
        gone.row(9, "s1", two, node="b", client="10.0.0.9:1"),
        gone.row(7, "s2", three),
        gone.row(12, "s1", four, attachments=(log,)),
        gone.row(15, "s2", five),
        TurnAttached(gone.row(15, "s2", five).uid, "a", WIDGETS, "s2", gone.attach("more", b"")),
        SessionKept("b", WIDGETS, "s2", True),
        SessionEnd("b", WIDGETS, "old", 2, (), "done"),
    )


def test_sessions_turns_and_the_log_come_back(gone: GoneNode) -> None:
    leave_sessions(gone)
    head = gone.head(20)
    report = gone.restore()
    assert (report.turns, report.sessions, report.attachments, report.lost_turns) == (4, 2, 2, [])
    one, _, three, four, five, *_ = gone.commits
    mirror = gone.layout.mirror(WIDGETS)
    recorded = {ref: oid for ref, oid in refs(mirror).items() if ref.startswith(("refs/gitmirror/", "refs/agents/"))}
    turns = {f"refs/gitmirror/turns/{number}": oid for number, oid in ((3, one), (7, three), (12, four), (15, five))}
    assert recorded == turns | {"refs/agents/s1": four, "refs/agents/s2": five}
    with gone.stores() as stores:
        found = {row["session"]: row for row in stores.sessions.all(WIDGETS)}
        assert {name: (row["turns"], row["tip"], row["kept"]) for name, row in found.items()} == {
            "s1": (2, four, False),
            "s2": (2, five, True),
        }
        [newest, *_] = entries = stores.audit.entries()
        assert {entry["id"] for entry in entries} == {3, 7, 12, 15}
        assert all(entry["outcome"] == "applied" for entry in entries)
        [first] = [entry for entry in entries if entry["id"] == 3]
        assert (first["at"], first["client"], first["guest"]) == (AT, "10.0.0.1:5", "vm-1")
        assert newest["id"] == 15 and "restored" in newest["reason"]
        assert stores.audit.verify().broken is None and stores.audit.last_id() > head.id + 1000
        assert [loss.last.id for loss in LogHeads(stores.database, stores.audit, lambda: 0.0).losses()] == [20]
        assert stores.details.of_session(WIDGETS, "s1")[3]["notes"] == {"model": "m"}
        assert check_log(gone.config.fleet, LogHeads(stores.database, stores.audit, lambda: 0.0)).is_good
        with stores.database.reading() as connection:
            places = list(connection.query("SELECT id, seq, away, node FROM turns ORDER BY seq"))
        assert [(row["id"], row["seq"], row["away"], row["node"]) for row in places] == [
            (3, 1, 0, "a"), (7, 4, 0, "a"), (12, 5, 0, "a"), (15, 6, 0, "a")
        ]  # fmt: skip
    assert Node(gone.layout, gone.config).unknown_turns() == []
    assert [path.read_bytes() for path in gone.layout.attachments.glob("*/*/12/*")] == [b"all is well"]


@pytest.mark.slow
def test_what_cannot_be_had_is_named_and_nothing_else_fails(gone: GoneNode) -> None:
    gone.register("acme/away", url=str(gone.directory / "nowhere"))
    gone.register("acme/odd", url="ftp://example.com/x")
    missing = gone.row(4, "s1", "d" * 40)
    lost = gone.attach("lost", b"x")
    gone.say(
        gone.row(3, "s1", gone.commits[0]),
        missing,
        gone.row(5, "s2", gone.commits[1], attachments=(gone.attach("here", b"1"),)),
        gone.row(6, "s2", gone.commits[2], attachments=(lost.__class__("lost", 1, "e" * 64),)),
        gone.row(8, "s3", gone.commits[0], repo="acme/unknown"),
    )
    report = gone.restore()
    assert set(report.unreached) == {"acme/away", "acme/odd"}
    assert report.unregistered == {"acme/unknown": 1}
    [turn] = report.lost_turns
    assert (turn["id"], turn["commit"]) == (4, "d" * 40) and "lacks the commit" in turn["why"]
    [file] = report.lost_attachments
    assert (file["turn"], file["name"]) == (6, "lost")
    with gone.stores() as stores:
        assert stores.sessions.get(WIDGETS, "s1")["turns"] == 2, "it is listed all the same"
        assert {entry["id"] for entry in stores.audit.entries()} == {3, 5, 6}
        assert stores.audit.verify().broken is None
    assert gone.layout.mirror("acme/away").exists()


@pytest.mark.slow
def test_a_connection_that_is_lost_meanwhile_is_made_again(gone: GoneNode) -> None:
    """An election in the middle of a large restore must not have it begin anew."""
    gone.say(gone.row(3, "s1", gone.commits[0], attachments=(gone.attach("build.log", b"all is well"),)))
    server = gone.nats.servers[0]
    with NatsProxy(server.host, server.port) as proxy:
        gone.config = replace(gone.config, fleet=replace(gone.config.fleet, servers=(proxy.url,)))
        proxy.before = f"CONSUMER.CREATE.OBJ_{gone.names.objects}".encode()

        def lose() -> None:
            assert proxy.stalled.wait(30)
            proxy.cut()

        losing = threading.Thread(target=lose)
        losing.start()
        report = gone.restore()
        losing.join()
    assert (report.turns, report.attachments, report.lost_attachments) == (1, 1, [])


@pytest.mark.slow
def test_rows_that_no_node_wrote_are_left_out(gone: GoneNode) -> None:
    commit = gone.commits[0]
    gone.say(
        gone.row(3, "s1", commit),
        gone.row(3, "s1", commit, uid="f" * 64),
        gone.row(0, "s1", commit),
        gone.row(10**15, "s1", commit),
        gone.row(3, "s1", commit),
    )
    gone.say(gone.row(4, "s1", commit), by="b")
    assert gone.restore().turns == 1


@pytest.mark.slow
def test_nothing_to_restore_is_a_node_with_an_empty_past(gone: GoneNode) -> None:
    report = gone.restore()
    assert (report.repositories, report.turns) == (1, 0)
    with gone.stores() as stores:
        assert stores.audit.verify().broken is None


def test_a_name_that_no_node_had_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be a slip; a node that recorded nothing is restored the same way."""
    made = from_fleet.FleetRestoreReport("nodd-1", "/state", repositories=2)
    monkeypatch.setattr(from_fleet, "restore_from_fleet", lambda *_, **options: made)
    restore_node(Mock(), "nodd-1", yes=False, even_if_alive=False, as_json=False)
    assert "the fleet has nothing that a node nodd-1 recorded" in capsys.readouterr().err


@pytest.mark.slow
def test_a_living_node_is_not_replaced(gone: GoneNode) -> None:
    with gone.spoken_for("a"):
        with pytest.raises(Conflict, match="node a is alive"):
            gone.restore(watch=2)
        assert not gone.layout.database.exists()
        assert gone.restore(watch=0.3, even_if_alive=True).node == "a"


@pytest.mark.slow
def test_a_name_that_another_living_node_has_is_refused(gone: GoneNode) -> None:
    with gone.spoken_for("a"), pytest.raises(Conflict, match="another node of that name is alive"):
        from_fleet.restore_from_fleet("c", gone.layout, gone.config, move_aside=False, watch=2)


@pytest.mark.slow
def test_a_used_directory_is_refused_or_moved_aside(gone: GoneNode) -> None:
    gone.restore()
    with pytest.raises(UsageError, match="was used before"):
        gone.restore()
    report = gone.restore(move_aside=True)
    assert report.aside is not None and (Path(report.aside) / "gitmirror.db").exists()
    with gone.stores() as stores:
        assert stores.audit.verify().broken is None


def test_killed_while_it_moves_things_into_place(gone: GoneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_sessions(gone)

    def half(building: object, layout: object) -> None:
        (gone.layout.state / "restoring" / "mirrors").rename(gone.layout.mirrors)
        raise OSError(5, "killed", "here")

    with monkeypatch.context() as patched:
        patched.setattr(from_fleet, "put_in_place", half)
        with pytest.raises(GitmirrorError, match="killed"):
            gone.restore()
    assert not gone.layout.database.exists()
    report = gone.restore()
    assert (report.turns, report.aside) == (4, None)
    assert not (gone.layout.state / "restoring").exists()
    assert Node(gone.layout, gone.config).unknown_turns() == []
