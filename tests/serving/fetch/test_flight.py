"""The cache at work: counts, one upload-pack for all, guests and upload-packs that die midway, and eviction."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.serving.fetch.kept_responses import taken_by
from tests.conftest import WIDGETS
from tests.serving.conftest import Node, close_all, is_whole_pack
from tests.serving.fetch.conftest import (
    Counting,
    GatedFactory,
    GatedNode,
    a_cold_shape,
    cache_of,
    guest_env,
    wait_kept,
    wait_warm,
)
from tests.serving.fetch.wire import CAPABILITIES, SHALLOW, ask, fetch_request, http_ask, open_v2, pack_of, post_headers
from tests.support.generate import generate_repository
from tests.support.gitutil import fsck, git, wait_until
from tests.support.upstream import HttpUpstream

Guest = subprocess.Popen[bytes]


def start_guest(node: Node, path: Path, *options: str, http: bool = False) -> Guest:
    """A clone that runs beside the test."""
    url = f"{node.serve.http_url if http else node.serve.git_url}/{WIDGETS}"
    argv = ["git", "-c", "protocol.version=2", "clone", "--quiet", *options, url, str(path)]
    return subprocess.Popen(argv, env=guest_env(path.parent), stderr=subprocess.PIPE, start_new_session=True)


def start_guests(node: GatedNode, directory: Path, count: int) -> tuple[list[Guest], str, int]:
    """That many guests, on both ports in turn, that wait for one response which has stopped midway.

    Returns them, the shape they asked for, and the pid of the upload-pack.
    """
    counting, shape, before, packing = Counting(node.serve), a_cold_shape(), set(answers(node)), node.gate.packing()
    node.gate.close()
    guests = []
    for number in range(count):
        guests.append(start_guest(node, directory / f"clone{number}", shape, http=number % 2 == 1))
        wait_until(lambda: sum(counting.since().values()) > number, message="it has asked")  # noqa: B023
    assert counting.since() == {"misses": 1, "joined": count - 1}
    [growing] = set(answers(node)) - before
    wait_until(lambda: growing.stat().st_size >= 20_000, message="it has begun")
    assert [each.poll() for each in guests] == [None] * count
    [pid] = node.gate.packing() - packing
    return guests, shape, pid


def answers(node: Node) -> list[Path]:
    """The files of the cache."""
    return list((node.serve.state / "cache" / "responses").iterdir())


def ends(guest: Guest) -> tuple[int, str]:
    """How a guest ended, and what it said."""
    said = guest.communicate(timeout=60)[1].decode()
    return guest.returncode, said


def test_status_counts_every_way(gated_node: GatedNode, tmp_path: Path) -> None:
    """`status --json`: the first is a miss, the next a hit, a third joins another, a fourth has objects of its own."""
    node, shape = gated_node, a_cold_shape()
    before = node.serve.cli_json("status")["cache"]
    assert before["bytes"] > 0 and before["budget"] == 10 * 2**30
    clone = node.serve.clone(tmp_path / "one", WIDGETS, shape)
    wait_kept(node.serve)
    node.serve.clone(tmp_path / "two", WIDGETS, shape, http=True)
    git("update-ref", "refs/remotes/origin/main", "HEAD~1", cwd=clone)
    git("fetch", "--quiet", "origin", "develop", cwd=clone)
    guests, _, _ = start_guests(node, tmp_path, 2)
    node.gate.open()
    assert [ends(each)[0] for each in guests] == [0, 0]
    wait_kept(node.serve)
    after = node.serve.cli_json("status")["cache"]
    found = {way: after[way] - before[way] for way in ("hits", "misses", "joined", "direct")}
    assert found.pop("direct") >= 1, "a negotiation may take more than one round"
    assert found == {"hits": 1, "misses": 2, "joined": 1}
    assert after["bytes"] == sum(taken_by(each.stat().st_size) for each in answers(node))


def test_many_guests_at_once_cost_one_upload_pack(gated_node: GatedNode, tmp_path: Path) -> None:
    """A burst on a cold shape, on both ports: git runs once, all are served."""
    node, shape = gated_node, a_cold_shape()
    before, counting = node.gate.packing(), Counting(node.serve)
    guests = [
        start_guest(node, tmp_path / f"clone{number}", "--bare", shape, http=number % 2 == 1) for number in range(16)
    ]
    assert [ends(each) for each in guests] == [(0, "")] * 16
    assert len(node.gate.packing() - before) == 1
    assert counting.since()["misses"] == 1
    assert sum(counting.since().values()) == 16


@pytest.mark.parametrize("victims", [[0], [1, 2]], ids=["the first", "who joined"])
def test_a_guest_that_is_killed_midway_does_not_hurt_the_others(
    gated_node: GatedNode, tmp_path: Path, victims: list[int]
) -> None:
    """The first or another, by SIGKILL: the answer goes on, the others are whole, and it is kept."""
    node = gated_node
    guests, shape, _ = start_guests(node, tmp_path, 4)
    for number in victims:
        os.killpg(guests[number].pid, signal.SIGKILL)
        guests[number].communicate()
    node.gate.open()
    for number in {0, 1, 2, 3} - set(victims):
        assert ends(guests[number]) == (0, "")
        fsck(tmp_path / f"clone{number}")
    wait_kept(node.serve)
    counting = Counting(node.serve)
    node.serve.clone(tmp_path / "later", WIDGETS, shape)
    assert counting.since() == {"hits": 1}


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _stop_and_kill(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)


def _kill_pack_objects(pid: int) -> None:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(entry.name)) == pid != int(entry.name):
                os.kill(int(entry.name), signal.SIGKILL)


@pytest.mark.parametrize("how", [_kill, _stop_and_kill, _kill_pack_objects])
def test_an_upload_pack_that_dies_midway_is_an_error_for_all(
    gated_node: GatedNode, tmp_path: Path, how: Callable[[int], None]
) -> None:
    """Every guest that waits for it gets an error of git's, none a short clone; nothing is kept; the next is served."""
    node = gated_node
    kept = len(answers(node))
    guests, shape, pid = start_guests(node, tmp_path, 4)
    how(pid)
    for number, guest in enumerate(guests):
        code, said = ends(guest)
        assert code == 128 and "fatal: " in said, said
        assert not (tmp_path / f"clone{number}").exists()
    wait_until(lambda: len(answers(node)) == kept, message="no file is left")
    node.gate.open()
    counting = Counting(node.serve)
    fsck(node.serve.clone(tmp_path / "after", WIDGETS, shape))
    assert counting.since() == {"misses": 1}
    wait_until(lambda: node.serve.processes() == [node.serve.pid], message="no process is left")


