"""The operators' port: health, readiness and metrics. Also the activity."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.core.models import Hydration
from appliance.core.store import activity as store_module
from appliance.core.store import write_behind
from appliance.core.store.activity import ActivityStore
from appliance.core.store.database import Database, StoreError
from appliance.core.store.write_behind import WriteBehind
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED, Node
from tests.serving.fetch.conftest import (
    GatedNode,
    a_cold_shape,
    cache_of,
    guest_env,
    metric,
    metrics_of,
    status_of,
    wait_warm,
)
from tests.serving.fetch.test_flight import ends, start_guests
from tests.serving.fetch.wire import HttpGuest, http_ask, open_v2
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_result, wait_until
from tests.support.pkt import PushConnection
from tests.support.serve import Value
from tests.support.upstream import HttpUpstream

# Routes


def test_each_port_has_its_own_routes(node: Node) -> None:
    """Nothing of the operators' is on the guests' port, and no repository on theirs; alive on both."""
    for url in (node.serve.http_url, node.serve.admin_url):
        assert (http_ask(f"{url}/healthz").status, http_ask(f"{url}/healthz").body) == (200, b"ok\n")
    assert http_ask(f"{node.serve.admin_url}/readyz").body == b"ready\n"
    for path in ("/metrics", "/readyz", "/hooks/github"):
        assert http_ask(node.serve.http_url + path).status == 404
    for path in (f"/{WIDGETS}/info/refs?service=git-upload-pack", f"/{WIDGETS}/git-upload-pack", "/guest.sh", "/"):
        assert http_ask(node.serve.admin_url + path).status == 404
    assert git_result("ls-remote", f"{node.serve.admin_url}/{WIDGETS}")[0] == 128
    with HttpGuest(node.serve.admin_url) as guest:
        for _ in range(3):
            assert guest.ask("HEAD", "/healthz").headers["content-length"] == "3"
            assert guest.ask("GET", "/readyz").status == 200
    assert http_ask(f"{node.serve.admin_url}/metrics", "POST", {}, b"x").status == 405


def test_ready_means_that_every_repository_was_tried(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """503 with its name while a first clone hangs, and ready once it has failed or come."""
    upstream.on(WIDGETS).hang = True
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    reply = http_ask(f"{serve.admin_url}/readyz")
    assert (reply.status, reply.body) == (503, f"not tried yet: {WIDGETS}\n".encode())
    assert http_ask(f"{serve.admin_url}/healthz").status == 200
    upstream.on(WIDGETS).hang = False
    wait_until(lambda: http_ask(f"{serve.admin_url}/readyz").status == 200, message="it is ready")


# Metrics


def test_the_page_is_what_prometheus_reads(node: Node) -> None:
    """Type and content, every family with a help line and a name of its own."""
    reply = http_ask(f"{node.serve.admin_url}/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(reply.body.decode()))
    assert len({family.name for family in families}) == len(families)
    assert all(family.name.startswith("gitmirror_") and family.documentation for family in families)


@pytest.mark.slow
def test_hydrations_are_counted_by_repository_way_and_protocol(gated_node: GatedNode, tmp_path: Path) -> None:
    """Hit, joined, miss and direct, on git:// and HTTP, with bytes and times. Listing refs does not count."""
    node = gated_node

    def count(way: str, protocol: str, name: str = "gitmirror_hydrations_total") -> float:
        return metric(node.serve, name, repo=WIDGETS, way=way, protocol=protocol)

    ways = [(way, protocol) for way in ("hit", "joined", "miss", "direct") for protocol in ("git", "http")]
    before = {each: count(*each) for each in ways}
    sent = count("miss", "git", "gitmirror_hydration_bytes_total")
    guests, shape, _ = start_guests(node, tmp_path, 2)
    node.gate.open()
    assert [ends(each)[0] for each in guests] == [0, 0]
    for number, http in enumerate((False, True)):
        node.serve.clone(tmp_path / f"hit{number}", WIDGETS, shape, http=http)
        base = node.serve.http_url if http else node.serve.git_url
        for version in (0, 1):
            old = ("-c", f"protocol.version={version}")
            git(*old, "clone", "--quiet", "--depth=2", f"{base}/{WIDGETS}", str(tmp_path / f"old{http}{version}"))
            git(*old, "ls-remote", f"{base}/{WIDGETS}")
    expected = {("miss", "git"): 1, ("joined", "http"): 1, ("hit", "git"): 1, ("hit", "http"): 1, ("direct", "git"): 2}

    def changed() -> Mapping[tuple[str, str], float]:
        return {each: count(*each) - before[each] for each in ways if count(*each) != before[each]}

    # What git daemon serves is counted when its connection ends. Over HTTP, v0 takes two rounds for a depth.
    wait_until(lambda: expected.items() <= changed().items(), message="all are counted")
    assert changed().pop(("direct", "http"), 0) >= 2  # type: ignore[attr-defined]
    pack = sum(each.stat().st_size for each in (tmp_path / "clone0/.git/objects/pack").glob("*.pack"))
    assert count("miss", "git", "gitmirror_hydration_bytes_total") - sent > pack
    for name in ("gitmirror_hydration_seconds", "gitmirror_hydration_first_byte_seconds"):
        assert metric(node.serve, f"{name}_count", way="miss", protocol="git") >= 1
        assert metric(node.serve, f"{name}_bucket", way="miss", protocol="git", le="+Inf") >= 1
    assert metric(node.serve, "gitmirror_hydration_seconds_sum", way="miss", protocol="git") > 0


