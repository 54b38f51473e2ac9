"""Files as objects of the fleet's object store, in the form that every NATS client reads (ADR-20 of NATS).

An object is pieces on a subject, and an entry with their number and digest, which is written last: until then nobody
sees the object. nats-py's own `put` takes a new subject for each try, so what an interrupted one leaves stays forever.
Here the subject follows from the object and the node, and a try begins by emptying it if there is anything. To
empty one, or to replace what it has, costs more with each object of the fleet, because the server looks through all.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from appliance.core.fleet.link import FleetAway, FleetLink

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.api import ObjectInfo, PubAck

PIECE = 128 * 2**10
"""Bytes of one message. The server takes 1 MiB; smaller ones leave room for what others send."""
AT_ONCE = 8
"""Pieces that are under way at once, so that a large file does not wait for a round trip for each. 1 MiB of memory."""
STORE = 30.0
"""Seconds that the pieces under way may take: 280 kbit/s suffice."""


@dataclass(frozen=True)
class StoredObject:
    """An object that is complete in the store. `note` is the text that it was stored with."""

    size: int
    sha256: str
    note: str


class ObjectShelf:
    """The objects of the fleet of `link`. All methods raise FleetAway and nats-py's errors."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link
        self._bucket = link.names.objects
        self._stream = f"OBJ_{self._bucket}"
        self._interrupted: set[str] = set()
        """Places where pieces may still arrive of a try that did not end well."""

    async def find(self, name: str) -> StoredObject | None:
        """The object of that name."""
        from nats.js.errors import NotFoundError

        try:
            found = await self._link.call(lambda context: context.get_last_msg(self._stream, self._entry(name)))
        except NotFoundError:
            return None
        try:
            entry = json.loads(found.data or b"")
            digest = base64.urlsafe_b64decode(str(entry["digest"]).removeprefix("SHA-256="))
            if entry.get("deleted"):
                return None
            return StoredObject(int(entry["size"]), digest.hex(), str(entry.get("description") or ""))
        except (ValueError, KeyError, TypeError):
            # Not written by us; it is replaced.
            return None

    async def put(self, name: str, file: Path, note: str = "") -> StoredObject:
        """Stores a file under a name that `find` did not find. Raises OSError."""
        place = self._place(name)
        pieces = self._pieces(place)
        if place in self._interrupted or await self._has(pieces):
            await self._clear(pieces)
        self._interrupted.add(place)
        with await asyncio.to_thread(file.open, "rb") as source:
            stored, count = await self._send(source, pieces, note)
        await self._link.call(lambda context: self._publish_entry(context, name, place, stored, count))
        self._interrupted.discard(place)
        return stored

    async def remove(self, name: str) -> None:
        """Removes an object that this node stored, or what an interrupted `put` left of it."""
        from nats.js.errors import NotFoundError

        places = {self._place(name)}
        try:
            found = await self._link.call(lambda context: context.get_last_msg(self._stream, self._entry(name)))
            places.add(str(json.loads(found.data or b"")["nuid"]))
        except (NotFoundError, ValueError, KeyError, TypeError):
            pass
        await self._clear(self._entry(name))
        for place in places:
            await self._clear(self._pieces(place))

    async def _send(self, source: BinaryIO, subject: str, note: str) -> tuple[StoredObject, int]:
        digest, size, count, last = hashlib.sha256(), 0, 0, 0
        while data := await asyncio.to_thread(source.read, PIECE * AT_ONCE):
            digest.update(data)
            pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
            acks = await self._link.call(lambda context, pieces=pieces: _all(context, subject, pieces), STORE)  # type: ignore[misc]
            for ack in acks:
                if ack.seq <= last:
                    raise FleetAway("the fleet stored the pieces of an object in another order than they were sent in")
                last = ack.seq
            size += len(data)
            count += len(pieces)
        return StoredObject(size, digest.hexdigest(), note), count

    async def _publish_entry(
        self, context: JetStreamContext, name: str, place: str, stored: StoredObject, count: int
    ) -> None:
        entry = _entry(name, self._bucket, place, stored, count)
        headers = {"Nats-Rollup": "sub"} if await self._has(self._entry(name)) else None
        await context.publish(self._entry(name), json.dumps(entry.as_dict()).encode(), headers=headers)

    async def _has(self, subject: str) -> bool:
        from nats.js.errors import NotFoundError

        try:
            await self._link.call(lambda context: context.get_last_msg(self._stream, subject))
        except NotFoundError:
            return False
        return True

    async def _clear(self, subject: str) -> None:
        """Deletes the messages of a subject, one by one.

        Not by a purge: a server of nats-server 2.9 that was killed does it again as it starts, and then deletes every
        message that came before, of all subjects, from its copy of the stream. Nobody notices until it is asked.
        """
        from nats.js.errors import NotFoundError

        seq = 1
        with contextlib.suppress(NotFoundError):
            while True:
                found = await self._link.call(
                    lambda context, seq=seq: context.get_msg(self._stream, seq, subject, next=True)  # type: ignore[misc]
                )
                seq = int(found.seq or seq)
                await self._link.call(lambda context, seq=seq: context.delete_msg(self._stream, seq))  # type: ignore[misc]
                seq += 1

    def _place(self, name: str) -> str:
        """Where the pieces of this node's object are: two nodes may store one attachment at the same time."""
        return hashlib.sha256(f"{name} {self._link.node}".encode()).hexdigest()[:32]

    def _pieces(self, place: str) -> str:
        return f"$O.{self._bucket}.C.{place}"

    def _entry(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


async def _all(context: JetStreamContext, subject: str, pieces: list[bytes]) -> list[PubAck]:
    sending: list[Coroutine[Any, Any, PubAck]] = [context.publish(subject, piece, timeout=STORE) for piece in pieces]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in sending]
    return [task.result() for task in tasks]


def _entry(name: str, bucket: str, place: str, stored: StoredObject, count: int) -> ObjectInfo:
    from nats.js.api import ObjectInfo, ObjectMetaOptions

    digest = base64.urlsafe_b64encode(bytes.fromhex(stored.sha256)).decode()
    return ObjectInfo(
        name=name,
        bucket=bucket,
        nuid=place,
        size=stored.size,
        chunks=count,
        digest=f"SHA-256={digest}",
        description=stored.note,
        options=ObjectMetaOptions(max_chunk_size=PIECE),
    )