def test_an_error_of_git_reaches_all_guests_in_its_words(gated_node: GatedNode) -> None:
    """For a missing object, the first guest and those that joined read the same error. The next fetch tries again."""
    node = gated_node
    before = len(node.gate.started())
    request = fetch_request("1" * 40)
    socks = [open_v2(node.serve, WIDGETS) for _ in range(3)]
    for sock in socks:
        sock.sendall(request)
    for sock in socks:
        said = b""
        while data := sock.recv(4096):
            said += data
        assert b"ERR upload-pack: not our ref " + b"1" * 40 in said
    close_all(socks)
    assert b"not our ref" in ask(node.serve, WIDGETS, request)
    assert len(node.gate.started()) >= before + 2


@pytest.mark.slow
def test_a_cached_file_that_somebody_touched_is_made_again(gated: GatedFactory, tmp_path: Path) -> None:
    """Truncated or removed behind its back: guests notice nothing, also when the whole directory is gone."""
    node = gated()
    for harm in ("truncated", "removed", "directory removed"):
        for path in answers(node):
            if harm == "truncated":
                os.truncate(path, path.stat().st_size - 7)
            else:
                path.unlink()
        if harm == "directory removed":
            (node.serve.state / "cache" / "responses").rmdir()
        for again in (False, True):
            # Which it counts as kept once git has ended; some files are still harmed, so that sizes tell nothing.
            wait_until(lambda: node.serve.processes() == [node.serve.pid], message="no git runs")
            counting, path = Counting(node.serve), tmp_path / f"{harm}{again}"
            node.serve.clone(path, WIDGETS, "--depth=1", "--filter=blob:none")
            assert git("status", "--porcelain", cwd=path) == ""
            assert counting.since() == {"direct" if harm.startswith("dir") else "hits" if again else "misses": 2}


@pytest.mark.slow
def test_a_small_budget_holds_and_keeps_what_is_warm(gated: GatedFactory, tmp_path: Path) -> None:
    """Guests with ever new shapes never push the cache over its budget, nor the guest kit's responses out of it."""
    node = gated(cache={"budget": "2MiB"})
    warm = cache_of(node.serve)["bytes"]
    assert 0 < warm < 2**20
    for oid in git("rev-list", "--first-parent", "-12", "main~1", cwd=node.mirror).split():
        ask(node.serve, WIDGETS, fetch_request(oid))
        assert cache_of(node.serve)["bytes"] <= 2 * 2**20
    wait_kept(node.serve)
    assert sum(taken_by(each.stat().st_size) for each in answers(node)) == cache_of(node.serve)["bytes"] > warm
    counting = Counting(node.serve)
    node.serve.clone(tmp_path / "one", WIDGETS, "--depth=1")
    node.serve.clone(tmp_path / "two", WIDGETS, "--depth=1", "--filter=blob:none")
    assert counting.since() == {"hits": 3}