@pytest.mark.slow
def test_refreshes_lag_and_states_are_told_by_repository(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Refreshes by result. Lag grows while an upstream fails and falls when it recovers."""
    refresh = {"interval": "1h", "stale_after": "1s"}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=refresh).start()
    wait_until(lambda: status_of(serve)["repos"][0]["tip"], message="it is cloned")

    def count(result: str) -> float:
        return metric(serve, "gitmirror_refreshes_total", repo=WIDGETS, result=result)

    # It is counted once it is stored, which is after the tip is known.
    wait_until(lambda: count("moved") == 1, message="it is counted")
    serve.cli("refresh", WIDGETS)
    assert (count("moved"), count("unchanged"), count("failed")) == (1, 1, 0)
    add_commit(upstream.path(WIDGETS), "main", {"x": "1"})
    serve.cli("refresh", WIDGETS)
    upstream.everywhere.fail = True
    assert serve.cli("refresh", WIDGETS, check=False).returncode == 1
    assert (count("moved"), count("unchanged"), count("failed")) == (2, 1, 1)
    wait_until(lambda: metric(serve, "gitmirror_lag_seconds", repo=WIDGETS) > 1, message="it lags")
    [state] = [dict(labels)["state"] for (name, labels), _ in metrics_of(serve).items() if name.endswith("repo_state")]
    assert state in ("stale", "failing")
    assert metric(serve, "gitmirror_mirror_bytes", repo=WIDGETS) > 100_000
    upstream.everywhere.fail = False
    start = time.monotonic()
    serve.cli("refresh", WIDGETS)
    assert metric(serve, "gitmirror_lag_seconds", repo=WIDGETS) <= time.monotonic() - start + 0.01


@pytest.mark.slow
def test_clients_the_queue_and_the_cache_are_told(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Connections on both ports, guests that wait or got no slot, and the bytes in the cache."""
    limits: dict[str, Value] = {"max_clients": 1, "queue_timeout": "6s"}
    serve = serve_factory(
        repos=[upstream.url(WIDGETS)], refresh=SETTLED, serve=limits, cache={"budget": "1GiB"}
    ).start()
    serve.wait_for_repo(WIDGETS)
    wait_warm(serve)
    assert metric(serve, "gitmirror_clients") == metric(serve, "gitmirror_queue") == 0
    assert metric(serve, "gitmirror_cache_bytes") == cache_of(serve)["bytes"] > 0
    assert metric(serve, "gitmirror_cache_budget_bytes") == 2**30
    with PushConnection(*serve.git_address, f"/{WIDGETS}"), HttpGuest(serve.http_url) as waiting:
        waiting.send("GET", f"/{WIDGETS}/info/refs?service=git-upload-pack")
        wait_until(lambda: metric(serve, "gitmirror_queue") == 1, message="it waits")
        assert metric(serve, "gitmirror_clients") == 2 == status_of(serve)["clients"]
        assert waiting.read().status == 503
        assert metric(serve, "gitmirror_refused") == 1


# Activity


@pytest.mark.slow
def test_a_hydration_is_a_row_within_a_second(node: Node, tmp_path: Path) -> None:
    """Repository, object, shape, way, bytes, times, client and protocol, newest first; for old protocols too."""
    node.serve.clone(tmp_path / "one", WIDGETS, "--depth=5", "--filter=blob:none", "--no-checkout")
    git(
        "-c",
        "protocol.version=0",
        "clone",
        "--quiet",
        "--depth=6",
        f"{node.serve.git_url}/{WIDGETS}",
        str(tmp_path / "two"),
    )
    node.serve.clone(tmp_path / "three", WIDGETS, "--depth=5", "--filter=blob:none", "--no-checkout", http=True)

    def look() -> list[dict[str, object]] | None:
        rows = node.serve.cli_json("activity", "--limit", "3", "--repo", WIDGETS)
        shapes = [row["shape"] for row in rows]
        return rows if shapes == ["depth 5, blob:none", "depth 6, v0", "depth 5, blob:none"] else None

    # The contract's second, and what it takes to start the command.
    rows = wait_until(look, timeout=60, message="the rows are there")
    assert [row["way"] for row in rows] == ["hit", "direct", "miss"] or rows[2]["way"] == "hit"
    assert [row["protocol"] for row in rows] == ["http", "git", "git"]
    for row in rows:
        assert (row["repo"], row["want"], row["wants"], row["client"]) == (WIDGETS, node.tip, 1, "127.0.0.1")
        assert isinstance(row["bytes"], int) and row["bytes"] > 1000
        assert isinstance(row["first_byte"], float) and isinstance(row["seconds"], float)
        assert 0 <= row["first_byte"] <= row["seconds"] < 30
        assert str(row["at"]).endswith("Z")
    assert node.serve.cli("activity", "--limit", "3", "--repo", "acme/unheard-of", check=False).returncode == 2
    text = node.serve.cli("activity", "--limit", "1").stdout
    assert "WAY" in text and "depth 5, blob:none" in text


@pytest.mark.slow
def test_activity_can_be_followed(node: Node, tmp_path: Path) -> None:
    """`--follow --json` prints a line for each hydration as it comes, and ends with Ctrl-C and 0."""
    argv = [*node.serve.command, "--state", str(node.serve.state), "--config", str(node.serve.config)]
    argv += ["activity", "--follow", "--json", "--limit", "1"]
    following = subprocess.Popen(
        argv,
        cwd=node.serve.cwd,
        env=node.serve.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        node.serve.clone(tmp_path / "one", WIDGETS, "--depth=9")
        while json.loads(following.stdout.readline())["shape"] != "depth 9":
            pass
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == 0
        assert following.stderr is not None and following.stderr.read() == ""
    finally:
        following.kill()
        following.communicate()


@pytest.mark.slow
def test_rows_survive_the_end_of_serve(serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path) -> None:
    """What waits is written when serve stops, and can be read without it."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    serve.clone(tmp_path / "one", WIDGETS, "--depth=3")
    assert serve.terminate() == 0
    assert [row["shape"] for row in serve.cli_json("activity")] == ["depth 3"]


def hydration(number: int) -> Hydration:
    """Some hydration."""
    return Hydration(WIDGETS, "a" * 40, 1, f"depth {number}", "hit", 1, 0.1, 0.2, "127.0.0.1", "git")


class Clock:
    """Unix seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_rows_are_bounded_in_number_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest so many, and none older than so long."""
    monkeypatch.setattr(store_module, "MOST_ROWS", 10)
    clock = Clock()
    store = ActivityStore(Database(tmp_path / "db"), clock)
    for start in range(0, 30, 6):
        store.record([(clock.now, hydration(number)) for number in range(start, start + 6)])
    assert [row["shape"] for row in store.newest(100)] == [f"depth {number}" for number in range(29, 19, -1)]
    clock.now += store_module.LONGEST - 1
    store.record([(clock.now, hydration(30))])
    assert len(store.newest(100)) == 10
    clock.now += 2
    store.record([(clock.now, hydration(31))])
    assert [row["shape"] for row in store.newest(100)] == ["depth 31", "depth 30"]
    assert [row["shape"] for row in store.after(store.newest(2)[1]["id"])] == ["depth 31"]


def test_a_database_that_fails_loses_no_row_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait in order until it is back; of too many the oldest are lost."""
    monkeypatch.setattr(write_behind, "MOST_WAITING", 5)
    store = ActivityStore(Database(tmp_path / "db"), Clock())
    real = store.record
    log: WriteBehind[tuple[float, Hydration]] = WriteBehind("hydrations", lambda batch: store.record(batch), 0)

    def fail(events: object) -> None:
        # More come while the database does not take them.
        for number in coming:
            log.add((time.time(), hydration(number)))
        raise StoreError("it is gone")

    async def write() -> None:
        await log.write()

    for number in range(3):
        log.add((time.time(), hydration(number)))
    monkeypatch.setattr(store, "record", fail)
    for coming in ([3], [4, 5, 6], [7, 8, 9, 10, 11]):  # noqa: B007 - read by fail()
        asyncio.run(write())
    monkeypatch.setattr(store, "record", real)
    asyncio.run(write())
    assert [row["shape"] for row in store.newest(100)] == [f"depth {number}" for number in (11, 10, 9, 8, 7)]
    asyncio.run(write())
    assert len(store.newest(100)) == 5


@pytest.mark.slow
def test_a_guest_that_leaves_midway_is_a_row_too(gated_node: GatedNode, tmp_path: Path) -> None:
    """With the bytes that it got."""
    node = gated_node

    def count() -> int:
        return len(node.serve.cli_json("activity", "--limit", "1000"))

    with open_v2(node.serve, WIDGETS):
        pass
    before = count()
    git(
        "clone",
        "--quiet",
        f"{node.serve.git_url}/{WIDGETS}",
        str(tmp_path / "seed"),
        a_cold_shape(),
        env=guest_env(tmp_path),
    )
    wait_until(lambda: count() == before + 1, message="the first clone has its row")
    guests, _, _ = start_guests(node, tmp_path, 2)
    guests[0].kill()
    guests[0].communicate()
    node.gate.open()
    assert ends(guests[1])[0] == 0
    wait_until(lambda: count() == before + 3, message="both have a row")
