"""Every operation over every road that guests come by: tunnels that close late, single ones, slow ones, proxies.

Each operation is done twice over one road, because a connection that does not end shows only with the next one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import fsck, git, git_result, wait_until
from tests.support.roads import BOTH_CLOSE_QUEUE, GAP, RESET, ROADS, HttpProxy, Kind, Road
from tests.workspace.conftest import BUSYBOX, CURL, GNU_WGET, Guest, Node

pytestmark = pytest.mark.slow

SOON = 9.0
"""Seconds: less than a connection over HTTP was kept for its next request, and far less than one over git://."""
OLD = "main~3"
"""Where a guest was before it fetches."""


@dataclass(frozen=True)
class Guests:
    """A guest behind one road, which leads to both ports, and what it does there."""

    node: Node
    guest: Guest
    git: Road
    web: Road

    def url(self, protocol: str) -> str:
        """Of `acme/widgets` for plain git."""
        return f"{protocol}://127.0.0.1:{(self.git if protocol == 'git' else self.web).port}/{WIDGETS}"

    def path(self, name: str) -> Path:
        """Where something does not exist yet."""
        return self.guest.home / f"{name}-{len(list(self.guest.home.iterdir()))}"

    def hydrate(self, want: str = "") -> Path:
        """The workspace, which came from the snapshot."""
        workspace = self.path("workspace")
        commit = self.guest.hydrate(workspace, want).hydrated(via="snapshot")
        assert git("rev-parse", "HEAD", cwd=workspace) == commit
        assert git("status", "--porcelain", cwd=workspace) == ""
        return workspace


@contextmanager
def behind(node: Node, home: Path, kind: Kind, tools: tuple[str, ...] = CURL, **env: str) -> Iterator[Guests]:
    """A guest behind a road of one kind."""
    http = urlsplit(node.serve.http_url)
    assert http.hostname and http.port
    with Road((http.hostname, http.port), kind) as web, Road(node.serve.git_address, kind, beside=web) as plain:
        addresses = {
            "GITMIRROR_HTTP": f"http://127.0.0.1:{web.port}",
            "GITMIRROR_GIT": f"git://127.0.0.1:{plain.port}",
        }
        yield Guests(node, node.guest(home, tools=tools, **addresses | env), plain, web)


@pytest.fixture(params=list(ROADS.values()), ids=list(ROADS))
def guests(request: pytest.FixtureRequest, node: Node, tmp_path: Path) -> Iterator[Guests]:
    """A guest behind each of the roads."""
    with behind(node, tmp_path / "home", request.param) as made:
        yield made


def twice(work: Callable[[], object], rest: float = 0.0) -> None:
    """Do it two times, neither of which may take long; `rest` seconds apart."""
    for number in range(2):
        start = time.monotonic()
        work()
        assert time.monotonic() - start < SOON
        if not number:
            # What plain git does over a road that drops its second connection is for its caller to try again.
            time.sleep(rest)


def test_a_workspace(guests: Guests) -> None:
    """From the snapshot."""
    twice(guests.hydrate)


def test_a_turn_and_the_session_it_is_in(guests: Guests) -> None:
    """Recorded, and gone on with in another workspace, which takes a connection of its own for the difference."""
    session = f"road-{guests.web.port}"
    workspace = guests.hydrate()
    (workspace / "made").write_text("by an agent\n")
    twice(lambda: guests.guest.record(session, workspace))
    again: list[Path] = []
    twice(lambda: again.append(guests.hydrate(f"session:{session}")))
    assert [(place / "made").read_text() for place in again] == ["by an agent\n"] * 2
    (again[0] / "made").write_text("by another\n")
    guests.guest.record(session, again[0]).recorded(session)


@pytest.mark.parametrize("tools", [CURL, GNU_WGET], ids=["curl", "wget"])
@pytest.mark.parametrize("kind", [GAP, RESET, BOTH_CLOSE_QUEUE], ids=["gap", "reset", "both-close-queue"])
def test_attachments_of_a_turn(node: Node, tmp_path: Path, kind: Kind, tools: tuple[str, ...]) -> None:
    """Each comes by a connection of its own, right after that of the push, and none is lost."""
    with behind(node, tmp_path / "home", kind, tools) as guests:
        workspace, session = guests.hydrate(), f"attached-{guests.web.port}"
        for name in ("one", "two"):
            (guests.guest.home / name).write_text(name)
        start = time.monotonic()
        said = guests.guest.run(f"gitmirror_record {session} {workspace} --attach one --attach two")
        assert time.monotonic() - start < SOON
        said.recorded(session)
        [turn] = json.loads(node.serve.here("session", "show", WIDGETS, session, "--json"))["turns"]
        assert [file["name"] for file in turn["attachments"]] == ["one", "two"]


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_clone_by_git(guests: Guests, protocol: str) -> None:
    """One connection over either protocol; over every other road the one is shallow and the other is not."""
    shallow = (list(ROADS.values()).index(guests.web.kind) % 2 == 0) == (protocol == "git")
    places: list[Path] = []

    def clone() -> None:
        places.append(guests.path("clone"))
        git("clone", "--quiet", *(["--depth=1"] if shallow else []), guests.url(protocol), str(places[-1]))

    twice(clone, rest=guests.web.kind.gap)
    for place in places:
        fsck(place)


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_clone_without_blobs(guests: Guests, protocol: str) -> None:
    """The checkout fetches them over a connection of its own. Where that is dropped, git says so, and a second later
    the rest comes."""

    def clone() -> None:
        place, before = guests.path("clone"), guests.git.turned_away + guests.web.turned_away
        code, _, stderr = git_result(
            "clone", "--quiet", "--filter=blob:none", guests.url(protocol), str(place), cwd=guests.guest.home
        )
        # On a busy machine the second connection may come late enough to be let in.
        if guests.web.kind == GAP and guests.git.turned_away + guests.web.turned_away > before:
            assert code != 0 and "checkout failed" in stderr
            time.sleep(GAP.gap)
            git("reset", "--quiet", "--hard", cwd=place)
        else:
            assert code == 0, stderr
        assert git("status", "--porcelain", cwd=place) == ""

    twice(clone, rest=guests.web.kind.gap)