@pytest.mark.slow
def test_a_repository_that_is_added_again_gets_no_old_answer(
    gated: GatedFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """The same name for another upstream: not one object of the old one is served, whatever a guest asks for."""
    node = gated()
    node.serve.configure(refresh={"interval": "1h", "stale_after": "1d"})
    old = node.tip
    request = fetch_request(old, *SHALLOW)
    assert is_whole_pack(pack_of(ask(node.serve, WIDGETS, request)))
    upstream.add("other/widgets", generate_repository(tmp_path / "other.git", files=20, commits=5, seed=7))
    node.serve.reload()
    wait_until(lambda: not answers(node), message="a repository that the config dropped has no answers")
    node.serve.cli("remove-repo", WIDGETS, "--purge", "--yes")
    assert cache_of(node.serve)["bytes"] == 0
    node.serve.cli("add-repo", upstream.url("other/widgets"), "--name", WIDGETS)
    assert b"not our ref" in ask(node.serve, WIDGETS, request)
    clone = node.serve.clone(tmp_path / "clone", WIDGETS, "--depth=1")
    assert git("rev-parse", "HEAD", cwd=clone) == node.tip != old


def test_it_does_not_matter_who_asks_how_over_which_port(node: Node) -> None:
    """Agent, session, server options, order, repetition and progress: all hit one answer, byte for byte."""
    oids = [node.tip, *git("rev-parse", "develop", "v0.0", cwd=node.mirror).split()]
    first = ask(node.serve, WIDGETS, fetch_request(oids, *SHALLOW))
    wait_kept(node.serve)
    counting = Counting(node.serve)
    others = [
        fetch_request(oids[::-1], *SHALLOW[::-1]),
        fetch_request([*oids, oids[0]], *SHALLOW[1:], "thin-pack"),
        fetch_request(
            oids, *SHALLOW, capabilities=("agent=x/2", "session-id=1", "server-option=y", "object-format=sha1")
        ),
        fetch_request(oids, *SHALLOW, capabilities=CAPABILITIES[1:]),
    ]
    assert [ask(node.serve, WIDGETS, each) for each in others] == [first] * 4
    url = f"{node.serve.http_url}/{WIDGETS}/git-upload-pack"
    assert [http_ask(url, "POST", post_headers(), each).body for each in others] == [first] * 4
    assert counting.since() == {"hits": 8}
    assert is_whole_pack(pack_of(first))


def test_what_depends_on_the_guest_or_on_refs_is_never_kept(node: Node) -> None:
    """haves, deepen-not, want-ref, sparse filters and unknown arguments go to git each time, and nothing is cached."""
    parent = git("rev-parse", "main~1", cwd=node.mirror)
    kept = cache_of(node.serve)["bytes"]
    counting = Counting(node.serve)
    lines = [
        f"have {parent}",
        "deepen-not refs/tags/v0.1",
        "filter sparse:oid=main:README.md",
        "want-ref refs/heads/main",
    ]
    for line in [*lines, "from-the-future"]:
        for _ in range(2):
            ask(node.serve, WIDGETS, fetch_request(node.tip, line))
    assert counting.since() == {"direct": 10}
    assert cache_of(node.serve)["bytes"] == kept


@pytest.mark.slow
def test_a_restart_begins_empty_and_is_warm_at_once(gated: GatedFactory, tmp_path: Path) -> None:
    """The responses of an earlier `serve` are deleted, and the usual ones are produced again before guests ask."""
    node = gated()
    node.serve.clone(tmp_path / "full", WIDGETS)
    node.serve.kill()
    left = {each.name for each in answers(node)}
    (node.serve.state / "cache" / "responses" / "half").write_bytes(b"PACK")
    node.serve.start()
    wait_warm(node.serve)
    assert len(answers(node)) == len(left) - 1, "the kit's shapes, and no full clone"
    counting = Counting(node.serve)
    node.serve.clone(tmp_path / "one", WIDGETS, "--depth=1", "--filter=blob:none")
    assert counting.since() == {"hits": 2}
    node.serve.cli("disable", WIDGETS)
    assert not answers(node), "what is not served takes no room"
    assert cache_of(node.serve)["bytes"] == 0
    node.serve.cli("enable", WIDGETS)
    wait_warm(node.serve)


def test_packs_for_guests_are_made_for_speed_and_the_mirrors_are_not(gated_node: GatedNode, tmp_path: Path) -> None:
    """`pack.window=0` and light compression are what upload-pack sees, and neither refresh, repack nor the mirror."""
    node = gated_node
    [guest, _], _, pid = start_guests(node, tmp_path, 2)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    node.gate.open()
    assert ends(guest)[0] == 0
    assert b"GIT_CONFIG_NOSYSTEM=1" in environment
    config = Path(
        next(each for each in environment if each.startswith(b"GIT_CONFIG_GLOBAL=")).decode().partition("=")[2]
    )
    assert git("config", "--file", str(config), "pack.window", cwd=tmp_path) == "0"
    assert git("config", "--file", str(config), "pack.compression", cwd=tmp_path) == "1"
    for other in (node.mirror / "config", *config.parent.glob("*.config")):
        if other != config:
            assert git("config", "--file", str(other), "pack.window", cwd=tmp_path, check=False) == ""
