"""Storing an object costs the servers the same however many are there, and a try that was cut off leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.heads import visiting
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.objects import ObjectShelf
from tests.support.nats import NatsCluster

WHOLE, CUT_OFF = b"the whole of it", b"the beginning of"

Work = Callable[[ObjectShelf, FleetLink], Awaitable[None]]


def visit(nats: NatsCluster, name: str, work: Work) -> list[str]:
    """Does something with the shelf of a fleet; returns what it asked of the servers that goes through a stream."""
    asked: list[str] = []

    async def visited() -> None:
        async with visiting(FleetLink(FleetConfig(servers=tuple(nats.urls), name=name, node="a"))) as link:

            async def hear(message: object) -> None:
                asked.append(str(getattr(message, "subject", "")))

            async def note(message: object) -> None:
                if "Nats-Rollup" in (getattr(message, "headers", None) or {}):
                    asked.append("rollup")

            heard = [
                await link.client.subscribe("$JS.API.STREAM.PURGE.>", cb=hear),
                await link.client.subscribe("$JS.API.STREAM.MSG.DELETE.>", cb=hear),
                await link.client.subscribe("$O.>", cb=note),
            ]
            await work(ObjectShelf(link), link)
            await link.client.flush()
            # All that was sent to this connection before the answer is here.
            while any(each.pending_msgs for each in heard):
                await asyncio.sleep(0)

    asyncio.run(visited())
    return asked


def test_a_new_object_is_stored_without_a_look_through_the_others(tmp_path: Path, module_nats: NatsCluster) -> None:
    (tmp_path / "file").write_bytes(WHOLE)

    async def put(shelf: ObjectShelf, _link: FleetLink) -> None:
        await shelf.put("one", tmp_path / "file", "note")
        found = await shelf.find("one")
        assert found is not None and found.sha256 == hashlib.sha256(WHOLE).hexdigest() and found.note == "note"

    assert visit(module_nats, "new", put) == []


@pytest.mark.parametrize("restarted", [True, False])
def test_a_try_that_was_cut_off_leaves_nothing(tmp_path: Path, module_nats: NatsCluster, restarted: bool) -> None:
    (tmp_path / "file").write_bytes(WHOLE)
    (tmp_path / "cut").write_bytes(CUT_OFF)

    async def put(shelf: ObjectShelf, link: FleetLink) -> None:
        async def fail(*_: object) -> None:
            raise FleetAway("cut off")

        with pytest.MonkeyPatch.context() as patch, pytest.raises(FleetAway):
            patch.setattr(shelf, "_publish_entry", fail)
            await shelf.put("one", tmp_path / "cut")
        again = ObjectShelf(link) if restarted else shelf
        await again.put("one", tmp_path / "file")
        store = await link.call(lambda context: context.object_store(link.names.objects))
        assert (await store.get("one")).data == WHOLE

    asked = visit(module_nats, f"cut-{restarted}", put)
    assert [each.rpartition(".")[2].split("_")[0] for each in asked] == ["OBJ"]


def test_an_entry_that_is_there_is_replaced(tmp_path: Path, module_nats: NatsCluster) -> None:
    (tmp_path / "file").write_bytes(WHOLE)

    async def put(shelf: ObjectShelf, link: FleetLink) -> None:
        for _ in range(2):
            await shelf.put("one", tmp_path / "file")
        info = await link.call(lambda context: context.stream_info(f"OBJ_{link.names.objects}"))
        assert info.state.messages == 2

    assert "rollup" in visit(module_nats, "twice", put)
