"""What a node records goes out: as a bundle in the object store and a row in the stream."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from appliance.core.fleet.messages import SessionEnd, SessionKept, TurnAttached, TurnRow
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.wire import read
from tests.conftest import WIDGETS
from tests.serving.conftest import commit_turn
from tests.support.fleet import TestFleet
from tests.support.gitutil import git, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

Row = TurnRow | TurnAttached | SessionEnd | SessionKept


def rows_of(nats: NatsCluster, fleet: str = "default") -> list[Row]:
    """What is in the stream, in order."""
    names = FleetNames(fleet)

    async def all_of(context: JetStreamContext) -> list[Row]:
        found: list[Row] = []
        info = await context.stream_info(names.turns)
        for seq in range(max(1, info.state.first_seq), info.state.last_seq + 1):
            try:
                message = await context.get_msg(names.turns, seq)
            except NotFoundError:
                continue
            row = read(message.data, TurnRow, TurnAttached, SessionEnd, SessionKept)
            assert isinstance(row, Row)
            found.append(row)
        return found

    return nats.ask(all_of)


def object_of(nats: NatsCluster, name: str, fleet: str = "default") -> bytes | None:
    """The bytes of an object, as nats-py reads it."""

    async def get(context: JetStreamContext) -> bytes | None:
        store = await context.object_store(FleetNames(fleet).objects)
        try:
            return bytes((await store.get(name)).data or b"")
        except NotFoundError:
            return None

    return nats.ask(get)


def turns_in(rows: list[Row], session: str) -> list[TurnRow]:
    """The rows of a session's turns."""
    return [row for row in rows if isinstance(row, TurnRow) and row.session == session]


