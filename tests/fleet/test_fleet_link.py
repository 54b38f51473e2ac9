"""The connection to the fleet: made, lost and made again, and what it says of what is wrong."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import KeyNotFoundError

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet import link as link_module
from appliance.core.fleet.client import connect
from appliance.core.fleet.credentials import read_access
from appliance.core.fleet.link import FleetAway
from tests.support.links import a_link, running, until
from tests.support.nats import NatsCluster
from tests.support.ports import hold_port, port_of


async def key(context: JetStreamContext, bucket: str) -> object:
    return await (await context.key_value(bucket)).get("nobody")


def test_the_streams_are_made_and_answers_are_no_trouble(module_nats: NatsCluster) -> None:
    async def work() -> None:
        link = a_link(module_nats, fleet="made")
        ups = []
        link.on_up(lambda: ups.append(1))
        async with running(link):
            await link.wait_up()
            assert link.trouble is None and link.remarks == [] and ups == [1]
            names = {str(info.config.name) for info in await link.call(lambda context: context.streams_info())}
            assert {"gitmirror-made-turns", "gitmirror-made-heads", "OBJ_gitmirror-made-objects"} <= names
            with pytest.raises(KeyNotFoundError):
                await link.call(lambda context: key(context, link.names.registry))
            assert link.trouble is None
        with pytest.raises(FleetAway, match="serve ends"):
            await link.call(lambda context: context.account_info())

    asyncio.run(work())


def test_a_call_ends_in_time_even_if_it_ignores_its_end(module_nats: NatsCluster) -> None:
    may_end, ended = asyncio.Event(), list[int]()

    async def stubborn(context: JetStreamContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # As nats-py does while it flushes.
            await may_end.wait()
            ended.append(1)

    async def work() -> None:
        link = a_link(module_nats, fleet="made")
        async with running(link):
            await link.wait_up()
            with pytest.raises(FleetAway, match=r"no answer within 0\.1 s"):
                async with asyncio.timeout(30):
                    await link.call(stubborn, timeout=0.1)
            assert not ended
            may_end.set()
            await until(lambda: ended)

    asyncio.run(work())


def test_one_good_server_among_bad_ones_is_found(module_nats: NatsCluster) -> None:
    async def work(port: int) -> None:
        nobody, missing = f"nats://127.0.0.1:{port}", "nats://nats-9.invalid:4222"
        link = a_link(module_nats, fleet="made", servers=(missing, nobody, *module_nats.urls))
        async with running(link):
            await asyncio.wait_for(link.wait_up(), 30)

    with hold_port() as held:
        asyncio.run(work(port_of(held)))


def test_each_server_is_named_with_what_it_said(capfd: pytest.CaptureFixture[str], module_nats: NatsCluster) -> None:
    async def work(port: int) -> None:
        nobody, missing = f"nats://127.0.0.1:{port}", "nats://nats-9.invalid:4222"
        link = a_link(module_nats, servers=(nobody, missing))
        async with running(link):
            said = await until(lambda: link.trouble != "not connected yet" and link.trouble)
            assert f"{nobody}: Connection refused" in said and f"{missing}: its name cannot be resolved" in said
            assert "mend [fleet] servers, or start nats-server there" in said
            with pytest.raises(FleetAway, match="Connection refused"):
                await link.call(lambda context: context.account_info())

    with hold_port() as held:
        asyncio.run(work(port_of(held)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_does_not_speak_nats_is_told_apart(nats: NatsCluster, tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work() -> None:
        for handler, words in ((talk, "it does not speak NATS"), (silent, "it did not answer within 2 s")):
            server = await asyncio.start_server(handler, "127.0.0.1", 0)
            link = a_link(nats, servers=(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}",))
            async with running(link):
                await until(lambda link=link, words=words: words in str(link.trouble))  # type: ignore[misc]
            server.close()

    asyncio.run(work())


@pytest.mark.slow
def test_killed_and_started_again(
    nats: NatsCluster, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        link = a_link(nats)
        ups = []
        link.on_up(lambda: ups.append(1))
        async with running(link):
            await link.wait_up()
            nats.servers[0].stop()
            await until(lambda: not link.is_up)
            await until(lambda: "Connection refused" in str(link.trouble))
            await asyncio.sleep(4)
            nats.servers[0].start()
            await until(lambda: link.is_up)
            assert link.trouble is None and len(ups) == 2
            await link.call(lambda context: context.account_info())

    asyncio.run(work())
    assert caplog.text.count("Connection refused") == 1, "said once, not at each try"
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_started_later_than_the_node(tmp_path: Path, nats: NatsCluster) -> None:
    async def work() -> None:
        nats.servers[0].stop()
        link = a_link(nats)
        async with running(link):
            await until(lambda: "Connection refused" in str(link.trouble))
            nats.servers[0].start()
            await until(lambda: link.is_up)

    asyncio.run(work())


@pytest.mark.slow
def test_frozen(nats: NatsCluster, capfd: pytest.CaptureFixture[str]) -> None:
    """Every call ends in time, the trouble is noticed without one, and all goes on once it is thawed."""

    async def work() -> None:
        link = a_link(nats)
        async with running(link):
            await link.wait_up()
            nats.servers[0].freeze()
            start = time.monotonic()
            async with asyncio.timeout(30):
                with pytest.raises(FleetAway):
                    await link.call(
                        lambda context: context.publish(link.names.heads_of("a"), b"x" * 500_000), timeout=1
                    )
            print(f"the call ended after {time.monotonic() - start:.2f} s")
            await until(lambda: not link.is_up, 30)
            await until(lambda: "did not answer within 2 s" in str(link.trouble), 30)
            nats.servers[0].thaw()
            await until(lambda: link.is_up, 30)

    asyncio.run(work())
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_server_that_lost_its_data_gets_its_streams_anew(nats: NatsCluster) -> None:
    async def work() -> None:
        link = a_link(nats)
        ups = []
        link.on_up(lambda: ups.append(1))
        async with running(link):
            await link.wait_up()
            nats.servers[0].lose_everything()
            nats.servers[0].start()
            await until(lambda: len(ups) == 2)
            await link.call(lambda context: context.publish(link.names.heads_of("a"), b"x"))
            # Deleted while the connection holds: the next look, or the next call, notices.
            await link.call(lambda context: context.delete_stream(link.names.turns))
            with pytest.raises(FleetAway):
                await link.call(lambda context: context.publish(link.names.turns_of("a"), b"x"))
            await until(lambda: len(ups) == 3)

    asyncio.run(work())


@pytest.mark.slow
def test_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is there can be read; `trouble` says that nothing more is stored for as long as that is so."""
    cluster = NatsCluster(tmp_path / "nats", store="1MB")
    with cluster:

        async def work() -> None:
            link = a_link(cluster)
            async with running(link):
                await link.wait_up()
                for _ in range(12):
                    try:
                        await link.call(lambda context: context.publish(link.names.turns_of("a"), b"x" * 100_000))
                    except FleetAway as error:
                        assert "NATS has no room for more" in error.message
                assert link.is_up and "raise max_file_store" in str(link.trouble)
                await link.call(lambda context: context.stream_info(link.names.turns))
                await link.call(lambda context: context.purge_stream(link.names.turns))

        asyncio.run(work())
    assert caplog.text.count("has no room for more") == 1


