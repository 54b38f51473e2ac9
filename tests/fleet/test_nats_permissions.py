"""The permissions in docs/fleet.md: a node can do all that it must, and speak for no other one."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from appliance.core.fleet.names import FleetNames
from tests.conftest import WIDGETS
from tests.support.fleet_users import fleet_of
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")]

NAMES = FleetNames("prod")


def permissions() -> str:
    """The block of the docs for one node, as node-1 of the fleet `prod`."""
    page = (ROOT / "docs/fleet.md").read_text()
    [block] = re.findall(r'^```conf\n(  \{\n    user: "NODE".*?)^```$', page, re.M | re.S)
    assert isinstance(block, str)
    return block.replace("NODE", "node-1").replace("default", "prod")


class Account(NatsCluster):
    """A server with the docs' permissions, that tests ask as its administrator or as node-1."""

    def ask(self, work: Callable[[JetStreamContext], Awaitable[Any]], **options: object) -> Any:
        """As the administrator, unless a user is given."""
        return super().ask(work, **({"user": "admin", "password": "all"} | options))


def test_a_node_works_and_speaks_for_no_other(tmp_path: Path, upstream: HttpUpstream) -> None:
    secret = tmp_path / "nats.secret"
    secret.write_text("node-1:PASSWORD\n")
    secret.chmod(0o600)
    extra = f'authorization {{ users: [\n{permissions()}  {{ user: "admin", password: "all" }}\n] }}\n'
    with Account(tmp_path / "nats", extra=extra) as nats:
        fleet = {"servers": nats.urls, "name": "prod", "node": "node-1", "credentials_file": str(secret)}
        with Serve(tmp_path / "state", fleet=fleet, refresh={"allow_local": True, "interval": "1s"}) as node:
            node.start()
            node.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
            node.wait_for_repo(WIDGETS)
            guest = node.clone(tmp_path / "guest", WIDGETS)
            commit_files(guest, {"a": "b"}, "a turn")
            git("push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest)

            def count(stream: str) -> int:
                return int(nats.ask(lambda context: context.stream_info(stream)).state.messages)

            def waits() -> int:
                return int(sum(fleet_of(node)["waiting"].values()))

            wait_until(lambda: count(NAMES.turns) == 1, timeout=30, message="the turn went out")
            assert re.search(r"^SESSION .* NODE ", node.cli("sessions").stdout, re.M)
            node.cli("session", "keep", WIDGETS, "s1")
            wait_until(lambda: count(NAMES.turns) == 2, timeout=30, message="that it is kept went out")
            node.cli("session", "drop", WIDGETS, "s1", "--yes")
            # The end is told, and its row and its bundle are gone.
            wait_until(lambda: not waits() and count(NAMES.turns) == 2, timeout=30, message="the session ended")
            wait_until(lambda: not count(f"OBJ_{NAMES.objects}"), timeout=30, message="its bundle is deleted")
            mark = f"$KV.{NAMES.nodes}.forgotten.node-9"
            nats.ask(lambda context: context.publish(mark, b"x"), user="node-1", password="PASSWORD")
            assert fleet_of(node)["trouble"] is None
            assert node.terminate() == 0
            assert count(NAMES.heads) >= 1 and count(f"KV_{NAMES.registry}") == 1
            assert json.loads(node.cli("audit", "verify", "--fleet", "--json").stdout)["fleet"]["lost"] == []
            assert "violation" not in node.log().lower(), node.log()

        bounded = StreamConfig(
            name=NAMES.heads, subjects=[NAMES.heads_of("*")], deny_delete=True, deny_purge=True, max_msgs=1
        )
        forbidden: list[Callable[[JetStreamContext], Awaitable[object]]] = [
            lambda context: context.publish(NAMES.heads_of("node-2"), b"x", timeout=0.5),
            lambda context: context.publish(NAMES.turns_of("node-2"), b"x", timeout=0.5),
            lambda context: context.publish(f"$KV.{NAMES.nodes}.node-2", b"x", timeout=0.5),
            lambda context: context.update_stream(bounded),
            lambda context: context.delete_stream(NAMES.heads),
            lambda context: context.purge_stream(NAMES.turns),
            lambda context: context.add_stream(StreamConfig(name="other", subjects=["other"])),
        ]
        before = count_all(nats)
        for attempt in forbidden:
            with pytest.raises(Exception, match="timeout"):
                nats.ask(attempt, user="node-1", password="PASSWORD")
        assert count_all(nats) == before


def test_a_node_that_may_not_change_streams_can_still_join(tmp_path: Path) -> None:
    """NATS answers nothing to what is forbidden, so the change of the replicas ends by its deadline."""
    secret = tmp_path / "nats.secret"
    secret.write_text("node-1:PASSWORD\n")
    secret.chmod(0o600)
    users = f'authorization {{ users: [\n{permissions()}  {{ user: "admin", password: "all" }}\n] }}\n'
    with Account(tmp_path / "nats", 3, extra=users) as nats:
        fleet = {"servers": nats.urls, "name": "prod", "node": "node-1", "credentials_file": str(secret)}
        for replicas in (1, 3):
            with Serve(tmp_path / "state", fleet=fleet | {"replicas": replicas}) as node:
                node.start()
                wait_until(lambda node=node: fleet_of(node)["connected"], timeout=60, message="it joined")  # type: ignore[misc]
                warnings = fleet_of(node)["warnings"]
        assert any("stored 1 times" in warning and "may not change it" in warning for warning in warnings), warnings


def count_all(nats: NatsCluster) -> dict[str, int]:
    """How many messages each stream has."""

    async def look(context: JetStreamContext) -> dict[str, int]:
        return {str(info.config.name): info.state.messages for info in await context.streams_info()}

    found: dict[str, int] = nats.ask(look)
    return found