class OutNode:
    """One node of a fleet, its upstream and its NATS server."""

    def __init__(self, serve: Serve, upstream: HttpUpstream, nats: NatsCluster, fleet: str) -> None:
        self.serve = serve
        self.upstream = upstream
        self.nats = nats
        self.fleet = fleet

    def guest(self, path: Path) -> Path:
        """A clone."""
        return self.serve.clone(path, WIDGETS)

    def push(self, guest: Path, session: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Pushes HEAD to a session."""
        return subprocess.run(
            ["git", "push", "--force", *options, "origin", f"HEAD:refs/agents/{session}"],
            cwd=guest, capture_output=True, text=True, check=False, env=self.serve.env,
        )  # fmt: skip

    def rows(self) -> list[Row]:
        """What is in the stream."""
        return rows_of(self.nats, self.fleet)

    def wait_rows(self, session: str, count: int) -> list[TurnRow]:
        """Waits for so many turns of a session in the stream."""
        wait_until(lambda: len(turns_in(self.rows(), session)) >= count, timeout=60, message=f"{session} is out")
        return turns_in(self.rows(), session)

    def warnings(self) -> str:
        """What `fleet status` warns of."""
        return str(json.loads(self.serve.cli("fleet", "status", "--json", check=False).stdout)["warnings"])

    def database(self, query: str) -> list[tuple[Any, ...]]:
        """Reads the node's database."""
        import sqlite3

        connection = sqlite3.connect(f"file:{self.serve.state}/gitmirror.db?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, module_nats: NatsCluster, generated_bare: Path) -> Iterator[OutNode]:
    """A node that sends in the background."""
    base = tmp_path_factory.mktemp("out")
    with (
        HttpUpstream(base / "upstream") as upstream,
        TestFleet(base, module_nats, ["a"], fleet={"name": "out"}) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        yield OutNode(serve, upstream, module_nats, "out")


def test_a_turn_goes_out_with_its_bundle(out: OutNode, tmp_path: Path) -> None:
    guest = out.guest(tmp_path / "guest")
    commit = commit_turn(guest, "one")
    assert out.push(guest, "s1").returncode == 0
    began = time.monotonic()
    [row] = out.wait_rows("s1", 1)
    print(f"it was out after {time.monotonic() - began:.2f} s")
    assert (row.commit, row.node, row.repo, row.old) == (commit, "a", WIDGETS, None)
    data = object_of(out.nats, row.uid, out.fleet)
    assert data is not None
    assert (len(data), hashlib.sha256(data).hexdigest()) == (row.bundle_size, row.bundle_sha256)
    bundle = tmp_path / "turn.bundle"
    bundle.write_bytes(data)
    fresh = tmp_path / "fresh.git"
    git("clone", "-q", "--bare", out.upstream.url(WIDGETS), str(fresh), cwd=tmp_path)
    for needed in row.needs:
        git("cat-file", "-e", f"{needed}^{{commit}}", cwd=fresh)
    git("fetch", "-q", str(bundle), "refs/agents/s1:refs/heads/turn", cwd=fresh)
    assert git("rev-parse", "turn", cwd=fresh).strip() == commit
    [(seq, node, uid)] = wait_until(
        lambda: out.database("SELECT seq, node, uid FROM turns WHERE session = 's1' AND seq IS NOT NULL"),
        timeout=60, message="its place is stored",
    )  # fmt: skip
    assert seq >= 1 and (node, uid) == ("a", row.uid)
    [(logged,)] = out.database(f"SELECT hash FROM audit_events WHERE id = {row.id}")
    assert logged == uid
    [(document,)] = out.database(f"SELECT document FROM fleet_turns WHERE uid = '{row.uid}'")
    assert json.loads(document)["commit"] == commit


def test_turns_of_a_session_go_out_in_order(out: OutNode, tmp_path: Path) -> None:
    guest = out.guest(tmp_path / "guest")
    commits = []
    for number in range(5):
        commits.append(commit_turn(guest, f"turn {number}"))
        assert out.push(guest, "order").returncode == 0
    rows = out.wait_rows("order", 5)
    assert [row.commit for row in rows] == commits
    assert [row.old for row in rows] == [None, *commits[:-1]]


def test_a_commit_of_the_upstream_has_no_bundle(out: OutNode, tmp_path: Path) -> None:
    guest = out.guest(tmp_path / "guest")
    assert out.push(guest, "upstreams").returncode == 0
    [row] = out.wait_rows("upstreams", 1)
    assert (row.bundle, row.bundle_size, row.bundle_sha256, row.needs) == (None, 0, None, ())
    assert object_of(out.nats, row.uid, out.fleet) is None


def test_what_waited_while_the_fleet_was_away_goes_out(nats: NatsCluster, tmp_path: Path, generated_bare: Path) -> None:
    """Also over a restart of the node, each turn once."""
    with HttpUpstream(tmp_path / "upstream") as upstream, TestFleet(tmp_path, nats, ["a"]) as nodes:
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        node = OutNode(serve, upstream, nats, "default")
        guest = node.guest(tmp_path / "guest")
        nats.servers[0].stop()
        commits = []
        for number in range(3):
            commits.append(commit_turn(guest, f"away {number}"))
            assert node.push(guest, "waited").returncode == 0
        serve.kill()
        nats.servers[0].start()
        nats.wait()
        serve.keep_ports()
        serve.start()
        assert [row.commit for row in node.wait_rows("waited", 3)] == commits
        commits.append(commit_turn(guest, "later"))
        assert node.push(guest, "waited").returncode == 0
        assert [row.commit for row in node.wait_rows("waited", 4)] == commits


def test_a_lost_bundle_is_put_again_as_it_was(out: OutNode, tmp_path: Path) -> None:
    """A turn whose row reached the stream without our hearing of it is not sent with other bytes."""
    guest = out.guest(tmp_path / "guest")
    commit_turn(guest, "once")
    assert out.push(guest, "again").returncode == 0
    [row] = out.wait_rows("again", 1)

    async def chunks(context: JetStreamContext) -> int:
        return int((await context.stream_info(f"OBJ_{FleetNames(out.fleet).objects}")).state.messages)

    before = out.nats.ask(chunks)
    out.serve.kill()
    import sqlite3

    with sqlite3.connect(out.serve.state / "gitmirror.db") as connection:
        connection.execute("UPDATE turns SET seq = NULL WHERE session = 'again'")
        connection.execute("DELETE FROM fleet_turns WHERE uid = ?", [row.uid])
    connection.close()
    out.serve.keep_ports()
    out.serve.start()
    wait_until(
        lambda: out.database("SELECT seq FROM turns WHERE session = 'again' AND seq IS NOT NULL"),
        timeout=60, message="it has a place again",
    )  # fmt: skip
    assert out.nats.ask(chunks) == before
    assert turns_in(out.rows(), "again") == [row]


def test_an_object_that_is_not_the_attachment_is_replaced(out: OutNode, tmp_path: Path) -> None:
    """Such as one that a broken node stored under the name."""
    import urllib.request

    data, guest = b"what was attached", out.guest(tmp_path / "guest")
    name = hashlib.sha256(data).hexdigest()

    async def put(context: JetStreamContext) -> None:
        await (await context.object_store(FleetNames(out.fleet).objects)).put(name, b"something else")

    out.nats.ask(put)
    commit = commit_turn(guest, "with a file")
    assert out.push(guest, "replaced").returncode == 0
    url = f"{out.serve.http_url}/{WIDGETS}/agents/replaced/{commit}/attachments/log.txt"
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method="PUT"), timeout=20):
        pass
    wait_until(lambda: object_of(out.nats, name, out.fleet) == data, timeout=60, message="the right one is there")
    wait_until(
        lambda: [row for row in out.rows() if isinstance(row, TurnAttached) and row.session == "replaced"],
        timeout=60, message="its row is out",
    )  # fmt: skip


def test_attachments_go_out(out: OutNode, tmp_path: Path) -> None:
    guest = out.guest(tmp_path / "guest")
    commit = commit_turn(guest, "with a file")
    assert out.push(guest, "files").returncode == 0
    import urllib.request

    url = f"{out.serve.http_url}/{WIDGETS}/agents/files/{commit}/attachments/log.txt"
    request = urllib.request.Request(url, data=b"hello", method="PUT")
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status in (200, 201)

    def attached() -> list[TurnAttached]:
        return [row for row in out.rows() if isinstance(row, TurnAttached) and row.session == "files"]

    wait_until(attached, timeout=60, message="the file is out")
    [row] = attached()
    assert (row.session, row.attachment.name, row.attachment.size) == ("files", "log.txt", 5)
    assert object_of(out.nats, row.attachment.sha256, out.fleet) == b"hello"
