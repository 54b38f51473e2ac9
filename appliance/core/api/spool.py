"""Keeps a body that was made whole on disk while a client takes it, however slowly."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import GitmirrorError

PIECE = 65536
"""Bytes that are read at once, and so held for each client."""
BATCH = 2**20
"""Bytes that are written at once."""


async def spool(pieces: AsyncGenerator[bytes, None], directory: Path) -> BinaryIO:
    """A file without a name, below `directory`, with all that `pieces` yields; close it. Raises GitmirrorError.

    Whatever kills the process, nothing of it is left.
    """
    try:
        file: BinaryIO = await asyncio.to_thread(tempfile.TemporaryFile, dir=directory)
        try:
            waiting, size = [], 0
            async for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                if size >= BATCH:
                    await asyncio.to_thread(file.writelines, waiting)
                    waiting, size = [], 0
            await asyncio.to_thread(file.writelines, waiting)
            await asyncio.to_thread(file.seek, 0)
        except BaseException:
            with suppress(OSError):
                # What could not be written is tried once more, in vain on a full disk.
                file.close()
            raise
    except OSError as error:
        hint = "free space there, or ask for another form"
        raise GitmirrorError(
            f"a temporary file in {directory} cannot be written: {error.strerror}", hint=hint
        ) from error
    return file


async def spooled(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    """Yields the rest of a file."""
    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece
