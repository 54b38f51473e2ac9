"""The format of the log lines of `serve`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from appliance.core.text import escape


class LogFormatter(logging.Formatter):
    """Writes each record as one line, even when a guest or an upstream put line breaks into its message.

    The lines of a traceback are indented below the record, so that a line break in an exception's message cannot
    begin a line that looks like another record.
    """

    @classmethod
    def for_environment(cls, environ: Mapping[str, str]) -> LogFormatter:
        """Leaves out the time under systemd, because the journal stores its own."""
        line = "%(levelname)s %(name)s: %(message)s"
        return cls(line if environ.get("JOURNAL_STREAM") else f"%(asctime)s {line}")

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