def test_replicas_that_the_servers_cannot_keep(module_nats: NatsCluster) -> None:
    async def work() -> None:
        link = a_link(module_nats, fleet="many", replicas=3)
        async with running(link):
            await until(lambda: "set it to at most the number of servers" in str(link.trouble))

    asyncio.run(work())


def test_replicas_of_an_existing_fleet_are_told(module_nats: NatsCluster) -> None:
    async def work() -> None:
        async with running(first := a_link(module_nats, fleet="few")):
            await first.wait_up()
        async with running(link := a_link(module_nats, fleet="few", replicas=3)):
            await link.wait_up()
            assert link.remarks == [
                "[fleet] replicas is 3, but what the fleet has is stored 1 times: nats-server is in no cluster"
            ]

    asyncio.run(work())


def test_a_stream_of_somebody_else_is_left_alone(module_nats: NatsCluster) -> None:
    async def make(context: JetStreamContext) -> object:
        return await context.add_stream(StreamConfig(name="gitmirror-theirs-turns", subjects=["theirs.>"]))

    module_nats.ask(make)

    async def work() -> None:
        async with running(link := a_link(module_nats, fleet="theirs")):
            await until(lambda: "it is not gitmirror's" in str(link.trouble))

    asyncio.run(work())


def test_a_part_that_cannot_begin_anew_does_not_end_the_others(
    module_nats: NatsCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        link, ups = a_link(module_nats, fleet="made"), []
        link.on_up(lambda: 1 // 0)  # type: ignore[arg-type]
        link.on_up(lambda: ups.append(1))
        async with running(link):
            await link.wait_up()
            assert ups == [1] and "ZeroDivisionError" in caplog.text

    asyncio.run(work())


@pytest.mark.slow
def test_without_jetstream(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path / "nats", store=None)
    cluster.servers[0].start()
    try:

        async def work() -> None:
            async with running(link := a_link(cluster)):
                await until(lambda: "nats-server runs without JetStream" in str(link.trouble))

        asyncio.run(work())
    finally:
        cluster.servers[0].stop()


@pytest.mark.slow
def test_a_cluster_loses_a_server_then_its_quorum_and_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(link_module, "LOOK_EVERY", 1.0)
    with NatsCluster(tmp_path / "nats", 3) as cluster:

        async def publish(link: link_module.FleetLink) -> bool:
            try:
                await link.call(lambda context: context.publish(link.names.heads_of("a"), b"x"), timeout=3)
            except FleetAway:
                return False
            return True

        async def work() -> None:
            link = a_link(cluster)
            async with running(link):
                await asyncio.wait_for(link.wait_up(), 30)
                assert link.remarks == []
                info = await link.call(lambda context: context.stream_info(link.names.turns))
                assert info.config.num_replicas == 3 and info.cluster is not None
                # The leader goes: another is elected, within ten seconds or so.
                leader = next(server for server in cluster.servers if server.name == info.cluster.leader)
                leader.stop()
                async with asyncio.timeout(30):
                    while not await publish(link):
                        await asyncio.sleep(0.2)
                # The quorum goes: nothing answers, and calls end at once once that is known.
                other = next(server for server in cluster.servers if server.process)
                other.stop()
                await until(lambda: not link.is_up)
                await until(lambda: "more than half of the servers of its cluster must run" in str(link.trouble))
                begun = list[JetStreamContext]()

                async def begin(context: JetStreamContext) -> None:
                    begun.append(context)

                with pytest.raises(FleetAway):
                    await link.call(begin)
                assert not begun
                leader.start()
                other.start()
                async with asyncio.timeout(40):
                    while not await publish(link):
                        await asyncio.sleep(0.2)

        asyncio.run(work())
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_stop_at_any_moment_of_connecting_leaves_no_task(module_nats: NatsCluster) -> None:
    """asyncio complains in the log of what is pending when `serve` ends."""
    access = read_access(FleetConfig())

    async def work() -> None:
        for steps in range(0, 400, 10):
            connecting = asyncio.create_task(connect(module_nats.urls[0], access, on_error=print))
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.sleep(steps / 40000)
            connecting.cancel()
            await asyncio.wait((connecting,))
            if not connecting.cancelled() and connecting.exception() is None:
                return
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        pytest.fail("it never connected")

    asyncio.run(work())
