"""Nodes say that they are there, hear each other, and notice one that has the same name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from appliance.core.config.settings import Config
from appliance.core.errors import Conflict, NotFound
from appliance.core.fleet import nodes as nodes_module
from appliance.core.fleet.addresses import is_local, own_url
from appliance.core.fleet.link import FleetAway
from appliance.core.fleet.nodes import ALIVE, Described, Nodes
from tests.support.links import a_link, running, until
from tests.support.nats import NatsCluster

DESCRIBED = Described("git://127.0.0.1:9418", 3, 2, 1, 4.5, {}, 0)


@asynccontextmanager
async def at_work(*nodes: Nodes) -> AsyncIterator[None]:
    """Runs these nodes and their connections."""
    async with running(*nodes, *(node._link for node in nodes)):
        yield


def a_node(nats: NatsCluster, name: str, fleet: str, machine: str = "boot-1", url: str | None = None) -> Nodes:
    described = Described(url or DESCRIBED.url, 3, 2, 1, 4.5, {}, 0)
    return Nodes(a_link(nats, name, fleet), lambda: described, machine=machine)


def test_nodes_hear_each_other_within_moments(module_nats: NatsCluster) -> None:
    async def meet() -> None:
        one, other = (a_node(module_nats, name, "meet") for name in ("node-1.example", "b"))
        async with at_work(one, other):
            await until(lambda: one.names() == other.names() == ["b", "node-1.example"])
            entry = one.entry("b")
            assert entry is not None and (entry.repos, entry.sessions, entry.behind, entry.lag) == (3, 2, 1, 4.5)
            assert one.is_alive("b") and one.seen("b") < 10 and not one.is_alive("c")
            assert one.twin is None and other.twin is None

    asyncio.run(meet())


def test_an_entry_that_was_not_stored_is_written_again_soon(
    module_nats: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket of a new fleet may have no leader yet. Whoever is not known is not fetched from."""
    monkeypatch.setattr(nodes_module, "SAY_EVERY", 600.0)

    async def meet() -> None:
        one, other = a_node(module_nats, "one", "unstored"), a_node(module_nats, "other", "unstored")
        call, failed = one._link.call, list[int]()

        async def fail_once(*args: Any, **options: Any) -> Any:
            if not failed and asyncio.current_task() is speaking():
                failed.append(1)
                raise FleetAway("no response from stream")
            return await call(*args, **options)

        def speaking() -> asyncio.Task[Any] | None:
            return next((task for task in asyncio.all_tasks() if task.get_name() == "this node's entry"), None)

        monkeypatch.setattr(one._link, "call", fail_once)
        async with at_work(one):
            await until(lambda: failed)
            async with at_work(other):
                await until(lambda: other.url_of("one"))

    asyncio.run(meet())


