"""What an upstream's HTTP headers say that git does not pass on: when to ask again."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_PATIENCE = 3600.0
"""Seconds that an upstream's Retry-After is honoured for at most: a slip must not stop a mirror for a year."""
USUAL_PATIENCE = 60.0
"""Seconds that an upstream which says 429 without Retry-After is left alone: GitHub asks for at least a minute."""
MOST_TRACE = 2**20
"""Bytes of a trace of HTTP headers that are looked at."""


class HttpTrace:
    """Headers of git's HTTP exchanges, in memory: git does not show Retry-After, and asking again would be rude.

    git leaves out credentials and cookies (GIT_TRACE_REDACT), and only a number of seconds is ever taken from it.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("gitmirror-http", os.MFD_CLOEXEC)
        self.environment = {
            # By its path: git takes the number of a descriptor only when it has one digit.
            "GIT_TRACE_CURL": f"/proc/self/fd/{self.file}",
            "GIT_TRACE_CURL_NO_DATA": "1",
            "GIT_TRACE_REDACT": "1",
        }

    def __enter__(self) -> HttpTrace:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def retry_after(self) -> float | None:
        """Seconds that the last answer asks to wait."""
        return retry_after(self._text(), time.time())

    def is_of_no_git_server(self) -> bool:
        """Whether answers came over HTTP and none of them was what a git server says of itself."""
        text = self._text().lower()
        return "<= recv header: http/" in text and "application/x-git-upload-pack-advertisement" not in text

    def _text(self) -> str:
        return os.pread(self.file, MOST_TRACE, 0).decode("latin-1")


_STATUS = re.compile(r"<= Recv header: HTTP/[\d.]+ (\d{3})")
_RETRY_AFTER = re.compile(r"<= Recv header: retry-after:\s*(.+?)\s*$", re.IGNORECASE)


def retry_after(trace: str, now: float) -> float | None:
    """Seconds that the last answer of a curl trace (GIT_TRACE_CURL) asks to wait; None when it does not.

    Both forms of RFC 9110 10.2.3, seconds and a date. Only a refusal's counts, MOST_PATIENCE at most; 429 without
    one is USUAL_PATIENCE.
    """
    status, asked = 0, ""
    for line in trace.splitlines():
        if found := _STATUS.search(line):
            status, asked = int(found[1]), ""
        elif found := _RETRY_AFTER.search(line):
            asked = found[1]
    if status not in (403, 429, 503):
        return None
    seconds = _seconds(asked, now)
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
