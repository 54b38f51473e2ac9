"""What other nodes recorded, ended and kept arrives on a node that serves, through real NATS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from appliance.core.fleet.messages import SessionEnd, SessionKept, TurnAttached, TurnRow
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.wire import write
from tests.support.fleet import TestFleet
from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve

pytestmark = pytest.mark.slow

REPO = "acme/widgets"
NAMES = FleetNames("in")
ROW = TurnRow(
    uid="a" * 64, node="b", id=7, repo=REPO, session="s", commit="b" * 40, old=None, base=None,
    at="2026-11-27T08:00:00.123Z", subject="A change", commits=1, files_changed=2, insertions=3, deletions=4,
    client="10.0.0.1:5", guest=None, bytes=5, bundle=None, bundle_size=0, bundle_sha256=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, module_nats: NatsCluster) -> Iterator[Serve]:
    """The node `a`, without repositories."""
    settings = {"fleet": {"name": "in"}}
    with TestFleet(tmp_path_factory.mktemp("fleet"), module_nats, ["a"], **settings) as nodes:
        nodes.start()

        wait_until(lambda: _send(module_nats, row(0, "first")), timeout=60, message="the stream is there")
        yield nodes["a"]


def publish(nats: NatsCluster, *messages: TurnRow | TurnAttached | SessionEnd | SessionKept | bytes) -> int:
    """Sends messages as their nodes do, bytes as node `b`; returns the place of the last one."""

    async def send(context: JetStreamContext) -> int:
        acks = [
            await context.publish(NAMES.turns_of("b"), each)
            if isinstance(each, bytes)
            else await context.publish(NAMES.turns_of(each.node), write(each))
            for each in messages
        ]
        return acks[-1].seq

    return nats.ask(send)


def row(number: int, session: str, **changes: Any) -> TurnRow:
    return replace(ROW, uid=f"{number:064x}", commit=f"{number:040x}", session=session, **changes)


def listed(serve: Serve) -> dict[str, dict[str, Any]]:
    return {each["session"]: each for each in json.loads(serve.here("sessions", "--json"))}


def test_sessions_of_others_are_listed(serve: Serve, module_nats: NatsCluster) -> None:
    """Also those of a repository that is not registered here, and whatever is not ours beside them."""
    publish(
        module_nats, b"\xff", b"{}", write(row(1, "listed")).replace(b'"v":1', b'"v":2'), row(1, "listed"),
        row(2, "listed", node="c"), row(1, "listed"), SessionKept("c", REPO, "listed", True),
    )  # fmt: skip
    wait_until(lambda: listed(serve).get("listed", {}).get("kept"), timeout=60, message="the session is listed")
    found = listed(serve)["listed"]
    assert (found["turns"], found["node"], found["tip"]) == (2, "c", f"{2:040x}")
    assert "is skipped: it is no JSON" in serve.log() and serve.log().count("it is of another version") == 1


def test_a_node_speaks_for_itself_alone(serve: Serve, module_nats: NatsCluster) -> None:
    """The server holds a node to its own subject, and so must the nodes."""
    publish(
        module_nats, row(20, "mine", node="c"), write(row(21, "mine", node="c")), write(row(22, "forged", node="a")),
        write(SessionEnd("c", REPO, "mine", 2**53, (row(20, "mine").uid,), "forged")),
        write(SessionKept("c", REPO, "mine", True)), row(23, "last"),
    )  # fmt: skip
    wait_until(lambda: "last" in listed(serve), timeout=60, message="all of it was read")
    found = listed(serve)
    assert "forged" not in found and (found["mine"]["turns"], found["mine"]["kept"]) == (1, False)
    assert "it speaks for c on the subject of another node" in serve.log()


def test_an_end_comes_in_its_place(serve: Serve, module_nats: NatsCluster) -> None:
    last = publish(module_nats, row(10, "ended"), row(11, "ended"))
    publish(
        module_nats, row(12, "ended"), SessionEnd("b", REPO, "ended", last, (), "ended by an operator"),
        row(10, "ended"), row(13, "after"),
    )  # fmt: skip
    wait_until(lambda: "after" in listed(serve), timeout=60, message="all of it was read")
    assert listed(serve)["ended"]["tip"] == f"{12:040x}" and listed(serve)["ended"]["turns"] == 1
    wait_until(lambda: "session ended was ended on node b: ended by an operator" in serve.log(), message="it is said")
    serve.here("audit", "verify")


def test_it_goes_on_where_it_was(tmp_path: Path, nats: NatsCluster) -> None:
    """After a kill of the node, of the server, and with a stream that is made anew."""
    with TestFleet(tmp_path, nats, ["a"], fleet={"name": "in"}) as nodes:
        serve = nodes.start()["a"]
        wait_until(lambda: _send(nats, row(1, "one")), timeout=60, message="the stream is there")
        wait_until(lambda: "one" in listed(serve), timeout=60, message="the first is there")
        serve.kill()
        publish(nats, row(2, "two"))
        serve.restart() if serve.running else serve.start()
        wait_until(lambda: "two" in listed(serve), timeout=60, message="what came meanwhile is there")
        nats.servers[0].stop()
        nats.servers[0].start()
        nats.wait()
        publish(nats, row(3, "three"))
        wait_until(lambda: "three" in listed(serve), timeout=60, message="it reads after a restart of NATS")

        async def anew(context: JetStreamContext) -> bool:
            return await context.delete_stream(NAMES.turns)

        nats.ask(anew)
        serve.kill()
        serve.start()
        wait_until(lambda: _send(nats, row(4, "four")), timeout=60, message="the stream is there again")
        wait_until(lambda: "four" in listed(serve), timeout=60, message="it reads the new stream")
        assert set(listed(serve)) == {"one", "two", "three", "four"}


def _send(nats: NatsCluster, message: TurnRow) -> bool:
    try:
        return publish(nats, message) > 0
    except Exception:
        return False