def test_a_node_that_just_connected_waits_for_the_entries_of_the_others(
    module_nats: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hear what one of them found upstream before it hears its address. It does not wait twice."""

    async def meet() -> None:
        one, other = a_node(module_nats, "one", "first"), a_node(module_nats, "other", "first")
        monkeypatch.setattr(nodes_module, "UNKNOWN_FOR", 60.0)
        async with at_work(one):
            await until(lambda: one.names() == ["one"])
            async with at_work(other):
                await other._link.wait_up()
                assert other.url_of("one") is None
                assert await other.wait_url_of("one") == "git://127.0.0.1:9418"
                monkeypatch.setattr(nodes_module, "UNKNOWN_FOR", 0.2)
                assert await other.wait_url_of("nobody") is None
                # It answers at its first step.
                with pytest.raises(StopIteration):
                    other.wait_url_of("nobody").send(None)

    asyncio.run(meet())


def test_an_address_of_loopback_counts_on_the_same_machine_only(module_nats: NatsCluster) -> None:
    async def meet() -> None:
        here = a_node(module_nats, "here", "loop")
        beside = a_node(module_nats, "beside", "loop")
        away = a_node(module_nats, "away", "loop", machine="boot-2")
        public = a_node(module_nats, "public", "loop", machine="boot-2", url="git://node-4:9418")
        odd = a_node(module_nats, "odd", "loop", machine="boot-2", url="ext::sh -c true")
        async with at_work(here, beside, away, public, odd):
            await until(lambda: len(here.names()) == 5)
            assert here.url_of("beside") == "git://127.0.0.1:9418"
            assert here.url_of("away") is here.url_of("nobody") is here.url_of("odd") is None
            assert here.url_of("public") == "git://node-4:9418"

    asyncio.run(meet())


def test_a_node_that_is_gone_is_forgotten_by_all_until_it_is_back(module_nats: NatsCluster) -> None:
    async def meet() -> None:
        one, other = (a_node(module_nats, name, "forget") for name in ("one", "other"))
        gone = a_node(module_nats, "gone.for-good", "forget")
        async with at_work(one, other):
            async with at_work(gone):
                await until(lambda: len(one.names()) == len(other.names()) == 3)
            with pytest.raises(Conflict, match=r"gone\.for-good is alive"):
                await one.forget("gone.for-good")
            with pytest.raises(Conflict):
                await one.forget("one")
            with pytest.raises(NotFound):
                await one.forget("nobody")
            one._known["gone.for-good"].changed_at -= ALIVE
            await one.forget("gone.for-good")
            await until(lambda: one.names() == other.names() == ["one", "other"])
            new = a_node(module_nats, "new", "forget")
            async with at_work(new):
                await until(lambda: new.names() == ["new", "one", "other"])
            async with at_work(a_node(module_nats, "gone.for-good", "forget")):
                await until(lambda: "gone.for-good" in one.names() and "gone.for-good" in other.names())

    asyncio.run(meet())


@pytest.mark.slow
def test_two_nodes_of_one_name_are_told_of_each_other(
    module_nats: NatsCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nodes_module, "SAY_EVERY", 0.2)

    async def meet() -> None:
        one, other = a_node(module_nats, "same", "twins"), a_node(module_nats, "same", "twins", machine="boot-2")
        async with at_work(one, other):
            await until(lambda: one.twin and other.twin)
        # Said once, not at each entry.
        assert caplog.text.count("another node calls itself same") == 2

    asyncio.run(meet())


@pytest.mark.slow
def test_a_node_that_starts_again_is_no_twin_of_itself(
    module_nats: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_module, "SAY_EVERY", 0.2)

    async def meet() -> None:
        async with at_work(before := a_node(module_nats, "again", "again", machine="boot-0")):
            await until(lambda: before.names() == ["again"])
        again = a_node(module_nats, "again", "again")
        async with at_work(again):
            entries = set()
            # Five entries of its own, so that what the earlier one left would have been noticed.
            await until(lambda: (entries.add(again.entry("again")), len(entries) > 6)[1])  # type: ignore[func-returns-value]
            assert again.twin is None

    asyncio.run(meet())


@pytest.mark.slow
def test_an_entry_that_was_there_before_is_as_old_as_the_server_says(module_nats: NatsCluster) -> None:
    async def meet() -> None:
        async with at_work(gone := a_node(module_nats, "gone", "old")):
            await until(lambda: gone.names() == ["gone"])
        await asyncio.sleep(2)
        late = a_node(module_nats, "late", "old")
        async with at_work(late):
            await until(lambda: late.names() == ["gone", "late"])
            # Of both, the connection heard just now.
            assert late.seen("gone") - late.seen("late") > 1.5

    asyncio.run(meet())


@pytest.mark.slow
def test_nodes_hear_each_other_again_after_the_server_lost_everything(
    nats: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_module, "SAY_EVERY", 0.2)

    async def meet() -> None:
        one, other = a_node(nats, "a", "lost"), a_node(nats, "b", "lost")
        async with at_work(one, other):
            await until(lambda: len(one.names()) == len(other.names()) == 2)
            nats.servers[0].lose_everything()
            nats.servers[0].start()
            await until(lambda: one.seen("b") > 0.7, 20)
            await until(lambda: one.seen("b") < 0.5 and other.seen("a") < 0.5, 20)

    asyncio.run(meet())


@pytest.mark.parametrize(
    ("fleet", "serve", "git", "http", "url"),
    [
        ({"url": "git://told:1/"}, {"public_git": "git://public:2"}, ["git://127.0.0.1:9418"], [], "git://told:1"),
        (
            {},
            {"public_git": "git://public:2", "public_http": "https://p"},
            ["git://0.0.0.0:9418"],
            [],
            "git://public:2",
        ),
        ({}, {"public_http": "https://p"}, ["git://0.0.0.0:9418"], [], "https://p"),
        ({}, {}, ["git://0.0.0.0:9418"], ["http://0.0.0.0:80"], "git://this:9418"),
        ({}, {}, ["git://[::]:9418"], [], "git://this:9418"),
        ({}, {}, ["git://10.1.2.3:9418"], [], "git://10.1.2.3:9418"),
        ({}, {}, ["git://[::1]:9418"], [], "git://[::1]:9418"),
        ({}, {}, ["vsock:9418", "unix:/run/x"], ["http://10.1.2.3:80"], "http://10.1.2.3:80"),
        ({}, {}, [], [], None),
    ],
)
def test_the_url_for_the_others(
    fleet: dict[str, str], serve: dict[str, str], git: Sequence[str], http: Sequence[str], url: str | None
) -> None:
    from dataclasses import replace

    whole = Config()
    whole = replace(whole, fleet=replace(whole.fleet, **fleet), serve=replace(whole.serve, **serve))  # type: ignore[arg-type]
    assert own_url(whole, {"git": git, "http": http}, "this") == url


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("git://127.0.0.1:9418", True),
        ("git://127.9.9.9", True),
        ("http://[::1]:80", True),
        ("git://localhost:9418", True),
        ("git://node-1:9418", False),
        ("git://10.0.0.1", False),
    ],
)
def test_what_is_local(url: str, local: bool) -> None:
    assert is_local(url) is local
