"""Sends a file over HTTP: conditional requests, ranges and sendfile (RFC 9110)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from appliance.core.serving.net.http import Exchange, HttpError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


def _tell_nobody(count: int) -> None:
    pass


async def send_file(
    exchange: Exchange,
    path: Path,
    etag: str,
    content_type: str,
    headers: Mapping[str, str],
    begins: Callable[[int], None] = _tell_nobody,
) -> int:
    """Answers GET and HEAD with the file at `path`, whose strong ETag (without quotes) is `etag`.

    Returns the bytes of the file that were sent; `begins` is called with their number before the first of them. The
    file is opened once, so a guest gets one version of it even if it
    is replaced meanwhile.
    Raises HttpError, IdleTimeout, OSError.
    """
    quoted = f'"{etag}"'
    common = {"etag": quoted, "accept-ranges": "bytes", "cache-control": "no-cache", **headers}
    if _matches(exchange.headers.get("if-none-match", ""), quoted):
        await exchange.start(HTTPStatus.NOT_MODIFIED, common)
        await exchange.finish()
        return 0
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise HttpError(HTTPStatus.NOT_FOUND, "it was just replaced; try again\n") from None
    try:
        size = os.fstat(file).st_size
        # A range means nothing for HEAD. A range of another version of the file must not be mixed with this one.
        same = exchange.method == "GET" and exchange.headers.get("if-range", quoted) == quoted
        wanted = exchange.headers.get("range", "") if same else ""
        first, last, status = 0, size - 1, HTTPStatus.OK
        if wanted and (span := _span(wanted, size)) is not None:
            first, last = span
            if first > last:
                raise HttpError(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                    f"there are {size} bytes\n",
                    {"content-range": f"bytes */{size}"},
                )
            status = HTTPStatus.PARTIAL_CONTENT
            common["content-range"] = f"bytes {first}-{last}/{size}"
        await exchange.start(status, {"content-type": content_type, "content-length": str(last - first + 1), **common})
        count = 0 if exchange.method == "HEAD" else last - first + 1
        if count:
            begins(count)
            await exchange.send_file(file, first, count)
        await exchange.finish()
        return count
    finally:
        os.close(file)


def _matches(header: str, quoted: str) -> bool:
    """Whether If-None-Match matches. The comparison is weak, so a leading `W/` does not matter."""
    return header.strip() == "*" or quoted in [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _span(header: str, size: int) -> tuple[int, int] | None:
    """The first and last byte of a range; first > last if the file has no such byte; None if the header is ignored.

    A range of several parts is ignored, so the response is the whole file, which RFC 9110 allows.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = int(match[2])
        return (max(0, size - length), size - 1) if length else (size, size - 1)
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < first:
        return None
    return (first, last) if first < size else (size, size - 1)
