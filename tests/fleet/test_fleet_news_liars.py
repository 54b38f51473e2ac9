"""A neighbour that is of no use, or of ill will: nothing of it reaches guests, and the upstream is asked."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from appliance.core.fleet.leases import lease_key
from appliance.core.fleet.messages import LeaseEntry, News, NodeEntry
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.neighbours import digest_of
from appliance.core.fleet.nodes import boot_id
from appliance.core.fleet.wire import write
from appliance.core.models import Repo
from appliance.core.units import rfc3339
from tests.conftest import WIDGETS
from tests.fleet.news import NewsFleet, followed, news_fleet
from tests.support.gitutil import git, wait_until
from tests.support.nats import NatsCluster
from tests.support.upstream import GitDaemonUpstream

pytestmark = pytest.mark.slow

LIAR = "liar"


class Liar:
    """A node that holds the lease of `acme/widgets`, says that it is at `url`, and answers with `say`."""

    def __init__(self, fleet: NewsFleet) -> None:
        self.url: str | None = None
        self.say: Callable[[News], bytes | None] = write
        self.asked = 0
        self.digest: str | None = None
        self._fleet = fleet
        self._names = FleetNames(fleet.name)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._client: Any = None
        self._do(self._connect())

    def hold(self) -> None:
        """Takes the lease, and tells where it is."""
        self._do(self._hold())

    def tell(self, data: bytes) -> None:
        """Says something to all nodes."""
        self._do(self._client.publish(self._names.news, data))

    def news(self) -> News:
        """What it would say."""
        return News(LIAR, WIDGETS, self._fleet.upstream.url(WIDGETS), self.digest, 0.0, moved=True, next=3600.0)

    def end(self) -> None:
        """Disconnects."""
        self._do(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _connect(self) -> None:
        self._client = await nats.connect(self._fleet.fleet.nats.urls)
        await self._client.subscribe(self._names.requests_to(LIAR), cb=self._answer)

    async def _hold(self) -> None:
        context = self._client.jetstream()
        now = rfc3339(0.0)
        entry = NodeEntry(LIAR, "0", now, now, self.url, boot_id(), 0, 0, 0, None, 0, 0)
        await (await context.key_value(self._names.nodes)).put(LIAR, write(entry))
        repo = Repo(1, WIDGETS, self._fleet.upstream.url(WIDGETS), None, "config", None, True, 0.0)
        await (await context.key_value(self._names.leases)).put(lease_key(repo), write(LeaseEntry(LIAR, WIDGETS)))

    async def _answer(self, message: Msg) -> None:
        self.asked += 1
        data = self.say(self.news())
        if data is not None:
            await self._client.publish(message.reply, data)


@pytest.fixture(scope="module")
def alone(
    module_nats: NatsCluster, generated_bare: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewsFleet]:
    """One honest node."""
    with news_fleet(tmp_path_factory.mktemp("liars"), module_nats, generated_bare, nodes=("a",)) as fleet:
        yield fleet


@pytest.fixture
def liar(alone: NewsFleet) -> Iterator[Liar]:
    """Another one."""
    made = Liar(alone)
    yield made
    made.end()


@pytest.fixture
def port(tmp_path: Path, generated_bare: Path) -> Iterator[GitDaemonUpstream]:
    """The port of the liar, with an old state of the repository."""
    with GitDaemonUpstream(tmp_path / "port") as daemon:
        daemon.add(WIDGETS, generated_bare)
        yield daemon


def refreshed(alone: NewsFleet, timeout: float = 15) -> None:
    """Has the node look, after a push; it must come to what the upstream has."""
    commit = alone.push()
    alone["a"].cli("refresh", WIDGETS, timeout=timeout)
    assert git("rev-parse", "main", cwd=alone["a"].mirror(WIDGETS)) == commit
    alone.wait_equal()


def digest_at(path: Path) -> str:
    refs, head = followed(path)
    return digest_of(refs, head.removeprefix("ref: ").strip())


@pytest.mark.parametrize(
    "say",
    [
        lambda news: None,
        lambda news: b"",
        lambda news: b"\x00" * 1000,
        lambda news: write(news)[:-5],
        lambda news: write(replace(news, repo="acme/other")),
        lambda news: write(replace(news, url="https://example.com/acme/other")),
        lambda news: write(replace(news, url="::not a url")),
        lambda news: write(replace(news, digest=None)),
        lambda news: write(replace(news, node="nobody")),
        lambda news: write(replace(news, age=10.0)),
    ],
    ids=["silent", "empty", "zeros", "half", "repo", "url", "malformed", "no digest", "nobody", "old"],
)
def test_an_answer_that_is_of_no_use(alone: NewsFleet, liar: Liar, say: Callable[[News], bytes | None]) -> None:
    liar.digest, liar.say = "a" * 64, say
    liar.hold()
    refreshed(alone)
    assert liar.asked


@pytest.mark.parametrize("url", [None, "ext::touch /tmp/never", "file:///", "--upload-pack=x", "git://127.0.0.1:1"])
def test_a_port_that_is_none(alone: NewsFleet, liar: Liar, url: str | None) -> None:
    liar.digest, liar.url = "b" * 64, url
    liar.hold()
    refreshed(alone)


def test_a_port_with_an_older_state(alone: NewsFleet, liar: Liar, port: GitDaemonUpstream) -> None:
    # It says that it has what the upstream has, and has not.
    alone.push()
    liar.digest, liar.url = digest_at(alone.upstream.path(WIDGETS)), f"git://127.0.0.1:{port.port}"
    liar.hold()
    before = alone.upstream.count(WIDGETS)
    refreshed(alone)
    assert alone.upstream.count(WIDGETS) > before


def test_another_repository_under_the_name(
    alone: NewsFleet, liar: Liar, port: GitDaemonUpstream, tmp_path: Path
) -> None:
    path = port.path(WIDGETS)
    tree = git("rev-parse", "HEAD^{tree}", cwd=path)
    git("update-ref", "refs/heads/main", git("commit-tree", tree, "-m", "another", cwd=path), cwd=path)
    alone.push()
    liar.digest, liar.url = digest_at(alone.upstream.path(WIDGETS)), f"git://127.0.0.1:{port.port}"
    liar.hold()
    refreshed(alone)


def test_a_port_that_hangs(alone: NewsFleet, liar: Liar) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        liar.digest, liar.url = "c" * 64, f"git://127.0.0.1:{silent.getsockname()[1]}"
        liar.hold()
        refreshed(alone)


def test_old_news_takes_nothing_back(alone: NewsFleet, liar: Liar, port: GitDaemonUpstream) -> None:
    """News of a look from before this node's own, with a port that has just that: both are right, and too old."""
    refreshed(alone)
    liar.digest, liar.url = digest_at(port.path(WIDGETS)), f"git://127.0.0.1:{port.port}"
    liar.say = lambda news: write(replace(news, age=3000.0))
    liar.hold()
    wanted = git("rev-parse", "main", cwd=alone["a"].mirror(WIDGETS))
    liar.tell(write(replace(liar.news(), age=3000.0)))
    liar.tell(write(liar.news()))
    wait_until(lambda: liar.asked >= 2, timeout=60, message="it is asked what it has now")
    alone["a"].cli("refresh", WIDGETS)
    assert git("rev-parse", "main", cwd=alone["a"].mirror(WIDGETS)) == wanted


def test_news_that_is_none_is_skipped(alone: NewsFleet, liar: Liar) -> None:
    for data in (b"", b"{", b"\xff" * 70_000, write(replace(liar.news(), repo="no/such")), write(liar.news())[:-1]):
        liar.tell(data)
    refreshed(alone)
    wait_until(lambda: "is skipped" in alone["a"].log(), timeout=30, message="it says that news are skipped")
    assert "Traceback" not in alone["a"].log()