@pytest.fixture(scope="module")
def behind_main(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that is some commits behind, without its files. To be copied."""
    place = tmp_path_factory.mktemp("behind") / "clone"
    bare = node.upstream.path(WIDGETS)
    git("clone", "--quiet", "--no-tags", "--single-branch", "--no-checkout", f"file://{bare}", str(place))
    git("update-ref", "refs/heads/main", OLD, cwd=place)
    git("update-ref", "refs/remotes/origin/main", "refs/heads/main", cwd=place)
    git("read-tree", "HEAD", cwd=place)
    return place


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_fetch_and_a_push_by_git(guests: Guests, behind_main: Path, protocol: str) -> None:
    """Each takes one connection, after rounds of negotiation."""
    place, rest = guests.path("old"), guests.web.kind.gap
    shutil.copytree(behind_main, place)
    old = (place / ".git/refs/heads/main").read_text().strip()

    def fetch() -> None:
        git("update-ref", "refs/heads/fetched", old, cwd=place)
        git("fetch", "--quiet", guests.url(protocol), "+refs/heads/*:refs/remotes/fetched/*", cwd=place)
        assert git("rev-parse", "refs/remotes/fetched/main", cwd=place) == guests.node.tip

    twice(fetch, rest)
    time.sleep(rest)

    def push() -> None:
        git("commit", "--quiet", "--allow-empty", "--message=turn", cwd=place)
        git("push", "--quiet", guests.url(protocol), f"+HEAD:refs/agents/push-{guests.web.port}", cwd=place)

    twice(push, rest)


def test_refs_by_git(guests: Guests) -> None:
    """Nothing follows a listing, and over HTTP only git knows that."""
    twice(lambda: git("ls-remote", guests.url("git"), "HEAD"), guests.web.kind.gap)
    time.sleep(guests.web.kind.gap)
    twice(lambda: git("ls-remote", guests.url("http"), "HEAD"), guests.web.kind.gap)


@pytest.mark.parametrize("tools", [GNU_WGET, BUSYBOX], ids=["wget", "busybox"])
@pytest.mark.parametrize("kind", [BOTH_CLOSE_QUEUE, GAP], ids=["both-close-queue", "gap"])
def test_other_programs_end_their_connections_too(
    node: Node, tmp_path: Path, kind: Kind, tools: tuple[str, ...]
) -> None:
    """And ask again after one was dropped."""
    with behind(node, tmp_path / "home", kind, tools) as guests:
        twice(guests.hydrate)


def test_a_clone_by_the_kit_over_a_road_that_drops_the_second(node: Node, tmp_path: Path) -> None:
    """Without a program that downloads, it lists the refs and clones, from the mirror and not from the upstream."""
    with behind(node, tmp_path / "home", GAP, ()) as guests:

        def was_turned_away() -> bool:
            before = guests.git.turned_away + guests.web.turned_away
            assert guests.guest.hydrate(guests.path("w")).hydrated(via="mirror") == node.tip
            return guests.git.turned_away + guests.web.turned_away > before

        # On a busy machine the second connection may come late enough to be let in.
        wait_until(was_turned_away, message="the second connection was dropped")


@pytest.mark.parametrize("lazy", [False, True], ids=["paths", "addresses"])
def test_a_proxy_for_http(node: Node, tmp_path: Path, lazy: bool) -> None:
    """By `http_proxy`, which git:// ignores: a guest that has nothing else reaches the mirror all the same."""
    with HttpProxy(lazy=lazy) as proxy:
        env = {"http_proxy": proxy.url, "no_proxy": "", "NO_PROXY": ""}
        guest = node.guest(tmp_path / "home", tools=CURL, GITMIRROR_GIT="", **env)
        workspace, session = guest.home / "w", f"proxy-{proxy.port}"
        assert guest.hydrate(workspace).hydrated(via="snapshot") == node.tip
        (workspace / "made").write_text("here\n")
        guest.record(session, workspace).recorded(session)
        guest.hydrate(guest.home / "again", f"session:{session}").hydrated(via="snapshot")
        for options in ((), ("--depth=1",), ("--filter=blob:none",)):
            place = guest.home / f"clone{len(options[0]) if options else 0}"
            guest.git("clone", "--quiet", *options, f"{node.serve.http_url}/{WIDGETS}", str(place), cwd=guest.home)
        guest.git("fetch", "--quiet", cwd=place)
        assert set(proxy.methods) <= {"GET", "POST"} and proxy.came >= 6


def test_a_proxy_that_takes_connect_alone(node: Node, tmp_path: Path) -> None:
    """curl and git ask for http:// without CONNECT, so it refuses, and the kit says so and goes on over git://."""
    with HttpProxy(tunnels_only=True) as proxy:
        env = {"http_proxy": proxy.url, "no_proxy": "", "NO_PROXY": ""}
        guest = node.guest(tmp_path / "home", tools=CURL, **env)
        done = guest.hydrate(guest.home / "w")
        assert done.hydrated(via="mirror") == node.tip
        assert "the snapshot failed" in done.err
