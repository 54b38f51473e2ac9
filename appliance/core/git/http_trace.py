"""Reads from an upstream's HTTP headers what git does not report: when to retry."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_PATIENCE = 3600.0
"""The longest Retry-After that is honoured, in seconds: an upstream's mistake must not stop a mirror for a year."""
USUAL_PATIENCE = 60.0
"""Seconds to wait after a 429 without Retry-After: GitHub requires at least a minute."""
MOST_TRACE = 2**20
"""The most bytes of a trace that are read."""


class HttpTrace:
    """Records the headers of git's HTTP exchanges in memory, because git does not report Retry-After.

    A second request just to read the header would add to the load that the upstream complains about. git leaves out
    credentials and cookies (GIT_TRACE_REDACT), and only a number of seconds is ever taken from the trace.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("gitmirror-http", os.MFD_CLOEXEC)
        self.environment = {
            # A path, because git accepts a descriptor number only if it has one digit.
            "GIT_TRACE_CURL": f"/proc/self/fd/{self.file}",
            "GIT_TRACE_CURL_NO_DATA": "1",
            "GIT_TRACE_REDACT": "1",
        }

    def __enter__(self) -> HttpTrace:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def retry_after(self) -> float | None:
        """Seconds that the last response asks the client to wait, or None."""
        return retry_after(self._text(), time.time())

    def is_of_no_git_server(self) -> bool:
        """Whether there were HTTP responses and none of them had the content type of a git server."""
        text = self._text().lower()
        return "<= recv header: http/" in text and "application/x-git-upload-pack-advertisement" not in text

    def _text(self) -> str:
        return os.pread(self.file, MOST_TRACE, 0).decode("latin-1")


_STATUS = re.compile(r"<= Recv header: HTTP/[\d.]+ (\d{3})")
_RETRY_AFTER = re.compile(r"<= Recv header: retry-after:\s*(.+?)\s*$", re.IGNORECASE)


def retry_after(trace: str, now: float) -> float | None:
    """Seconds that the last response in a curl trace (GIT_TRACE_CURL) asks the client to wait, or None.

    Both forms of RFC 9110 10.2.3 are read, seconds and a date. The header counts only on a 403, 429 or 503, and up to
    MOST_PATIENCE; a 429 without it means USUAL_PATIENCE.
    """
    status, header = 0, ""
    for line in trace.splitlines():
        if match := _STATUS.search(line):
            status, header = int(match[1]), ""
        elif match := _RETRY_AFTER.search(line):
            header = match[1]
    if status not in (403, 429, 503):
        return None
    seconds = _seconds(header, now)
    if seconds is None:
        return USUAL_PATIENCE if status == 429 else None
    return min(max(seconds, 0.0), MOST_PATIENCE)


def _seconds(text: str, now: float) -> float | None:
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.fromtimestamp(now, UTC)).total_seconds()
