"""What cannot go out waits or is set aside, and nobody else is held up."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from appliance.core.fleet.messages import SessionEnd, SessionKept
from tests.conftest import WIDGETS
from tests.fleet.test_fleet_out import OutNode, object_of, turns_in
from tests.serving.conftest import commit_turn
from tests.support.fleet import TestFleet
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.nats_proxy import NatsProxy
from tests.support.serve import Section
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow


@pytest.fixture
def node(tmp_path: Path, nats: NatsCluster, generated_bare: Path) -> Iterator[OutNode]:
    """A node of this test alone, on a server of its own."""
    with HttpUpstream(tmp_path / "upstream") as upstream, TestFleet(tmp_path, nats, ["a"]) as nodes:
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        serve.keep_ports()
        yield OutNode(serve, upstream, nats, "default")


def test_a_turn_whose_commit_is_gone_is_set_aside(node: OutNode, tmp_path: Path) -> None:
    """The other turns of its session go out, and those of others."""
    guest = node.guest(tmp_path / "guest")
    node.nats.servers[0].stop()
    commits = []
    for number in range(3):
        commits.append(commit_turn(guest, f"turn {number}"))
        assert node.push(guest, "poisoned").returncode == 0
    mirror = node.serve.mirror(WIDGETS)
    lost = git("rev-parse", f"{commits[1]}^{{tree}}", cwd=mirror).strip()
    found = mirror / "objects" / lost[:2] / lost[2:]
    assert found.exists()
    git("checkout", "-q", "--orphan", "other", cwd=guest)
    commit_turn(guest, "other")
    assert node.push(guest, "fine").returncode == 0
    found.unlink()
    node.nats.servers[0].start()
    node.nats.wait()
    node.wait_rows("fine", 1)
    [first, *_] = node.wait_rows("poisoned", 1)
    assert first.commit == commits[0]
    wait_until(lambda: "is set aside" in node.serve.log(), timeout=60, message="it is set aside")
    assert f"turn {first.id + 2} of poisoned in {WIDGETS} cannot go to the fleet" in node.serve.log()
    assert "set aside" in node.warnings()
    node.serve.cli("session", "drop", WIDGETS, "poisoned", "--yes")
    wait_until(lambda: "set aside" not in node.warnings(), message="it is no trouble once its session has ended")


def test_a_full_store_holds_nobody_up(node: OutNode, tmp_path: Path) -> None:
    """Turns are recorded, guests are served, and it goes out once there is room again."""

    async def limit(context: JetStreamContext, most: int) -> None:
        info = await context.stream_info("OBJ_gitmirror-default-objects")
        info.config.max_bytes = most
        await context.update_stream(info.config)

    node.nats.ask(lambda context: limit(context, 1000))
    guest = node.guest(tmp_path / "guest")
    commits = [commit_files(guest, {"large.bin": os.urandom(400_000)}, "does not fit")]
    assert node.push(guest, "full").returncode == 0
    wait_until(lambda: "does not reach the fleet" in node.serve.log(), timeout=60, message="the node says so")
    node.serve.clone(tmp_path / "clone", WIDGETS)
    commits.append(commit_turn(guest, "is recorded all the same"))
    assert node.push(guest, "full").returncode == 0
    node.nats.ask(lambda context: limit(context, -1))
    assert [row.commit for row in node.wait_rows("full", 2)] == commits


def test_a_refused_permission_holds_nobody_up(tmp_path: Path, generated_bare: Path) -> None:
    """A server that takes no rows: the turn waits, and guests notice nothing."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    deny = 'publish: { deny: "gitmirror.default.turns.>" }'
    deny = f"no_auth_user: n\nauthorization {{ users: [{{ user: n, password: n, permissions: {{ {deny} }} }}] }}"
    with (
        NatsCluster(tmp_path / "nats", extra=deny) as nats,
        HttpUpstream(tmp_path / "upstream") as upstream,
        TestFleet(tmp_path, nats, ["a"]) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        node = OutNode(serve, upstream, nats, "default")
        guest = node.guest(tmp_path / "guest")
        commit_turn(guest, "denied")
        assert node.push(guest, "denied").returncode == 0
        serve.clone(tmp_path / "clone", WIDGETS)
        wait_until(lambda: "does not reach the fleet" in serve.log(), timeout=30, message="the node says so")
        assert node.push(guest, "denied-2").returncode == 0
        assert node.rows() == []


def test_private_turns_stay_until_they_are_public(node: OutNode, tmp_path: Path) -> None:
    guest = node.guest(tmp_path / "guest")
    base: Section = {"servers": node.nats.urls, "node": "a", "replicas": 1}
    refresh: Section = {"interval": "1s", "allow_local": True}
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    private: Section = [{"url": node.upstream.url(WIDGETS), "token_file": str(token)}]
    node.serve.configure(fleet=base, refresh=refresh, credentials=private)
    node.serve.reload()
    wait_until(lambda: "was read again" in node.serve.log(), timeout=60, message="it is private")
    issued = node.serve.cli_json("token", "issue", "--repo", WIDGETS, "--ttl", "1h")["token"]
    commit = commit_turn(guest, "private")
    header = f"http.extraHeader=Authorization: Bearer {issued}"
    git("-c", header, "push", "-q", f"{node.serve.http_url}/{WIDGETS}", "HEAD:refs/agents/hidden", cwd=guest)
    wait_until(lambda: node.database("SELECT 1 FROM turns"), timeout=60, message="it is recorded")
    node.serve.restart()
    assert node.rows() == []
    node.serve.configure(fleet=base, refresh=refresh)
    node.serve.reload()
    assert [row.commit for row in node.wait_rows("hidden", 1)] == [commit]


def test_ends_and_keeps_go_out_and_objects_are_removed(node: OutNode, tmp_path: Path) -> None:
    guest = node.guest(tmp_path / "guest")
    commit_turn(guest, "ends")
    assert node.push(guest, "ends").returncode == 0
    [row] = node.wait_rows("ends", 1)
    wait_until(
        lambda: node.database("SELECT 1 FROM turns WHERE seq IS NOT NULL"), timeout=60, message="its place is stored"
    )
    [(seq,)] = node.database("SELECT seq FROM turns")
    with sqlite3.connect(node.serve.state / "gitmirror.db") as connection:
        insert = "INSERT INTO fleet_outbox (kind, document, created_at) VALUES (?, ?, 0)"
        kept = f'{{"repo": "{WIDGETS}", "session": "ends", "kept": true}}'
        ended = (
            f'{{"repo": "{WIDGETS}", "session": "ends", "upto": {seq}, "uids": ["{row.uid}"], "reason": "x", '
            f'"rows": [{seq}]}}'
        )
        connection.execute(insert, ["kept", kept])
        connection.execute(insert, ["end", ended])
    connection.close()
    wait_until(lambda: not node.database("SELECT 1 FROM fleet_outbox"), timeout=60, message="they are out")
    wait_until(lambda: object_of(node.nats, row.uid) is None, timeout=60, message="its bundle is removed")
    wait_until(lambda: turns_in(node.rows(), "ends") == [], timeout=60, message="its row is removed")
    kinds = [type(each) for each in node.rows()]
    assert kinds == [SessionKept, SessionEnd]


def test_an_interrupted_put_leaves_nothing(tmp_path: Path, nats: NatsCluster, generated_bare: Path) -> None:
    """The connection is lost in the middle of a bundle: nobody sees half of it, and the next try leaves no pieces."""
    with (
        NatsProxy(nats.servers[0].host, nats.servers[0].port) as proxy,
        HttpUpstream(tmp_path / "upstream") as upstream,
        TestFleet(tmp_path, nats, ["a"], fleet={"servers": [proxy.url]}) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        node = OutNode(serve, upstream, nats, "default")
        guest = node.guest(tmp_path / "guest")
        git("config", "core.compression", "0", cwd=guest)
        commit = commit_files(guest, {"large.bin": os.urandom(1_500_000)}, "large")
        proxy.before = b"PUB $O.gitmirror-default-objects.M."
        assert node.push(guest, "large").returncode == 0
        assert proxy.stalled.wait(30)

        async def messages(context: JetStreamContext) -> int:
            return int((await context.stream_info("OBJ_gitmirror-default-objects")).state.messages)

        pieces = nats.ask(messages)
        assert pieces > 10
        proxy.cut()
        [row] = node.wait_rows("large", 1)
        assert row.commit == commit
        assert nats.ask(messages) == pieces + 1, "the pieces, and the entry"
        data = object_of(nats, row.uid)
        assert data is not None and len(data) == row.bundle_size


@pytest.mark.parametrize("has_bundle", [True, False])
def test_a_purge_ends_a_turn_that_is_going_out(
    tmp_path: Path, nats: NatsCluster, generated_bare: Path, has_bundle: bool
) -> None:
    """Its row is in the stream, and the node never heard so: the other nodes are told all the same.

    A turn at a commit of the upstream has no bundle.
    """
    with (
        NatsProxy(nats.servers[0].host, nats.servers[0].port) as proxy,
        HttpUpstream(tmp_path / "upstream") as upstream,
        TestFleet(tmp_path, nats, ["a", "b"]) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        nodes.nodes["a"] = nodes.make("a", fleet={"servers": [proxy.url]})
        a, b = nodes.start().nodes.values()
        a.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        b.wait_for_repo(WIDGETS)
        node = OutNode(a, upstream, nats, "default")
        guest = node.guest(tmp_path / "guest")
        if has_bundle:
            commit_turn(guest, "is going out")
        proxy.after = b"PUB gitmirror.default.turns."
        assert node.push(guest, "going").returncode == 0
        [row] = node.wait_rows("going", 1)
        assert (row.bundle is not None) == has_bundle
        wait_until(lambda: b.cli_json("sessions"), message="the other node lists it")
        a.cli("remove-repo", WIDGETS, "--purge", "--yes", check=False, timeout=120)
        assert node.database("SELECT 1 FROM turns") == []
        proxy.cut()
        wait_until(
            lambda: [each for each in node.rows() if isinstance(each, SessionEnd) and row.uid in each.uids],
            message="the end is in the stream",
        )
        wait_until(lambda: b.cli_json("sessions") == [], message="no node lists it")


def test_a_large_bundle_takes_little_memory(node: OutNode, tmp_path: Path) -> None:
    """It goes from git through a file into the store, a piece at a time."""
    guest = node.guest(tmp_path / "guest")
    git("config", "core.compression", "0", cwd=guest)
    commit_turn(guest, "first")
    assert node.push(guest, "large").returncode == 0
    node.wait_rows("large", 1)

    def peak() -> int:
        status = Path(f"/proc/{node.serve.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    before, size = peak(), 24 * 2**20
    commit_files(guest, {"large.bin": os.urandom(size)}, "large")
    assert node.push(guest, "large").returncode == 0
    wait_until(lambda: len(turns_in(node.rows(), "large")) == 2, timeout=120, message="it is out")
    assert turns_in(node.rows(), "large")[1].bundle_size > size
    # Of any size, it takes about six megabytes.
    assert peak() - before < 16 * 2**20


def test_a_server_that_answers_nobody_holds_no_guest_up(node: OutNode, tmp_path: Path) -> None:
    """With the server frozen, everything that guests do is done before it answers again."""
    guest = node.guest(tmp_path / "guest")
    server = node.nats.servers[0]
    server.freeze()
    try:
        commits = []
        for number in range(5):
            commits.append(commit_turn(guest, f"frozen {number}"))
            assert node.push(guest, "frozen").returncode == 0
        node.serve.clone(tmp_path / "clone", WIDGETS)
        [(turns,)] = node.database("SELECT count(*) FROM turns WHERE session = 'frozen' AND seq IS NULL")
        assert turns == 5
    finally:
        server.thaw()
    assert [row.commit for row in node.wait_rows("frozen", 5)] == commits
