"""Notes when a connection was last used, and ends the tasks that serve it."""

from __future__ import annotations

import asyncio
import time


class Activity:
    """The time of the last bytes on a connection, in either direction."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def touch(self) -> None:
        """Notes that bytes just moved."""
        self.last = time.monotonic()

    async def expire(self, idle: float) -> None:
        """Returns after `idle` seconds without a touch."""
        while (wait := self.last + idle - time.monotonic()) > 0:
            await asyncio.sleep(wait)


async def end_tasks(*tasks: asyncio.Task[object] | asyncio.Task[int] | asyncio.Task[None]) -> None:
    """Cancels tasks and waits for their end, so that none uses a socket that the caller closes next."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
