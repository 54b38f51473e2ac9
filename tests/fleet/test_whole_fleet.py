"""Three nodes on three NATS servers, as their users see them: what is done on one is there on all.

Counts are asserted. Times are printed (`pytest -s`) and have deadlines that a busy machine keeps; they are measured by
scripts/bench_fleet.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fleet.news import costs_at_best, seconds_since_look
from tests.fleet.whole_lab import BUSY, REPO, Whole, lists, names_of, push_upstream, wait_settled
from tests.support.fleet import TestFleet
from tests.support.fleet_users import (
    KitGuest,
    Pushing,
    ask,
    fleet_of,
    is_warm,
    sessions_of,
    waiting_at,
    webhook_settings,
)
from tests.support.generate import copy_repository
from tests.support.gitutil import remote_refs, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.serve import Section, Serve
from tests.support.upstream import HttpUpstream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SYNC, ASYNC, THIRD = "a", "b", "c"
"""Node `a` tells its guests that a turn is recorded once the fleet has it, the others once they have it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Whole]:
    """The three nodes and servers that the tests of this module share."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    place = tmp_path_factory.mktemp("whole")
    refresh = {"interval": "1h", "stale_after": "1d", **webhook_settings(place)}
    with (
        HttpUpstream(place / "upstream") as upstream,
        NatsCluster(place / "nats", 3) as nats,
        TestFleet(place, nats, (), refresh=refresh) as fleet,
    ):
        for node in (SYNC, ASYNC, THIRD):
            durability = {"durability": "sync", "sync_timeout": "10s"} if node == SYNC else {}
            fleet.nodes[node] = fleet.make(node, refresh=refresh, fleet=durability, workspace={"enabled": True})
        upstream.add(REPO, generated_bare)
        for serve in fleet.start().nodes.values():
            serve.keep_ports()
        fleet.wait_all(lambda serve: len(fleet_of(serve)["nodes"]) == 3, "all know each other", timeout=60)
        fleet[SYNC].cli("add-repo", upstream.url(REPO))
        made = Whole(fleet, upstream, place)
        made.all_warm(REPO)
        yield made


@pytest.fixture
def pushing(whole: Whole, tmp_path: Path) -> Pushing:
    """Where turns come from that no kit records."""
    return Pushing(tmp_path / "pushing.git", whole.upstream.path(REPO))


def guest_of(whole: Whole, tmp_path: Path, name: str = "guest") -> KitGuest:
    """A guest with the real kit."""
    return KitGuest(tmp_path / name, whole[SYNC], REPO, whole.url(REPO))


@pytest.fixture(scope="module")
def alone(whole: Whole, generated_bare: Path) -> Iterator[Serve]:
    """A node without a fleet at the same upstream: what the upstream is asked by one."""
    refresh: Section = {"interval": "1h", "stale_after": "1d", "allow_local": True, **webhook_settings(whole.place)}
    with Serve(whole.place / "alone", refresh=refresh).start() as serve:
        yield serve


def test_a_repository_added_on_one_is_warm_on_all(whole: Whole, alone: Serve, generated_bare: Path) -> None:
    """And the upstream is asked for it as often as by one node."""
    for name in ("acme/of-one", "acme/of-three"):
        whole.upstream.add(name, generated_bare)
    alone.cli("add-repo", whole.url("acme/of-one"))
    wait_until(lambda: is_warm(alone, "acme/of-one", whole.tip("acme/of-one")), message="the node alone is warm")
    whole[ASYNC].cli("add-repo", whole.url("acme/of-three"))
    print(f"\nwarm on all {whole.all_warm('acme/of-three'):.2f} s after its clone on one")
    assert whole.upload_packs("acme/of-three") == whole.upload_packs("acme/of-one")
    registered = [ask(serve, "GET", "repos/acme/of-three") for serve in whole.fleet.nodes.values()]
    assert {(each["url"], each["source"], each["enabled"]) for each in registered} == {
        (whole.url("acme/of-three"), "cli", True)
    }


def test_one_webhook_is_one_fetch(whole: Whole, alone: Serve, generated_bare: Path) -> None:
    """All nodes are warm with what was pushed, whichever of them heard of it."""
    whole.upstream.add("acme/hooked-alone", generated_bare)
    alone.cli("add-repo", whole.url("acme/hooked-alone"))
    wait_until(lambda: is_warm(alone, "acme/hooked-alone", whole.tip("acme/hooked-alone")), message="it is warm")
    costs = whole.upload_packs("acme/hooked-alone")
    tip = push_upstream(whole, "acme/hooked-alone", alone)
    wait_until(lambda: is_warm(alone, "acme/hooked-alone", tip), message="the node alone is warm")
    costs = whole.upload_packs("acme/hooked-alone") - costs
    for node, serve in whole.fleet.nodes.items():

        def cost(node: str = node, serve: Serve = serve) -> int:
            # Right after a look, a node cannot know of an answer that was long under way whether it tells of a later
            # one, and has the holder look again.
            wait_until(
                lambda: all(seconds_since_look(each, REPO) > 1 for each in whole.fleet.nodes.values()),
                message="all rest",
            )
            before = whole.upload_packs(REPO)
            push_upstream(whole, REPO, serve)
            print(f"\nwarm on all {whole.all_warm(REPO):.2f} s after a webhook to {node}")
            return whole.upload_packs(REPO) - before

        # As one node asks.
        costs_at_best(costs, cost)


def test_what_is_changed_on_one_is_changed_on_all(whole: Whole, generated_bare: Path) -> None:
    """Disabled, enabled again, given another interval, and removed with its mirror."""
    name = "acme/changed"
    whole.upstream.add(name, generated_bare)
    whole[THIRD].cli("add-repo", whole.url(name))
    whole.all_warm(name)

    def everywhere(key: str, value: object) -> None:
        whole.fleet.wait_all(
            lambda serve: ask(serve, "GET", f"repos/{name}")[key] == value, f"{key} is {value}", timeout=BUSY
        )

    whole[SYNC].cli("disable", name)
    everywhere("enabled", False)
    whole[ASYNC].cli("enable", name)
    everywhere("enabled", True)
    ask(whole[THIRD], "PATCH", f"repos/{name}", {"interval": 77})
    everywhere("interval", 77)
    whole[ASYNC].cli("remove-repo", name, "--purge", "--yes")
    whole.fleet.wait_all(
        lambda serve: name not in names_of(serve) and not serve.mirror(name).exists(), "it is gone", timeout=BUSY
    )


def test_one_name_for_two_urls(whole: Whole, generated_bare: Path) -> None:
    """The second is refused, at whichever node, and says where the first was registered."""
    whole.upstream.add("acme/taken", generated_bare)
    whole.upstream.add("other/acme/taken", generated_bare)
    whole[ASYNC].cli("add-repo", whole.url("acme/taken"))
    done = whole[THIRD].cli("add-repo", whole.url("other/acme/taken"), "--name", "acme/taken", check=False)
    assert done.returncode != 0 and whole.url("acme/taken") in done.stderr and ASYNC in done.stderr.split("node")[-1]
    assert ask(whole[THIRD], "GET", "repos/acme/taken")["url"] == whole.url("acme/taken")


def test_a_session_goes_on_at_another_node(whole: Whole, tmp_path: Path) -> None:
    """Recorded on one with the real kit, hydrated on another by `session:`, and recorded there again."""
    guest = guest_of(whole, tmp_path)
    guest.hydrate(whole[SYNC], tmp_path / "first")
    (tmp_path / "first" / "work.txt").write_text("of the first turn\n")
    first = guest.record(whole[SYNC], "goes-on", tmp_path / "first")
    began = time.monotonic()
    whole.all_list("goes-on", [first])
    guest.hydrate(whole[ASYNC], tmp_path / "second", "session:goes-on")
    print(f"\nhydrated on another node {time.monotonic() - began:.2f} s after it was recorded")
    assert (tmp_path / "second" / "work.txt").read_text() == "of the first turn\n"
    (tmp_path / "second" / "work.txt").write_text("of the second turn\n")
    second = guest.record(whole[ASYNC], "goes-on", tmp_path / "second")
    whole.all_list("goes-on", [first, second])
    guest.hydrate(whole[THIRD], tmp_path / "third", "session:goes-on")
    assert (tmp_path / "third" / "work.txt").read_text() == "of the second turn\n"
    listed = [each for each in whole[THIRD].cli_json("sessions") if each["session"] == "goes-on"]
    assert [(each["turns"], each["node"]) for each in listed] == [(2, ASYNC)]


@pytest.mark.parametrize("node", [SYNC, ASYNC])
def test_a_session_of_a_node_that_was_killed(whole: Whole, tmp_path: Path, node: str) -> None:
    """At once after the `kill -9`, by a turn that the fleet has: told under sync, listed elsewhere under async."""
    guest = guest_of(whole, tmp_path)
    session = f"killed-{node}"
    guest.hydrate(whole[node], tmp_path / "work")
    (tmp_path / "work" / "work.txt").write_text(f"recorded on {node}\n")
    commit = guest.record(whole[node], session, tmp_path / "work")
    if node == ASYNC:
        wait_until(lambda: lists(whole[THIRD], session) == [commit], timeout=BUSY, message="it went out")
    whole[node].kill()
    try:
        began = time.monotonic()
        wait_until(lambda: lists(whole[THIRD], session) == [commit], timeout=BUSY, message="another node lists it")
        guest.hydrate(whole[THIRD], tmp_path / "again", f"session:{session}")
        print(f"\nhydrated {time.monotonic() - began:.2f} s after node {node} was killed")
        assert (tmp_path / "again" / "work.txt").read_text() == f"recorded on {node}\n"
    finally:
        whole.restart(node)
    whole.all_list(session, [commit])


def test_operators_read_a_session_of_another_node(whole: Whole, pushing: Pushing, tmp_path: Path) -> None:
    """`session diff`, `session show` and `session checkout` fetch what they need, with and without `serve`'s own."""
    commit = pushing.commit("a turn to read")
    assert pushing.push(whole[ASYNC], REPO, "read", commit)[0]
    whole.all_list("read", [commit])
    assert "+a turn to read" in whole[THIRD].cli("session", "diff", REPO, "read").stdout
    whole[THIRD].cli("session", "checkout", REPO, "read", str(tmp_path / "replay"))
    assert (tmp_path / "replay" / "turn.txt").read_text().startswith("a turn to read")
    shown = whole[THIRD].cli_json("session", "show", REPO, "read")
    assert [turn["subject"] for turn in shown["turns"]] == ["a turn to read"]


