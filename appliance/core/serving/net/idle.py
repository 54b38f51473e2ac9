"""When a connection was last used, and ending the tasks that serve it."""

from __future__ import annotations

import asyncio
import time


class Activity:
    """When something last went over a connection, in either direction."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def touch(self) -> None:
        """Something did just now."""
        self.last = time.monotonic()

    async def expire(self, idle: float) -> None:
        """Returns after `idle` seconds without a touch."""
        while (wait := self.last + idle - time.monotonic()) > 0:
            await asyncio.sleep(wait)


async def end_tasks(*tasks: asyncio.Task[object] | asyncio.Task[int] | asyncio.Task[None]) -> None:
    """Cancels tasks and waits until they are gone, so that none touches a socket that is closed next."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
