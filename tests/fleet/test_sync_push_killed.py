"""Kills `serve` at each step of a push that waits for the fleet: nothing told "ok" is lost, and sessions go on."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.fleet.test_fleet_out import OutNode, object_of
from tests.serving.conftest import commit_turn, entry_of
from tests.support.fleet import TestFleet, wait_connected
from tests.support.gitutil import refs, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.nats_proxy import NatsProxy
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

OBJECT, ENTRY, ROW = (
    b"$O.gitmirror-default-objects.C.",
    b"$O.gitmirror-default-objects.M.",
    b"gitmirror.default.turns.a ",
)

MOMENTS: dict[str, tuple[bytes | None, bytes | None]] = {
    "before the bundle": (b"PUB " + OBJECT, None),
    "before the object is complete": (b"PUB " + ENTRY, None),
    "after the object": (b"PUB " + ROW, None),
    "before the ack of the row": (None, b"PUB " + ROW),
}


@pytest.fixture(scope="module")
def proxy_and_node(
    tmp_path_factory: pytest.TempPathFactory, generated_bare: Path
) -> Iterator[tuple[NatsProxy, OutNode]]:
    """A node whose pushes wait for the fleet, behind a proxy."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    base = tmp_path_factory.mktemp("killed")
    with (
        NatsCluster(base / "nats") as nats,
        NatsProxy(nats.servers[0].host, nats.servers[0].port) as proxy,
        HttpUpstream(base / "upstream") as upstream,
        TestFleet(
            base, nats, ["a"], fleet={"durability": "sync", "sync_timeout": "3s", "servers": [proxy.url]}
        ) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        serve.keep_ports()
        wait_connected(serve)
        yield proxy, OutNode(serve, upstream, nats, "default")


def start_push(out: OutNode, guest: Path, session: str) -> subprocess.Popen[bytes]:
    """A push that goes on beside the test."""
    return subprocess.Popen(
        ["git", "push", "-q", "--force", "origin", f"HEAD:refs/agents/{session}"], cwd=guest, env=out.serve.env,
        stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(("moment", "existed"), list(zip(MOMENTS, (True, False, False, True), strict=True)), ids=str)
def test_killed_while_a_push_waits(
    proxy_and_node: tuple[NatsProxy, OutNode], tmp_path: Path, moment: str, existed: bool
) -> None:
    """The guest was told nothing; the turn is here, and goes out once."""
    (proxy, out), session = proxy_and_node, f"k-{moment.replace(' ', '-')}-{existed}"
    guest = out.guest(tmp_path / "guest")
    commits = []
    if existed:
        commits.append(commit_turn(guest, "before"))
        assert out.push(guest, session).returncode == 0
    commits.append(commit_turn(guest, moment))
    proxy.before, proxy.after = MOMENTS[moment]
    push = start_push(out, guest, session)
    assert proxy.stalled.wait(20)
    out.serve.kill()
    push.communicate(timeout=60)
    assert push.returncode != 0
    proxy.cut()
    out.serve.start()
    assert entry_of(out.serve, f"refs/agents/{session}")["outcome"] == "applied"
    rows = out.wait_rows(session, len(commits))
    assert [row.commit for row in rows] == commits
    commits.append(commit_turn(guest, "after"))
    assert out.push(guest, session).returncode == 0
    rows = out.wait_rows(session, len(commits))
    assert [row.commit for row in rows] == commits
    assert all(object_of(out.nats, row.uid) is not None for row in rows)


@pytest.mark.parametrize("existed", [False, True], ids=["new", "existed"])
def test_killed_after_the_ref_was_put_back(
    proxy_and_node: tuple[NatsProxy, OutNode], tmp_path: Path, existed: bool
) -> None:
    """Its outcome could not be logged; the next start sees that the push was undone."""
    (proxy, out), session = proxy_and_node, f"undone-{existed}"
    guest, mirror = out.guest(tmp_path / "guest"), out.serve.mirror(WIDGETS)
    first = None
    if existed:
        first = commit_turn(guest, "before")
        assert out.push(guest, session).returncode == 0
    commit = commit_turn(guest, "undone")
    proxy.before = b"PUB " + OBJECT
    push = start_push(out, guest, session)
    assert proxy.stalled.wait(20)
    assert refs(mirror)[f"refs/agents/{session}"] == commit
    with sqlite3.connect(out.serve.state / "gitmirror.db", isolation_level=None) as lock:
        lock.execute("BEGIN IMMEDIATE")
        wait_until(
            lambda: refs(mirror).get(f"refs/agents/{session}") == first, timeout=60, message="the ref is put back"
        )
        out.serve.kill()
        lock.execute("ROLLBACK")
    lock.close()
    push.communicate(timeout=60)
    proxy.cut()
    out.serve.start()
    wait_connected(out.serve)
    entry = entry_of(out.serve, f"refs/agents/{session}")
    assert entry["outcome"] == "failed"
    assert f"refs/gitmirror/turns/{entry['id']}" not in refs(mirror)
    assert refs(mirror).get(f"refs/agents/{session}") == first
    assert out.push(guest, session).returncode == 0
    assert [row.commit for row in out.wait_rows(session, 2 if existed else 1)] == [*([first] if first else []), commit]


def test_a_row_that_arrived_although_the_guest_was_told_no(
    proxy_and_node: tuple[NatsProxy, OutNode], tmp_path: Path
) -> None:
    """The fleet has that turn, under an id that is not sent again; the session goes on here."""
    (proxy, out), session = proxy_and_node, "lost-ack"
    guest = out.guest(tmp_path / "guest")
    commit = commit_turn(guest, "lost")
    proxy.after = b"PUB " + ROW
    done = out.push(guest, session)
    assert done.returncode == 1 and "the fleet did not store it within 3s" in done.stderr
    proxy.cut()
    assert [row.commit for row in out.wait_rows(session, 1)] == [commit]
    assert entry_of(out.serve, f"refs/agents/{session}")["outcome"] == "failed"
    wait_until(lambda: out.push(guest, session).returncode == 0, timeout=60, message="a push is stored")
    first, second = out.wait_rows(session, 2)
    assert first.commit == second.commit == commit and first.uid != second.uid
    assert object_of(out.nats, first.uid) is not None, "its bundle stays, because its row is in the stream"