def test_a_drop_acts_on_all(whole: Whole, pushing: Pushing) -> None:
    """And the next push to the name begins a new session everywhere."""
    turns = [pushing.commit("dropped")]
    turns.append(pushing.commit("dropped as well", turns[0]))
    for node, turn in zip((SYNC, THIRD), turns, strict=True):
        assert pushing.push(whole[node], REPO, "dropped", turn)[0]
        whole.all_list("dropped", turns[: turns.index(turn) + 1])
    whole[ASYNC].cli("session", "drop", REPO, "dropped", "--yes")
    whole.all_list("dropped", [])
    for serve in whole.fleet.nodes.values():
        wait_until(
            lambda serve=serve: "refs/agents/dropped" not in remote_refs(f"{serve.git_url}/{REPO}"),  # type: ignore[misc]
            timeout=BUSY,
            message="its ref is gone",
        )
    anew = pushing.commit("anew")
    assert pushing.push(whole[SYNC], REPO, "dropped", anew)[0]
    whole.all_list("dropped", [anew])


def test_two_nodes_write_one_session(whole: Whole, pushing: Pushing) -> None:
    """At the same moment, several times: every turn is kept, and every node has the same order.

    A push whose ref moved since the guest read it, by another guest or by what another node sent, is told so, and the
    guest pushes again.
    """
    turns = [pushing.commit(f"of two {number}") for number in range(12)]
    nodes = list(whole.fleet.nodes.values())

    def push(number: int) -> bool:
        done, said = pushing.push(nodes[number % 3], REPO, "shared", turns[number])
        assert done or "[remote rejected]" in said, said
        return done

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: wait_until(lambda: push(number), message="it is taken"), range(len(turns))))
    wait_until(lambda: sorted(lists(whole[SYNC], "shared")) == sorted(turns), timeout=BUSY, message="all are there")
    whole.all_list("shared", wait_settled(whole, "shared", len(turns)))


