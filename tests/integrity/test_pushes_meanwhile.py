"""A push that began in a mirror whose place another one took: it is refused, and nothing of it goes to the old one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import WIDGETS
from tests.integrity.nodes import OTHER, DamagedNode, damaged_node
from tests.recording.conftest import AGENTS
from tests.serving.conftest import entry_of, make_turn
from tests.serving.fetch.test_http_push import report_of
from tests.serving.fetch.wire import HttpGuest, post_headers
from tests.support.generate import generate_repository
from tests.support.gitutil import fsck, git, refs, wait_until
from tests.support.pkt import ZERO, PushConnection, push_bytes
from tests.support.processes import processes_of

TOLD = "the mirror was replaced meanwhile; nothing was recorded, push again"


class Held(Protocol):
    """A push that has begun: receive-pack runs, and waits for the commands."""

    def go_on(self) -> dict[str, str]:
        """Sends the rest; returns the report, by ref."""
        ...


class OverGit:
    """Held at its advertisement."""

    def __init__(self, node: DamagedNode, name: str, data: bytes) -> None:
        self._data = data
        self._guest = PushConnection(*node.serve.git_address, f"/{name}")

    def go_on(self) -> dict[str, str]:
        with self._guest:
            self._guest.send(self._data)
            return self._guest.read_report().report


class OverHttp:
    """Held in the length of its first command."""

    def __init__(self, node: DamagedNode, name: str, data: bytes) -> None:
        self._data = data
        self._guest = HttpGuest(node.serve.http_url)
        headers = post_headers("git-receive-pack", version=0, Content_Length=str(len(data)))
        self._guest.sock.sendall(self._guest.head("POST", f"/{name}/git-receive-pack", headers) + data[:2])

    def go_on(self) -> dict[str, str]:
        with self._guest:
            self._guest.sock.sendall(self._data[2:])
            return report_of(self._guest.read("POST"))[1]


ROADS: dict[str, Callable[[DamagedNode, str, bytes], Held]] = {"git": OverGit, "http": OverHttp}


def is_in(pid: int, mirror: Path) -> bool:
    """Whether it is a receive-pack that works in the mirror."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[1:2] == [b"receive-pack"] and os.path.samefile(f"/proc/{pid}/cwd", mirror)
    return False


def hold(node: DamagedNode, name: str) -> dict[str, tuple[Held, bytes, str]]:
    """A push over each road, with the whole of it and its commit."""
    mirror, held = node.serve.mirror(name), dict[str, tuple[Held, bytes, str]]()
    for road, begin in ROADS.items():
        turn = make_turn(mirror, f"{name} {road}")
        data = push_bytes([(ZERO, turn.commit, AGENTS + road)], turn.pack)
        held[road] = begin(node, name, data), data, turn.commit
    wait_until(
        lambda: sum(is_in(pid, mirror) for pid in processes_of(mirror)) >= len(ROADS),
        message="receive-pack is in the mirror",
    )
    return held


def assert_refused_then_recorded(node: DamagedNode, name: str, held: dict[str, tuple[Held, bytes, str]]) -> None:
    """They are refused, told why, and logged as failed; the same pushes are recorded when they come again."""
    mirror = node.serve.mirror(name)
    before = refs(mirror)
    for road, (push, _, _) in held.items():
        assert push.go_on() == {AGENTS + road: TOLD}
        entry = entry_of(node.serve, AGENTS + road)
        assert (entry["outcome"], entry["reason"]) == ("failed", TOLD)
    assert refs(mirror) == before
    for road, (_, data, commit) in held.items():
        assert ROADS[road](node, name, data).go_on() == {AGENTS + road: "ok"}
        assert refs(mirror)[AGENTS + road] == commit
        assert entry_of(node.serve, AGENTS + road)["outcome"] == "applied"
    fsck(mirror)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DamagedNode]:
    """A node whose `serve` runs."""
    with damaged_node(tmp_path_factory.mktemp("node")) as found:
        yield found


def test_a_push_that_began_before_a_heal(node: DamagedNode) -> None:
    """Its receive-pack works in what is evidence now."""
    held = hold(node, WIDGETS)
    was = node.mirror.stat().st_ino
    node.lose(git("ls-tree", "-r", "main", cwd=node.mirror).split()[2])
    node.serve.here("heal", WIDGETS)
    assert node.mirror.stat().st_ino != was, "the mirror was not replaced"
    assert_refused_then_recorded(node, WIDGETS, held)
    [evidence] = (node.serve.state / "evidence").glob(f"{WIDGETS}.*/mirror.git")
    assert not refs(evidence).keys() & {AGENTS + road for road in ROADS}
    assert fetched_by_guests(node) >= {AGENTS + road for road in ROADS}


def fetched_by_guests(node: DamagedNode) -> set[str]:
    """The refs that guests see."""
    return {line.split()[1] for line in git("ls-remote", f"{node.serve.git_url}/{WIDGETS}").splitlines()}


def test_a_push_that_began_before_a_purge(node: DamagedNode, tmp_path: Path) -> None:
    """The repository was added again, under the same name."""
    name = "acme/third"
    node.upstream.add(name, generate_repository(tmp_path / "third", commits=2, files=2))
    node.serve.here("add-repo", node.upstream.url(name))
    node.serve.wait_for_repo(name)
    held = hold(node, name)
    node.serve.here("remove-repo", name, "--purge", "--yes")
    node.serve.here("add-repo", node.upstream.url(name))
    node.serve.wait_for_repo(name)
    assert_refused_then_recorded(node, name, held)
    assert node.status(OTHER)["state"] == "fresh"
