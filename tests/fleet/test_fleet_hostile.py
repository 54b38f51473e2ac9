"""A node that is broken or hostile writes whatever NATS lets it: the others go on, and show nothing that harms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from appliance.core.fleet.messages import NodeEntry, SessionEnd, SessionKept, TurnAttached
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.wire import LARGEST, write
from tests.conftest import WIDGETS
from tests.fleet.away import Elsewhere
from tests.support.gitutil import git, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

NAMES = FleetNames("hostile")
AT = "2026-11-27T08:00:00.000000Z"
ENTRY = NodeEntry("evil", "1.0", AT, AT, "git://127.0.0.1:1", "", 1, 1, 0, 0.0, 0, 0)


@pytest.fixture(scope="module")
def away(
    tmp_path_factory: pytest.TempPathFactory, generated_bare: Path, module_nats: NatsCluster
) -> Iterator[Elsewhere]:
    """Node `b`, and what another one, `a`, stores."""
    base = tmp_path_factory.mktemp("hostile")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        fleet = {"servers": module_nats.urls, "node": "b", "name": "hostile"}
        with Serve(base / "b", repos=[upstream.url(WIDGETS)], fleet=fleet).start() as serve:
            serve.wait_for_repo(WIDGETS)
            wait_until(lambda: " as b" in serve.log(), message="the fleet is there")
            yield Elsewhere.of(serve, module_nats, upstream, "hostile", base / "clone")
            assert "Traceback" not in serve.log()


def changed(message: Any, **changes: Any) -> bytes:
    """A message with other values than its class allows."""
    return json.dumps(json.loads(write(message)) | changes).encode()


def put(away: Elsewhere, subject: str, *data: bytes) -> None:
    """Publishes to a stream."""

    async def send(context: JetStreamContext) -> None:
        for each in data:
            await context.publish(subject, each)

    away.nats.ask(send)


ODD: tuple[dict[str, Any], ...] = (
    {"lag": 1e308}, {"lag": 10**400}, {"lag": -1.0}, {"repos": 10**400}, {"seq": -(10**400)}, {"behind": -5},
    {"waiting": 10**30}, {"version": "\x1b[2J\n[bold]x[/bold]"}, {"at": "2026-99-99T99:99:99Z"},
    {"started_at": "0000-00-00T00:00:00Z"}, {"url": "http://169.254.169.254/latest\r\nX: y"},
    {"url": "git://u:secret@h/\u202e"}, {"machine": "x" * 4000}, {"sessions": 2**63},
)  # fmt: skip


def test_what_a_node_says_of_itself(away: Elsewhere) -> None:
    for number, odd in enumerate(ODD):
        data = changed(ENTRY, node=f"evil-{number}", **odd)
        put(away, f"$KV.{NAMES.nodes}.evil-{number}", data, write(replace(ENTRY, node="b")), data)
    put(away, f"$KV.{NAMES.nodes}.seen", write(replace(ENTRY, node="seen")))

    def status() -> dict[str, Any]:
        return dict(json.loads(away.serve.here("fleet", "status", "--json", codes=(0, 3))))

    wait_until(lambda: "seen" in [each["node"] for each in status()["nodes"]], timeout=60, message="all was heard")
    assert not any(each["node"] == "b" and each["url"] == ENTRY.url for each in status()["nodes"])
    shown = away.serve.cli("fleet", "status", check=False)
    assert shown.returncode in (0, 3) and "\x1b" not in shown.stdout and "Traceback" not in shown.stderr, shown
    away.serve.cli_json("status")


def test_rows_of_any_kind(away: Elsewhere) -> None:
    row = replace(away.record("base", away.commit()), bundle=None, bundle_size=0, bundle_sha256=None, needs=())
    serve = away.serve

    def of(number: int, session: str, **changes: Any) -> bytes:
        return changed(replace(row, uid=f"{number:064x}", session=session, attachments=(), notes={}), **changes)

    put(
        away, NAMES.turns_of("a"),
        of(1, "ids", id=10**400), of(2, "bytes", bytes=2**63), of(3, "text", subject="\ud800\x1b[2J\x00"),
        of(4, "many", notes={f"k{n}": "v" * 100_000 for n in range(3)}), of(5, "notes", notes={"\x00" * 9000: "v"}),
        of(6, "oid", commit="a" * 64), of(7, "client", client="\x1b]0;x\x07", guest="\n\n"),
        of(8, "far", at="9999-12-30T00:00:00Z"), of(9, "past", at="0001-01-01T00:00:00Z"),
        of(10, "twice"), of(10, "twice", commit="b" * 40), of(10, "again"),
        of(11, "needs", needs=["c" * 40] * 10_000, bundle=f"{11:064x}", bundle_size=2**53 - 1, bundle_sha256="d" * 64),
        of(12, "files", attachments=[{"name": "../../x", "size": 1, "sha256": "e" * 64}] * 5_000),
        write(SessionEnd("a", WIDGETS, "twice", 10**400, (), "\x1b[2J" * 500)),
        write(SessionEnd("a", WIDGETS, "no-such", 2**63, tuple(f"{n:064x}" for n in range(100, 9_000)), "x")),
        write(SessionKept("a", "no/such", "s", True)),
        write(TurnAttached("9" * 64, "a", WIDGETS, "s", replace_attachment(2**39))),
        b"[" * 100_000, b'{"v":1,"kind":"turn"' + b" " * (LARGEST - 30) + b"}", b"x" * LARGEST, b"null", b"",
        of(99, "last"),
    )  # fmt: skip
    wait_until(lambda: "last" in sessions(serve), timeout=30, message="all of it was read")
    found = sessions(serve)
    assert {"base", "last", "far", "past"} <= found and "twice" not in found and "ids" not in found
    for session in found:
        shown = serve.cli("session", "show", WIDGETS, session, check=False)
        assert "\x1b" not in shown.stdout and "Traceback" not in shown.stderr, shown
        place = serve.state.parent / f"reader-{session}"
        git("init", "-q", "--bare", str(place))
        git("fetch", "-q", f"{serve.git_url}/{WIDGETS}", f"refs/agents/{session}", cwd=place, check=False)
    serve.cli_json("status")
    assert serve.cli("audit", "verify").returncode == 0
    assert serve.cli("find", "work", check=False).returncode in (0, 2)


def replace_attachment(size: int) -> Any:
    """An attachment of any size."""
    from appliance.core.fleet.messages import Attached

    return Attached("log", size, "e" * 64)


def sessions(serve: Serve) -> set[str]:
    """The names of the sessions that the node lists."""
    return {each["session"] for each in json.loads(serve.here("sessions", "--json"))}