def _guests_are_served(serve: Serve, dest: Path) -> None:
    assert "HEAD" in remote_refs(f"{serve.git_url}/{REPO}")
    serve.clone(dest, REPO, "--depth=1", http=True)


def test_nats_goes_away_and_comes_back(whole: Whole, pushing: Pushing, tmp_path: Path, generated_bare: Path) -> None:
    """Meanwhile guests are served and recorded as by nodes alone, and `sync` refuses; then what waited goes out."""
    name = "acme/while-away"
    whole.upstream.add(name, generated_bare)
    before = pushing.commit("before")
    assert pushing.push(whole[ASYNC], REPO, "away", before)[0]
    whole.all_list("away", [before])
    for server in whole.fleet.nats.servers:
        server.stop()
    try:
        wait_until(
            lambda: all(not fleet_of(serve)["connected"] for serve in whole.fleet.nodes.values()),
            timeout=BUSY,
            message="the nodes know that NATS is away",
        )
        for node, serve in whole.fleet.nodes.items():
            _guests_are_served(serve, tmp_path / f"clone-{node}")
        meanwhile = pushing.commit("meanwhile", before)
        done, said = pushing.push(whole[ASYNC], REPO, "away", meanwhile)
        assert done, said
        assert lists(whole[ASYNC], "away") == [before, meanwhile]
        assert lists(whole[THIRD], "away") == [before]
        refused, why = pushing.push(whole[SYNC], REPO, "away-sync", meanwhile)
        assert not refused and "the fleet did not store it" in why
        assert lists(whole[SYNC], "away-sync") == []
        whole[THIRD].cli("add-repo", whole.url(name))
        assert name not in names_of(whole[ASYNC])
        assert waiting_at(whole[ASYNC]) > 0
    finally:
        for server in whole.fleet.nats.servers:
            server.start()
        whole.fleet.nats.wait(60)
    whole.fleet.wait_all(lambda serve: fleet_of(serve)["connected"], "the fleet is back", timeout=60)
    whole.all_list("away", [before, meanwhile])
    whole.all_warm(name)
    assert lists(whole[THIRD], "away-sync") == []
    settled = whole[ASYNC]
    wait_until(lambda: waiting_at(settled) == 0, timeout=BUSY, message="nothing waits")


