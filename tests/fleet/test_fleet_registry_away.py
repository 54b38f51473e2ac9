"""The registry of nodes that were away: stopped, killed, without NATS, or with a config and limits of their own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from appliance.core.fleet.messages import RepoEntry
from appliance.core.fleet.registry_rules import data_of
from tests.fleet.test_fleet_registry import entry_of, has, upstream
from tests.support.fleet import TestFleet
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve

pytestmark = pytest.mark.slow

BUCKET = "gitmirror-default-registry"
AT = "2026-11-27T12:00:00.000Z"


@pytest.fixture(scope="module")
def nodes(module_nats: NatsCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    """Three nodes that run; a test that stops something starts it again."""
    with TestFleet(tmp_path_factory.mktemp("fleet"), module_nats) as fleet:
        for serve in fleet.nodes.values():
            serve.start()
            serve.keep_ports()
        yield fleet


def warns(serve: Serve, *words: str) -> bool:
    """Whether one warning of `status` has all the words."""
    return any(all(word in warning for word in words) for warning in serve.status()["warnings"])


def in_bucket(nats: NatsCluster, name: str) -> dict[str, Any] | None:
    """The entry of a name, whose key is the name itself."""

    async def ask(context: JetStreamContext) -> bytes | None:
        return (await (await context.key_value(BUCKET)).get(name)).value

    try:
        return dict(json.loads(nats.ask(ask) or b"{}"))
    except Exception:
        return None


def put(nats: NatsCluster, key: str, data: bytes) -> None:
    """Puts something into the bucket as a stranger."""

    async def ask(context: JetStreamContext) -> None:
        await (await context.key_value(BUCKET)).put(key, data)

    nats.ask(ask)


def record(serve: Serve, name: str, directory: Path) -> None:
    """Records a turn."""
    clone = serve.clone(directory, name)
    commit_files(clone, {"x": "y"}, "A turn")
    git("push", "--quiet", f"{serve.git_url}/{name}", "HEAD:refs/agents/s1", cwd=clone)


def stop_nats(nodes: TestFleet) -> None:
    """Ends the server; every node notices."""
    nodes.nats.servers[0].stop()


def start_nats(nodes: TestFleet) -> None:
    """Starts it again."""
    nodes.nats.servers[0].start()
    nodes.nats.wait()


def test_without_nats_changes_wait_and_one_of_two_urls_wins(nodes: TestFleet, tmp_path: Path) -> None:
    urls = {name: upstream(tmp_path, f"split-{name}") for name in "ab"}
    nodes["c"].cli("add-repo", upstream(tmp_path, "kept"), "--name", "acme/kept")
    nodes.wait_all(lambda serve: has(serve, "acme/kept"), "it is everywhere")
    stop_nats(nodes)
    for name, url in urls.items():
        nodes[name].cli("add-repo", url, "--name", "acme/split")
    nodes["a"].cli("disable", "acme/kept")
    assert has(nodes["b"], "acme/kept", state="fresh")
    start_nats(nodes)
    nodes.wait_all(lambda serve: has(serve, "acme/kept", state="disabled"), "the change went out", 20)
    nodes.wait_all(lambda serve: has(serve, "acme/split", state="fresh"), "it is everywhere", 20)
    wait_until(lambda: len({entry_of(nodes[name], "acme/split")["url"] for name in "abc"}) == 1, message="one won")  # type: ignore[index]
    won = entry_of(nodes["c"], "acme/split")["url"]  # type: ignore[index]
    [loser] = [name for name, url in urls.items() if url != won]
    wait_until(lambda: warns(nodes[loser], "acme/split", "was overtaken", won), message="it is told")
    assert "was overtaken" in nodes[loser].log()
    assert (
        git("rev-parse", "main", cwd=nodes[loser].mirror("acme/split"))
        == git("rev-parse", "main", cwd=Path(won.removeprefix("file://")))
    )  # fmt: skip
    nodes[loser].restart()
    wait_until(lambda: warns(nodes[loser], "acme/split", "was overtaken"), timeout=60, message="it is still told")
    nodes[loser].cli("add-repo", won, "--name", "acme/split", "--interval", "33s")
    wait_until(lambda: not warns(nodes[loser], "acme/split"), timeout=60, message="an operator's change ends it")


def test_a_mirror_with_recordings_is_kept_from_the_winner(nodes: TestFleet, tmp_path: Path) -> None:
    ours, theirs = upstream(tmp_path, "ours"), upstream(tmp_path, "theirs")
    a, b = nodes["a"], nodes["b"]
    a.terminate()
    b.cli("add-repo", theirs, "--name", "acme/both")
    stop_nats(nodes)
    a.start()
    a.cli("add-repo", ours, "--name", "acme/both")
    record(a, "acme/both", tmp_path / "clone")
    start_nats(nodes)
    words = ("acme/both", "is not followed here", "remove-repo acme/both --purge")
    wait_until(lambda: warns(a, *words), timeout=60, message="the node says what to do")
    assert warns(a, "adding acme/both", "was overtaken", theirs)
    assert entry_of(a, "acme/both") is None and a.mirror("acme/both").is_dir()
    assert json.loads(a.here("sessions", "--repo", "acme/both", "--json"))
    a.restart()
    wait_until(lambda: warns(a, *words), timeout=60, message="also after a restart")
    a.cli("remove-repo", "acme/both", "--purge", "--yes")
    wait_until(lambda: has(a, "acme/both", url=theirs, state="fresh"), timeout=60, message="the winner's is cloned")
    assert has(b, "acme/both", url=theirs), "the purge was of this node's mirror alone"
    wait_until(lambda: not warns(a, *words), message="the warning ends")


def test_a_stopped_node_catches_up_both_ways(nodes: TestFleet, tmp_path: Path) -> None:
    a, b = nodes["a"], nodes["b"]
    for name in ("gone", "slow", "both"):
        b.cli("add-repo", upstream(tmp_path, f"catch-{name}"), "--name", f"acme/catch-{name}")
        a.wait_for_repo(f"acme/catch-{name}")
    a.terminate()
    b.cli("remove-repo", "acme/catch-gone", "--purge", "--yes")
    b.cli("add-repo", entry_of(b, "acme/catch-both")["url"], "--name", "acme/catch-both", "--interval", "8s")  # type: ignore[index]
    b.cli("add-repo", upstream(tmp_path, "catch-new"), "--name", "acme/catch-new")
    a.cli("disable", "acme/catch-slow")
    a.cli("disable", "acme/catch-both")
    a.cli("add-repo", upstream(tmp_path, "offline"), "--name", "acme/offline")
    a.start()
    nodes.wait_all(lambda serve: has(serve, "acme/catch-slow", state="disabled"), "what A disabled is disabled", 20)
    nodes.wait_all(lambda serve: has(serve, "acme/offline", state="fresh"), "what A added is everywhere", 20)
    nodes.wait_all(lambda serve: has(serve, "acme/catch-new", state="fresh"), "what B added is everywhere", 20)
    nodes.wait_all(lambda serve: has(serve, "acme/catch-both", interval=8.0, state="fresh"), "B was first", 20)
    wait_until(lambda: entry_of(a, "acme/catch-gone") is None, message="what B removed is removed")
    wait_until(lambda: not a.mirror("acme/catch-gone").exists(), message="and purged")
    assert warns(a, "changing acme/catch-both", "was overtaken", "node b changed it first")


def test_a_name_that_has_another_url_meanwhile_is_cloned_anew(nodes: TestFleet, tmp_path: Path) -> None:
    old, new = upstream(tmp_path, "old"), upstream(tmp_path, "new")
    a, b = nodes["a"], nodes["b"]
    b.cli("add-repo", old, "--name", "acme/moved")
    a.wait_for_repo("acme/moved")
    a.cli("token", "issue", "--repo", "acme/moved", "--ttl", "1h")
    a.kill()
    b.cli("remove-repo", "acme/moved", "--purge", "--yes")
    b.cli("add-repo", new, "--name", "acme/moved")
    a.start()
    tip = git("rev-parse", "main", cwd=Path(new.removeprefix("file://")))
    a.wait_for_ref("acme/moved", "refs/heads/main", tip, timeout=60)
    assert has(a, "acme/moved", url=new)
    [token] = [each for each in json.loads(a.here("token", "list", "--json")) if each["repo"] == "acme/moved"]
    assert token["revoked_at"] is not None


def test_killed_between_the_bucket_and_the_database(nodes: TestFleet, tmp_path: Path) -> None:
    a = nodes["a"]
    a.cli("add-repo", upstream(tmp_path, "first"), "--name", "acme/first")
    a.kill()
    # As A would have put it before it was killed.
    url = upstream(tmp_path, "between")
    put(nodes.nats, "acme/between", data_of(RepoEntry("acme/between", url, None, None, True, "a", AT)))
    first = in_bucket(nodes.nats, "acme/first")
    assert first is not None
    first |= {"removed": True, "enabled": False}
    put(nodes.nats, "acme/first", json.dumps(first).encode())
    a.start()
    a.wait_for_repo("acme/between", timeout=60)
    wait_until(lambda: entry_of(a, "acme/first") is None, message="the removal is applied")
    assert not warns(a, "acme/first") and not warns(a, "acme/between")


def test_what_is_not_ours_is_skipped(nodes: TestFleet, tmp_path: Path) -> None:
    key = "acme/junk"
    put(nodes.nats, key, b"{")
    put(nodes.nats, "acme/other", data_of(RepoEntry("acme/elsewhere", "https://h/x/y", None, None, True, "a", AT)))
    put(nodes.nats, "acme/evil", data_of(RepoEntry("acme/evil", "ext::sh -c id", None, None, True, "a", AT)))
    nodes["a"].cli("add-repo", upstream(tmp_path, "after"), "--name", "acme/after")
    nodes["b"].wait_for_repo("acme/after", timeout=60)
    for name in ("acme/junk", "acme/other", "acme/elsewhere", "acme/evil"):
        assert entry_of(nodes["b"], name) is None
    assert nodes["b"].log().count("has under acme/junk what cannot be read") == 1
    assert warns(nodes["b"], "acme/evil", "is not followed here", "remote helpers")
    refused = nodes["c"].cli("add-repo", upstream(tmp_path, "junk"), "--name", key, check=False)
    assert refused.returncode == 2 and "cannot be read by this version" in refused.stderr
    nodes["c"].cli("remove-repo", "acme/evil")
    wait_until(lambda: not warns(nodes["b"], "acme/evil"), timeout=60, message="it can be removed where it is skipped")


def test_config_lists_and_limits_are_each_nodes_own(nodes: TestFleet, tmp_path: Path) -> None:
    listed, shared = upstream(tmp_path, "listed"), upstream(tmp_path, "shared")
    fleet = {"servers": nodes.nats.urls, "node": "c"}
    c = nodes["c"]
    c.configure([{"url": listed, "name": "acme/listed"}], fleet=fleet, refresh={"interval": "1s", "allow_local": True})
    c.restart()
    c.wait_for_repo("acme/listed")
    nodes["a"].cli("add-repo", shared, "--name", "acme/listed")
    nodes["b"].wait_for_repo("acme/listed")
    assert in_bucket(nodes.nats, "acme/listed") is not None
    wait_until(lambda: warns(c, "acme/listed", "follows its config"), timeout=60, message="C says so")
    assert has(c, "acme/listed", url=listed, source="config") and has(nodes["a"], "acme/listed", url=shared)
    for words in (["repos"], ["status"], ["fleet", "status"]):
        said = "1 repository of the source config or allowed: this node's own, not shared with the fleet"
        assert said in c.cli(*words, check=False).stderr
    nodes["a"].cli("remove-repo", "acme/listed")
    wait_until(lambda: not warns(c, "acme/listed"), timeout=60, message="the warning ends")
    assert has(c, "acme/listed", url=listed, source="config")
    # Without allow_local, C follows no path that another node names.
    c.configure(fleet=fleet, refresh={"interval": "1s"})
    c.restart()
    nodes["a"].cli("add-repo", shared, "--name", "acme/local")
    wait_until(lambda: warns(c, "acme/local", "is not followed here", "allow_local"), timeout=60, message="C says so")
    assert entry_of(c, "acme/local") is None
    c.configure(fleet=fleet, refresh={"interval": "1s", "allow_local": True})
    c.reload()
    c.wait_for_repo("acme/local", timeout=60)
    wait_until(lambda: not warns(c, "acme/local"), message="the warning ends")


def test_a_bucket_that_is_deleted_is_filled_again(nodes: TestFleet, tmp_path: Path) -> None:
    nodes["a"].cli("add-repo", upstream(tmp_path, "refill"), "--name", "acme/refill")
    nodes.wait_all(lambda serve: has(serve, "acme/refill", state="fresh"), "it is everywhere", 15)

    async def delete(context: JetStreamContext) -> None:
        await context.delete_key_value(BUCKET)

    nodes.nats.ask(delete)
    wait_until(lambda: in_bucket(nodes.nats, "acme/refill"), timeout=30, message="it is offered again")
    nodes["b"].cli("remove-repo", "acme/refill")
    nodes.wait_all(lambda serve: entry_of(serve, "acme/refill") is None, "nodes follow the new bucket", 20)

    async def forget(context: JetStreamContext) -> None:
        await (await context.key_value(BUCKET)).delete("acme/fill2")

    nodes["a"].cli("add-repo", upstream(tmp_path, "fill2"), "--name", "acme/fill2")
    nodes.nats.ask(forget)
    wait_until(lambda: in_bucket(nodes.nats, "acme/fill2"), timeout=60, message="a deleted key is offered again")


def test_a_node_that_joins_offers_what_it_has(nodes: TestFleet, tmp_path: Path) -> None:
    url = upstream(tmp_path, "joins")
    nodes["a"].cli("add-repo", upstream(tmp_path, "theirs2"), "--name", "acme/taken")
    with Serve(tmp_path / "d", refresh={"interval": "1s", "allow_local": True}) as alone:
        alone.cli("add-repo", url, "--name", "acme/joins", "--interval", "6s")
        alone.cli("add-repo", upstream(tmp_path, "mine"), "--name", "acme/taken")
        alone.configure(
            fleet={"servers": nodes.nats.urls, "node": "d"}, refresh={"interval": "1s", "allow_local": True}
        )
        alone.start()
        nodes.wait_all(lambda serve: has(serve, "acme/joins", interval=6.0), "what it had is everywhere", 15)
        wait_until(lambda: warns(alone, "acme/taken", "was overtaken"), timeout=60, message="it is told")
        alone.wait_for_repo("acme/refused" if entry_of(alone, "acme/taken") is None else "acme/taken", timeout=60)


def test_a_damaged_database_does_not_end_serve(nodes: TestFleet, tmp_path: Path) -> None:
    a = nodes["a"]
    database, aside = a.state / "gitmirror.db", tmp_path / "aside.db"
    a.cli("add-repo", upstream(tmp_path, "sound"), "--name", "acme/sound")
    nodes["b"].wait_for_repo("acme/sound")
    shutil.copy(database, aside)
    for suffix in ("", "-wal", "-shm"):
        database.with_name(f"gitmirror.db{suffix}").unlink(missing_ok=True)
    database.write_bytes(b"no database" * 1000)
    nodes["b"].cli("add-repo", upstream(tmp_path, "later"), "--name", "acme/later")
    nodes["c"].wait_for_repo("acme/later")
    wait_until(lambda: a.log().count("following the registry of the fleet failed"), timeout=60, message="it says so")
    assert a.running
    database.unlink()
    shutil.copy(aside, database)
    wait_until(lambda: has(a, "acme/later", state="fresh"), timeout=40, message="it catches up")


def test_a_nats_that_hangs_holds_up_no_command_for_long(nodes: TestFleet, tmp_path: Path) -> None:
    server, a = nodes.nats.servers[0], nodes["a"]
    a.cli("add-repo", upstream(tmp_path, "thawed"), "--name", "acme/thawed")
    nodes["b"].wait_for_repo("acme/thawed")
    server.freeze()
    try:
        began = time.monotonic()
        a.cli("disable", "acme/thawed")
        a.cli("add-repo", upstream(tmp_path, "frozen"), "--name", "acme/frozen")
        assert time.monotonic() - began < 30
        assert has(a, "acme/frozen", state="fresh") and has(a, "acme/thawed", state="disabled")
    finally:
        server.thaw()
    nodes.wait_all(lambda serve: has(serve, "acme/frozen", state="fresh"), "it goes out", 40)
    nodes.wait_all(lambda serve: has(serve, "acme/thawed", state="disabled"), "so does the change", 20)
    assert not warns(a, "acme/frozen") and not warns(a, "acme/thawed")
