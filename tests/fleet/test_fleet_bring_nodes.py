"""A session recorded on one node is hydrated by the kit on another, also right after the first was killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.fleet import TestFleet
from tests.support.gitutil import fsck, git, refs, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import CURL, Guest
from tests.workspace.web import get

pytestmark = pytest.mark.slow


@pytest.fixture
def two(tmp_path: Path, nats: NatsCluster, upstream: HttpUpstream) -> Iterator[TestFleet]:
    """Nodes `a` and `b`, which mirror the same repository."""
    with TestFleet(tmp_path, nats, ("a", "b"), workspace={"enabled": True}) as fleet:
        fleet.start()
        fleet["a"].cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        for serve in fleet.nodes.values():
            serve.wait_for_repo(WIDGETS)
            wait_until(
                lambda serve=serve: get(f"{serve.http_url}/{WIDGETS}/workspace.tar", "HEAD").status == 200,  # type: ignore[misc]
                message="the snapshot is ready",
            )
        yield fleet


def guest_of(serve: Serve, home: Path) -> Guest:
    """A guest with the kit of a node."""
    home.mkdir(parents=True)
    kit = home / "guest.sh"
    kit.write_bytes(get(f"{serve.http_url}/guest.sh").body)
    return Guest(home, kit, "dash", CURL, {"GITMIRROR_DEADLINE": "20"})


def record(guest: Guest, place: Path, session: str) -> str:
    """Works in a new workspace, and records."""
    result = guest.hydrate(place)
    assert result.code == 0, result.err
    (place / "new.txt").write_text(session)
    return guest.record(session, place).recorded(session)


def knows(serve: Serve, session: str) -> bool:
    """Whether a node lists a session."""
    return any(each["session"] == session for each in serve.cli_json("sessions"))


def test_a_session_goes_on_at_another_node_also_when_its_own_is_gone(two: TestFleet, tmp_path: Path) -> None:
    a, b = two["a"], two["b"]
    at_a, at_b = guest_of(a, tmp_path / "home-a"), guest_of(b, tmp_path / "home-b")
    seconds = []
    for number in range(3):
        turn = record(at_a, tmp_path / f"a{number}", f"s{number}")
        wait_until(lambda number=number: knows(b, f"s{number}"), message="the turn is listed")  # type: ignore[misc]
        if number == 2:
            a.kill()
        start = time.monotonic()
        hydrated = at_b.hydrate(tmp_path / f"b{number}", f"session:s{number}")
        seconds.append(time.monotonic() - start)
        assert git("rev-parse", "HEAD", cwd=tmp_path / f"b{number}") == turn, hydrated.err
        assert (tmp_path / f"b{number}" / "new.txt").read_text() == f"s{number}"
    print("seconds of session: hydrations:", [round(each, 3) for each in seconds])
    # What goes on here is a turn of the same session.
    place = tmp_path / "b2"
    (place / "more.txt").write_text("more")
    here = at_b.record("s2", place).recorded("s2")
    assert [turn["commit"] for turn in b.cli_json("session", "show", WIDGETS, "s2")["turns"]] == [turn, here]
    fsck(b.mirror(WIDGETS))


def test_twenty_guests_of_one_session_and_its_end(two: TestFleet, tmp_path: Path) -> None:
    a, b = two["a"], two["b"]
    turn = record(guest_of(a, tmp_path / "home-a"), tmp_path / "work", "s")
    wait_until(lambda: knows(b, "s"), message="the turn is listed")

    def fetch(number: int) -> str:
        place = tmp_path / f"guest-{number}"
        git("init", "-q", "--bare", str(place))
        git("fetch", "-q", f"{b.git_url}/{WIDGETS}", "refs/agents/s", cwd=place)
        return git("rev-parse", "FETCH_HEAD", cwd=place)

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(fetch, range(20))) == {turn}
    assert b.log().count("brought a turn of s ") == 1
    # A guest that asks for it when the turn has just come has it looked for again, and it is here already.
    git("update-ref", "-d", "refs/agents/s", cwd=b.mirror(WIDGETS))
    later = map(fetch, count(20))
    wait_until(lambda: next(later) == turn == refs(b.mirror(WIDGETS)).get("refs/agents/s"), message="the ref is back")
    assert b.log().count("brought a turn of s ") == 1
    # It was ended elsewhere, so that nothing of it stays here.
    a.cli("session", "drop", WIDGETS, "s", "--yes")

    def is_gone() -> bool:
        return not [ref for ref in refs(b.mirror(WIDGETS)) if "agents/" in ref or "turns/" in ref]

    wait_until(is_gone, timeout=30, message="its refs are gone")
    assert "damage" not in b.log()