@pytest.mark.parametrize("check", [("audit", "verify"), ("audit", "verify", "--fleet")], ids=["alone", "fleet"])
def test_every_log_verifies(whole: Whole, check: tuple[str, ...]) -> None:
    """After all that."""
    for serve in whole.fleet.nodes.values():
        done = serve.cli(*check, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_nodes_agree(whole: Whole) -> None:
    """After all that, on everything that was registered and recorded."""
    agreed: list[Callable[[Serve], object]] = [sessions_of, names_of]
    for seen in agreed:
        found = [seen(serve) for serve in whole.fleet.nodes.values()]
        assert found[0] == found[1] == found[2]


def test_a_node_of_a_dead_one(whole: Whole, generated_bare: Path, tmp_path: Path) -> None:
    """The disk of a node is gone, and `restore --from-fleet` makes a node of what the fleet has."""
    source = copy_repository(generated_bare, tmp_path / "source.git")
    pushing = Pushing(tmp_path / "of-dead.git", source)
    turns = [pushing.commit("first")]
    turns.append(pushing.commit("second", turns[0]))
    for turn in turns:
        assert pushing.push(whole[THIRD], REPO, "of-dead", turn)[0]
    whole.all_list("of-dead", turns)
    expected = sessions_of(whole[SYNC])
    whole[THIRD].kill()
    dead = whole[THIRD]
    wait_until(lambda: not dead.processes(), message="its children ended")
    dead.state.rename(tmp_path / "lost")
    dead.cli("restore", "--from-fleet", THIRD, timeout=120)
    whole.restart(THIRD)
    wait_until(lambda: sessions_of(dead) == expected, timeout=BUSY, message="every session is there again")
    dead.cli("session", "checkout", REPO, "of-dead", str(tmp_path / "replay"))
    assert (tmp_path / "replay" / "turn.txt").read_text().startswith("second")
    for check in (("audit", "verify"), ("audit", "verify", "--fleet")):
        assert dead.cli(*check, check=False).returncode == 0
    more = pushing.commit("after the restore", turns[-1])
    assert pushing.push(dead, REPO, "of-dead", more)[0]
    whole.all_list("of-dead", [*turns, more])
