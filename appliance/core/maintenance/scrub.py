"""Reads cached files again, slowly and one at a time, because a disk may corrupt files that nobody touched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from appliance.core.process.endurance import Endurance

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between two looks for files that are due."""

CheckNext = Callable[[], Awaitable[bool]]
"""Checks the file that was read longest ago if it is due, and returns whether it was."""


class Scrub:
    """Checks the files of all `sources`, which are named for the log."""

    def __init__(self, sources: Mapping[str, CheckNext]) -> None:
        self._sources = sources

    async def run(self) -> None:
        """Runs the loop until it is cancelled."""
        endurance = Endurance(log, "checking them")
        while True:
            found = False
            for name, check_next in self._sources.items():
                with endurance.over(name):
                    found |= await check_next()
            if not found:
                await asyncio.sleep(LOOK_EVERY)
