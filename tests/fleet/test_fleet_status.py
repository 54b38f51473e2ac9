"""`fleet status`, the route, `status`, the metrics and `doctor`, on nodes that are alone, in a fleet, and cut off."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.support.fleet import TestFleet
from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve


def fleet_of(node: Serve) -> dict[str, Any]:
    document: dict[str, Any] = call(Layout(node.state), "GET", "/v1/fleet", timeout=5)
    return document


def metrics_of(node: Serve) -> str:
    assert node.ready is not None and node.ready.admin is not None
    with urllib.request.urlopen(f"{node.ready.admin}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_a_node_alone_says_how_to_join_one(tmp_path: Path) -> None:
    with Serve(tmp_path / "alone") as node:
        done = node.here("fleet", "status", codes=(0,))
        assert "this node is alone" in done and 'servers = ["nats://' in done
        found = json.loads(node.here("fleet", "status", "--json", codes=(0,)))
        assert found["servers"] == found["nodes"] == found["warnings"] == [] and found["connected"] is False
        assert json.loads(node.here("status", "--json", codes=(4,)))["fleet"] is None


@pytest.mark.slow
def test_the_life_of_a_fleet(tmp_path: Path, nats: NatsCluster) -> None:
    with TestFleet(tmp_path, nats, ("a", "b")) as nodes:
        a, b = nodes["a"], nodes["b"]
        nodes.start()
        nodes.wait_all(lambda node: [each["node"] for each in fleet_of(node)["nodes"]] == ["a", "b"], "it hears both")
        found = fleet_of(a)
        assert (found["name"], found["node"], found["connected"], found["trouble"]) == ("default", "a", True, None)
        assert found["waiting"] == {"turns": 0, "attachments": 0, "registry": 0, "ends": 0}
        [_, other] = found["nodes"]
        assert other["alive"] and b.ready is not None and other["url"] == b.ready.git and other["turns_behind"] == 0
        done = a.here("fleet", "status", codes=(0,))
        assert "fleet default, this node is a: connected\n" in done and "a (this)" in done
        assert "  nothing waits to go out\n" in done
        short = json.loads(a.here("status", "--json", codes=(0,)))["fleet"]
        assert short == {key: found[key] for key in ("name", "node", "connected", "trouble", "waiting")}
        assert "gitmirror_fleet_connected 1.0" in metrics_of(a) and "gitmirror_fleet_nodes 2.0" in metrics_of(a)
        assert "gitmirror_fleet_waiting" in metrics_of(a)
        assert "ok    fleet: default, as a: 2 nodes" in a.here("doctor", codes=(0, 3))

        nats.servers[0].stop()
        wait_until(lambda: "Connection refused" in str(fleet_of(a)["trouble"]), timeout=60, message="the loss is told")
        done = a.here("fleet", "status", codes=(3,))
        assert "not connected" in done and done.count("start nats-server there") == 1
        assert re.search(r"^b +unknown ", done, re.M) and re.search(r"^a \(this\) +alive ", done, re.M)
        assert "  fleet default, as a: not connected\n" in a.here("status", codes=(0,))
        status = json.loads(a.here("status", "--json", codes=(0,)))
        assert [warning for warning in status["warnings"] if "refused" in warning and "the fleet default" in warning]
        assert len([warning for warning in status["warnings"] if "Connection refused" in warning]) == 1
        assert "gitmirror_fleet_connected 0.0" in metrics_of(a)
        assert "FAIL  fleet" in a.here("doctor", codes=(0, 3))

        a.terminate()
        done = a.here("fleet", "status", codes=(4,))
        assert "serve is not running" in done
        assert json.loads(a.here("status", "--json", codes=(4,)))["fleet"]["connected"] is False


@pytest.mark.slow
def test_a_node_that_is_gone_is_told_of(tmp_path: Path, nats: NatsCluster) -> None:
    with TestFleet(tmp_path, nats, ("a", "b")) as nodes:
        nodes.start()
        nodes.wait_all(lambda node: len(fleet_of(node)["nodes"]) == 2, "it hears both")
        nodes["b"].kill()
        wait_until(lambda: not fleet_of(nodes["a"])["nodes"][1]["alive"], timeout=40, message="b is gone")
        assert "gone" in nodes["a"].here("fleet", "status", codes=(3,))
        assert "b said nothing for 30 s" in nodes["a"].here("doctor", codes=(0, 3))
        assert "b is forgotten" in nodes["a"].here("fleet", "forget", "b")
        nodes["a"].here("fleet", "forget", "a", codes=(2,))
        nodes["a"].here("fleet", "forget", "b", codes=(1,))
        assert "b  " not in nodes["a"].here("fleet", "status", codes=(0,))
        assert "ok    fleet: default, as a: 1 node" in nodes["a"].here("doctor", codes=(0, 3))
