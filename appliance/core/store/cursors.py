"""Cursors of paged lists: where a page ended, as text that a client sends back to get the next one.

A cursor holds the key of the last row and not its number, so that rows that arrive at the front neither repeat a row
nor leave one out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from appliance.core.errors import UsageError

Row = TypeVar("Row")
Page = tuple[list[dict[str, Any]], str | None]
"""The rows of one page, and the cursor of the next page; None after the last row."""

_LONGEST = 2048
"""Characters. The longest key is a repository's name with a session's and a time."""
LARGEST = 2**63 - 1
"""The largest number that SQLite takes, above every id."""


def encode(of: str, *key: str | int) -> str:
    """The cursor after the row with that key, in the list named `of`."""
    text = json.dumps([of, *key], ensure_ascii=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("ascii")).decode("ascii").rstrip("=")


def decode(of: str, cursor: str, *kinds: type[str] | type[int]) -> list[Any]:
    """The key in a cursor of the list `of`, whose parts are of `kinds`. Raises UsageError for any other text."""
    try:
        if len(cursor) > _LONGEST:
            raise ValueError
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        found = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(found, list) or encode(*found) != cursor:
            raise ValueError
        name, *key = found
        if name != of or [type(part) for part in key] != list(kinds):
            raise ValueError
        for part in key:
            if isinstance(part, str):
                # A lone surrogate is valid in JSON, and no text for SQLite.
                part.encode()
            elif abs(part) > LARGEST:
                raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise UsageError(
            "the cursor is not one of this list", hint="send `next` of the page before it, or none for the first page"
        ) from None
    return key


def page_by_id(of: str, read: Callable[[int, int], list[dict[str, Any]]], after: str | None, limit: int | None) -> Page:
    """One page of a list that is sorted by `id`, newest first; no `limit` means all that follows.

    `read` returns at most so many rows (-1: all) with ids below the given one.
    """
    below = LARGEST if after is None else int(decode(of, after, int)[0])
    found = read(below, -1 if limit is None else limit + 1)
    return cut(of, found, limit, lambda row: (row["id"],))


def cut(
    of: str, found: list[Row], limit: int | None, key: Callable[[Row], Sequence[str | int]]
) -> tuple[list[Row], str | None]:
    """The first `limit` of the rows that follow a cursor, and the next cursor; it is None if no more rows follow."""
    if limit is None or len(found) <= limit:
        return found, None
    return found[:limit], encode(of, *key(found[limit - 1]))
