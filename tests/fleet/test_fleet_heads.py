"""The heads of a log go out when the log grew, and nobody takes them back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from appliance.core.fleet.heads import HeadPublisher, fault_of_stream, last_head, visiting
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import LogHead
from appliance.core.fleet.wire import read
from appliance.core.layout import Layout
from tests.fleet.log_book import LogBook, grow
from tests.support.fleet import TestFleet
from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster


@pytest.fixture
def book(tmp_path: Path, module_nats: NatsCluster) -> LogBook:
    """A log in a fleet of its own."""
    return LogBook(tmp_path, module_nats)


def heads_in(nats: NatsCluster, stream: str, subject: str) -> list[LogHead]:
    """Every head that was published there."""

    async def look(context: JetStreamContext) -> list[LogHead]:
        last = (await context.get_last_msg(stream, subject)).seq or 0
        return [read((await context.get_msg(stream, seq)).data, LogHead) for seq in range(1, last + 1)]

    try:
        return nats.ask(look)
    except Exception:
        return []


def test_a_head_goes_out_once_for_each_change(book: LogBook) -> None:
    book.publish()
    assert book.published() == 0, "an empty log has no head"
    book.grow(2)
    book.publish()
    book.publish()
    assert book.published() == 1
    book.grow()
    book.publish()
    first, second = heads_in(book.nats, book.names.heads, book.names.heads_of("a"))
    span = book.heads.span()
    assert span is not None and (second.log, second.id, second.hash) == (span.log, *span.newest)
    assert (first.log, first.id) == (second.log, 2)


def test_what_grew_while_it_waits_goes_out_at_the_next_look_and_at_a_stop(book: LogBook) -> None:
    async def run() -> None:
        async with visiting(FleetLink(book.config)) as link:
            publisher = HeadPublisher(link, book.heads, lambda: 1e9, every=0.05)
            loop = asyncio.create_task(publisher.run())

            async def wait_for(number: int) -> None:
                async with asyncio.timeout(60):
                    while (last := await last_head(link, "a")) is None or last.head.id != number:
                        await asyncio.sleep(0.01)

            for number in (1, 2):
                book.grow()
                await wait_for(number)
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            book.grow()
            await publisher.finish()
            await wait_for(3)

    asyncio.run(run())


def test_nobody_deletes_from_the_stream(book: LogBook) -> None:
    book.grow()
    book.publish()

    async def refused(context: JetStreamContext) -> list[str]:
        names, said = book.names, []
        loose = StreamConfig(name=names.heads, subjects=[names.heads_of("*")], deny_delete=False, deny_purge=False)
        for attempt in (
            context.delete_msg(names.heads, 1),
            context.purge_stream(names.heads),
            context.update_stream(loose),
        ):
            try:
                await attempt
            except APIError as error:
                said.append(str(error))
        return said

    assert len(book.nats.ask(refused)) == 3


@pytest.mark.slow
def test_a_stream_that_was_bounded_shows_it(book: LogBook) -> None:
    for _ in range(3):
        book.grow()
        book.publish()

    async def fault() -> str | None:
        async with visiting(FleetLink(book.config)) as link:
            return await fault_of_stream(link)

    assert asyncio.run(fault()) is None
    names = book.names
    bounded = StreamConfig(
        name=names.heads, subjects=[names.heads_of("*")], deny_delete=True, deny_purge=True, max_msgs=1
    )
    # The server does let whoever may change streams do this.
    book.nats.ask(lambda context: context.update_stream(bounded))
    assert "its first 2 messages are gone" in str(asyncio.run(fault()))
    assert "proves nothing" in book.serve.cli("audit", "verify", "--fleet", check=False).stderr


def test_a_link_that_is_cancelled_while_it_connects_ends(book: LogBook) -> None:
    async def cancel_after(seconds: float) -> bool:
        task = asyncio.create_task(FleetLink(book.config).run())
        await asyncio.sleep(seconds)
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=10)
        return not pending

    assert all(asyncio.run(cancel_after(number * 0.0005)) for number in range(20))


@pytest.mark.slow
def test_serve_publishes_at_its_start_at_a_stop_and_when_the_fleet_is_back(fleet: TestFleet) -> None:
    node = fleet["a"]
    layout = Layout(node.state)

    def newest() -> int:
        found = heads_in(fleet.nats, "gitmirror-default-heads", "gitmirror.default.heads.a")
        return found[-1].id if found else 0

    grow(layout)
    node.start()
    wait_until(lambda: newest() == 1, timeout=60, message="the head of the start is published")
    grow(layout)
    assert node.terminate() == 0
    assert newest() == 2
    node.start()
    wait_until(lambda: " as a\n" in node.log().split("stopping")[-1], timeout=60, message="it is connected")
    fleet.nats.servers[0].stop()
    wait_until(lambda: "cannot be used" in node.log() or "lost" in node.log(), timeout=60, message="the fleet is away")
    grow(layout)
    fleet.nats.servers[0].start()
    wait_until(lambda: newest() == 3, timeout=40, message="the head goes out when the fleet is back")
