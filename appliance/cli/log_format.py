"""The format of the log lines of `serve`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from appliance.core.text import escape

STDERR = 2
_DEBUG = 7
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels, and the priorities of syslog by which `journalctl --priority` selects."""


def is_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    """Whether a descriptor is the one that systemd connected with the journal, and was not redirected since."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LogFormatter(logging.Formatter):
    """Writes each record as one line, even when a guest or an upstream put line breaks into its message.

    The lines of a traceback are indented below the record, so that a line break in an exception's message cannot
    begin a line that looks like another record.
    """

    def __init__(self, line: str, *, has_priorities: bool = False) -> None:
        super().__init__(line)
        self._has_priorities = has_priorities

    @classmethod
    def for_environment(cls, environ: Mapping[str, str]) -> LogFormatter:
        """For the journal, leaves out the time, which it stores itself, and puts the priority before each line."""
        line = "%(levelname)s %(name)s: %(message)s"
        if not environ.get("JOURNAL_STREAM"):
            return cls(f"%(asctime)s {line}")
        return cls(line, has_priorities=is_journal(environ, STDERR))

    def format(self, record: logging.LogRecord) -> str:
        """Formats the record with all its lines."""
        text = super().format(record)
        if not self._has_priorities:
            return text
        # To the journal, every line is an entry of its own, with its own priority (sd-daemon(3)).
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Formats the line of the record itself."""
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Formats the traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Formats the stack of a record logged with `stack_info`."""
        return _indented(super().formatStack(stack_info))


def _indented(lines: str) -> str:
    return "\n".join(f"  {escape(line)}" for line in lines.split("\n"))
