"""Operators change the registry on three nodes while nodes and NATS servers are killed: in the end, all agree."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.js import JetStreamContext

from tests.fleet.test_fleet_registry import entry_of, upstream
from tests.support.fleet import TestFleet
from tests.support.gitutil import wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

ROUNDS = 3
NAMES = [f"acme/storm-{number}" for number in range(4)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    """Three nodes on three servers."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    directory = tmp_path_factory.mktemp("storm")
    with NatsCluster(directory / "nats", 3) as nats, TestFleet(directory, nats) as fleet:
        yield fleet.start()


def table(serve: Serve) -> dict[str, tuple[Any, ...]]:
    """What a node has registered."""
    repos = json.loads(serve.here("repos", "--json"))
    return {each["name"]: (each["url"], each["interval"], each["enabled"]) for each in repos}


def bucket(nats: NatsCluster) -> dict[str, tuple[Any, ...]]:
    """What the fleet has registered."""

    async def ask(context: JetStreamContext) -> list[dict[str, Any]]:
        kv = await context.key_value("gitmirror-default-registry")
        return [json.loads((await kv.get(key)).value or b"{}") for key in await kv.keys()]

    entries = nats.ask(ask)
    return {each["name"]: (each["url"], each["interval"], each["enabled"]) for each in entries if not each["removed"]}


def test_all_agree_after_any_kills(nodes: TestFleet, tmp_path: Path) -> None:
    rng = random.Random(48)
    urls = [upstream(tmp_path, f"up-{number}") for number in range(3)]
    nodes.wait_all(lambda serve: serve.status()["fleet"]["connected"], "it is connected")

    def add(serve: Serve, name: str) -> None:
        words = ["--name", name, "--no-wait", "--interval", f"{rng.randint(3, 60)}s"]
        serve.cli("add-repo", rng.choice(urls), *words, check=False)

    def remove(serve: Serve, name: str) -> None:
        serve.cli("remove-repo", name, *(["--purge", "--yes"] if rng.random() < 0.5 else []), check=False)

    def switch(serve: Serve, name: str) -> None:
        serve.cli(rng.choice(["enable", "disable"]), name, check=False)

    operations: list[Callable[[Serve, str], None]] = [add, add, remove, switch]
    for round_number in range(ROUNDS):
        killed = rng.choice(list(nodes.nodes))
        server = rng.choice(nodes.nats.servers)
        for number in range(6):
            rng.choice(operations)(rng.choice(list(nodes.nodes.values())), rng.choice(NAMES))
            if number == 1 and round_number % 2 == 0:
                server.stop()
            if number == 2 and nodes[killed].running:
                nodes[killed].kill()
        if server.process is None:
            server.start()
        if not nodes[killed].running:
            nodes[killed].start()

    def agree() -> bool:
        if not all(serve.running for serve in nodes.nodes.values()):
            return False
        try:
            wanted = bucket(nodes.nats)
        except nats.errors.Error:
            # A server that was killed is not back yet, or another leads the streams meanwhile.
            return False
        tables = [table(serve) for serve in nodes.nodes.values()]
        # An interval that the entry does not say is the node's own.
        return (
            all(
                found.keys() == wanted.keys()
                and all(
                    found[name][0] == url and found[name][2] == enabled for name, (url, _, enabled) in wanted.items()
                )
                for found in tables
            )
            and tables[0] == tables[1] == tables[2]
        )

    try:
        wait_until(agree, timeout=60, interval=0.5, message="all agree with the bucket")
    except AssertionError:
        shown = {name: table(serve) for name, serve in nodes.nodes.items()}
        raise AssertionError(f"{bucket(nodes.nats)}\n{shown}") from None
    for serve in nodes.nodes.values():
        assert "Traceback" not in serve.log()


def test_a_private_repository_is_registered_everywhere(nodes: TestFleet, tmp_path: Path) -> None:
    with HttpUpstream(tmp_path / "upstream") as private:
        source = Path(upstream(tmp_path, "source").removeprefix("file://"))
        private.add("acme/private", source)
        switches = private.on("acme/private")
        switches.require_password = True
        token = tmp_path / "token"
        token.write_text(f"{switches.password}\n")
        token.chmod(0o600)
        a, url = nodes["a"], f"http://127.0.0.1:{private.port}"
        a.configure(
            fleet={"servers": nodes.nats.urls, "node": "a", "replicas": 3},
            refresh={"interval": "1s", "allow_local": True},
            credentials=[{"url": url, "username": switches.user, "token_file": str(token)}],
        )
        a.reload()
        wait_until(lambda: "the configuration was read again" in a.log(), timeout=60, message="it is reloaded")
        a.cli("add-repo", private.url("acme/private"), "--name", "acme/private")
        for name in ("b", "c"):
            found = nodes[name].wait_for_repo("acme/private", "failing", timeout=60)
            assert found["error"] == "auth" and found["hint"], "it says that this node has no credential"
            assert entry_of(nodes[name], "acme/private") is not None
        a.cli("remove-repo", "acme/private", "--purge", "--yes")
