"""How a record of `serve`'s log is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from appliance.core.text import escape


class LogFormatter(logging.Formatter):
    """Writes one line a record, whatever a guest or an upstream put into its words.

    The lines of a traceback are indented below it, so that no line break in an exception's words can begin a line
    that looks like a record.
    """

    @classmethod
    def for_environment(cls, environ: Mapping[str, str]) -> LogFormatter:
        """Without a time where the journal has its own."""
        told = "%(levelname)s %(name)s: %(message)s"
        return cls(told if environ.get("JOURNAL_STREAM") else f"%(asctime)s {told}")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's own line."""
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """The traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """A stack that was asked for."""
        return _indented(super().formatStack(stack_info))


def _indented(lines: str) -> str:
    return "\n".join(f"  {escape(line)}" for line in lines.split("\n"))
