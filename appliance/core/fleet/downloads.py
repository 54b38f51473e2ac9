"""Reads objects of the fleet's object store into files: what is not exactly what was announced is refused."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.link import CALL, FleetLink

if TYPE_CHECKING:
    from nats.js import JetStreamContext

SLOWEST = 2**20
"""Bytes a second that the store must deliver at least, beyond the time that any call may take."""


class NotInFleet(GitmirrorError):
    """The object store does not have an object."""


class ObjectRefused(GitmirrorError):
    """What came from another node is not what was announced, or breaks a rule. Nothing of it was kept."""


async def fetch_object(link: FleetLink, name: str, size: int, sha256: str, into: Path) -> None:
    """Writes the object `name` to the file `into`, which is there only if it has `size` bytes with that SHA-256.

    Raises FleetAway, NotInFleet, ObjectRefused, OSError.
    """
    from nats.js.errors import APIError, NotFoundError

    part = into.with_name(f"{into.name}.part")
    try:
        with part.open("wb", buffering=0) as file:
            try:
                await link.call(lambda js: _read(js, link, name, size, sha256, file), CALL + size / SLOWEST)
            except (NotFoundError, APIError) as error:
                raise NotInFleet(
                    f"the fleet's object store does not have {name}", hint="`fleet status` says what has yet to go out"
                ) from error
        os.replace(part, into)
    finally:
        part.unlink(missing_ok=True)


async def _read(js: JetStreamContext, link: FleetLink, name: str, size: int, sha256: str, file: IO[bytes]) -> None:
    # ObjectStore.get would follow links to other buckets, and take any number of bytes.
    store = await js.object_store(link.names.objects)
    info = await store.get_info(name)
    if info.is_link() or info.size != size:
        raise ObjectRefused(f"the object {name} has {info.size} bytes, not {size}")
    digest, got = hashlib.sha256(), 0
    if size:
        chunks = await js.subscribe(subject=f"$O.{link.names.objects}.C.{info.nuid}", ordered_consumer=True)
        try:
            while got < size:
                piece = (await chunks.next_msg(CALL)).data
                got += len(piece)
                if not piece or got > size:
                    raise ObjectRefused(f"the object {name} has not the {size} bytes that it announces")
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
        finally:
            await chunks.unsubscribe()
    if digest.hexdigest() != sha256:
        raise ObjectRefused(f"the object {name} has not the SHA-256 that its row names")
