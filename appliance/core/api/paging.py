"""Pages of lists: `limit` and `after` in the query, `items` and `next` in the response."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from appliance.core.api.declaration import Call, Parameter
from appliance.core.api.schemas import GIVEN_TEXT, MOMENT, NAME
from appliance.core.units import parse_moment

PAGE = 100
"""Items of a page unless the caller says how many."""
MOST_ITEMS = 1000

LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS},
    f"At most so many items; {PAGE} by default.",
    "20",
)
AFTER = Parameter("after", GIVEN_TEXT, "Go on after this: the `next` of the page before.")

BY_GUEST = Parameter("guest", NAME, "Only those of this known guest.", "vm-7")


def since(what: str) -> Parameter:
    """The parameter `since` of a list; the value is RFC 3339 in UTC, as the database stores it."""
    words = f"Only {what} since then: a time (RFC 3339), or a duration before now such as `2h`."
    return Parameter("since", MOMENT, words, "2026-01-31T12:00:00Z", _moment)


def before(what: str) -> Parameter:
    """The parameter `before` of a list, as `since`."""
    words = f"Only {what} before then: a time (RFC 3339), or a duration before now such as `7d`."
    return Parameter("before", MOMENT, words, "2036-01-31T12:00:00Z", _moment)


def _moment(text: str) -> str:
    return parse_moment(text, time.time())


def limit_of(call: Call) -> int:
    """How many items the caller wants at most."""
    return int(call.query.get("limit", PAGE))


def paged(items: Sequence[Any], cursor: str | None) -> dict[str, Any]:
    """The document of a page."""
    return {"items": list(items), "next": cursor}


def paged_by_name(documents: Sequence[dict[str, Any]], call: Call) -> dict[str, Any]:
    """A page of documents that are sorted by their unique `name`, which is the cursor."""
    after, limit = call.query.get("after"), limit_of(call)
    rest = documents if after is None else [document for document in documents if document["name"] > after]
    chosen = rest[:limit]
    return paged(chosen, chosen[-1]["name"] if len(rest) > limit else None)
