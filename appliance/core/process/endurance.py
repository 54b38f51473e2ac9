"""How a part that runs in the background outlives an error that is not its own: it says so once and goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.core.errors import GitmirrorError

EXPECTED = (OSError, GitmirrorError)
"""What the world does to a running serve: a directory, a disk, a database. All else is a bug, and is not outlived."""


class Endurance:
    """Lets a loop pass over items that fail, and logs each cause once for as long as it lasts."""

    def __init__(self, log: logging.Logger, doing: str) -> None:
        self._log = log
        self._doing = doing
        self._said: dict[str, str] = {}

    @contextmanager
    def over(self, item: str) -> Iterator[None]:
        """Outlives an expected error of what the block does for `item`, which names it in the log."""
        try:
            yield
        except EXPECTED as error:
            cause = str(error) or type(error).__name__
            if self._said.get(item) != cause:
                self._said[item] = cause
                self._log.error("%s: %s failed: %s", item, self._doing, cause)
        else:
            self._said.pop(item, None)
