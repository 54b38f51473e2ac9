"""How a background loop survives errors that are not bugs: it logs each cause once and goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.core.errors import GitmirrorError

EXPECTED = (OSError, GitmirrorError)
"""Errors of the environment: a directory, a disk, a database. Every other error is a bug and ends the loop."""


class Endurance:
    """Lets a loop skip items that fail, and logs each cause once for as long as it lasts.

    With `bugs`, it skips items that meet a bug too, and logs the traceback: for work that the rest can do without.
    """

    def __init__(self, log: logging.Logger, doing: str, *, bugs: bool = False) -> None:
        self._log = log
        self._doing = doing
        self._caught: tuple[type[Exception], ...] = (Exception,) if bugs else EXPECTED
        self._logged: dict[str, str] = {}

    @contextmanager
    def over(self, item: str) -> Iterator[None]:
        """Catches and logs an error of the block that is no reason to end. `item` is the log's name for its work."""
        try:
            yield
        except self._caught as error:
            is_bug = not isinstance(error, EXPECTED)
            cause = repr(error) if is_bug else str(error) or type(error).__name__
            if self._logged.get(item) != cause:
                self._logged[item] = cause
                self._log.error("%s: %s failed: %s", item, self._doing, cause, exc_info=is_bug)
        else:
            self._logged.pop(item, None)
