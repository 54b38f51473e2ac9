"""Pages of lists: each row once, also while rows arrive, and a cursor of another list is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import UsageError
from appliance.core.models import Hydration, RefreshOutcome, Turn
from appliance.core.store import cursors
from appliance.core.store.api_tokens import TokenScope
from appliance.core.store.audit import Attempt
from appliance.core.store.database import Database
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores

REPO = "o/r"


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """All stores over an empty database."""
    database = Database(tmp_path / "gitmirror.db")
    yield Stores.over(database)
    database.close()


@dataclass(frozen=True)
class Paged:
    """One list: adds its row number N, reads a page, and tells what the command prints."""

    add: Callable[[Stores, int], object]
    page: Callable[..., tuple[list[Any], str | None]]
    whole: Callable[[Stores], list[Any]]


def push(stores: Stores, number: int, repo: str = REPO) -> int:
    attempt = Attempt(f"p{number}", repo, f"refs/agents/s{number}", f"s{number}", None, "1" * 40, "accepted", None, "c")
    return stores.audit.record_attempts([attempt])[0]


def record(stores: Stores, number: int) -> None:
    made = Turn(
        id=push(stores, number), repo=REPO, session=f"s{number}", commit="1" * 40, base=None,
        # Several of one moment, so that the time alone does not order them.
        at=f"2026-01-01T00:00:{number // 3:02}.000Z", subject="", commits=1, files_changed=0, insertions=0,
        deletions=0, client="c", bytes=1,
    )  # fmt: skip
    stores.sessions.record(made)


def refreshed(stores: Stores, number: int) -> None:
    repo = stores.registry.add(Wanted(REPO, "https://h/o/r"))
    stores.health.record_refresh(repo.id, RefreshOutcome(REPO, float(number), 0.5), failures=0)


def hydrated(stores: Stores, number: int) -> None:
    event = Hydration(REPO, "1" * 40, 1, "depth 1", "hit", number, 0.1, 0.2, "c", "git")
    stores.activity.record([(2e9 + number, event)])


def token(stores: Stores, number: int) -> None:
    stores.tokens.issue(stores.registry.add(Wanted(REPO, "https://h/o/r")), 60.0, str(number))


LISTS = {
    "audit": Paged(push, lambda stores, **given: stores.audit.page(**given), lambda stores: stores.audit.entries()),
    "activity": Paged(
        hydrated, lambda stores, **given: stores.activity.page(**given), lambda stores: stores.activity.newest(1000)
    ),
    "refreshes": Paged(
        refreshed, lambda stores, **given: stores.health.refreshes_page(**given), lambda s: s.health.refreshes()
    ),
    "tokens": Paged(token, lambda stores, **given: stores.tokens.page(**given), lambda s: s.tokens.all()),
    "api tokens": Paged(
        lambda stores, number: stores.api_tokens.issue(TokenScope.READ, None, str(number)),
        lambda stores, **given: stores.api_tokens.page(**given),
        lambda stores: stores.api_tokens.all(),
    ),
}


@pytest.fixture(params=LISTS)
def listed(request: pytest.FixtureRequest) -> Paged:
    """Each list in turn."""
    return LISTS[request.param]


def pages(listed: Paged, stores: Stores, limit: int, between: Callable[[], object] = lambda: None) -> list[Any]:
    """All rows, page by page; `between` is called after each page."""
    found, after = [], None
    while True:
        rows, after = listed.page(stores, after=after, limit=limit)
        assert rows and (len(rows) == limit or after is None), "a cursor has something after it"
        found += rows
        if after is None:
            return found
        between()


@pytest.mark.parametrize("limit", [1, 3, 10, 11])
def test_the_pages_together_are_the_whole_list(listed: Paged, stores: Stores, limit: int) -> None:
    """Each row once, in the form and order of the command; a full last page has no next one."""
    assert listed.page(stores, limit=limit) == ([], None)
    for number in range(10):
        listed.add(stores, number)
    assert len(listed.whole(stores)) == 10
    assert pages(listed, stores, limit) == listed.whole(stores)


def test_rows_that_arrive_meanwhile_neither_repeat_nor_hide_any(listed: Paged, stores: Stores) -> None:
    """They are at the front of the next listing."""
    for number in range(9):
        listed.add(stores, number)
    before = listed.whole(stores)
    arriving = iter(range(9, 99))
    found = pages(listed, stores, 2, lambda: listed.add(stores, next(arriving)))
    assert found == before


def test_a_cursor_of_another_list_or_of_nobody_is_refused(listed: Paged, stores: Stores) -> None:
    """In words for the client, whatever it sent."""
    name = next(name for name, each in LISTS.items() if each is listed)
    for number in range(2):
        for each in LISTS.values():
            each.add(stores, number)
    foreign = [each.page(stores, limit=1)[1] for other, each in LISTS.items() if other != name]
    own = listed.page(stores, limit=1)[1]
    assert own is not None
    for cursor in (*foreign, own + "=", own[:-1], own + "A", "", "!", "é", "\ud800", "0", "e30", "A" * 3000):
        with pytest.raises(UsageError, match="the cursor is not one of this list") as caught:
            listed.page(stores, after=cursor, limit=1)
        assert caught.value.hint


def test_pages_keep_to_their_filter(stores: Stores) -> None:
    """Pages of one repository, or of one verdict."""
    for number in range(6):
        push(stores, number, repo=("o/a", "o/b")[number % 2])
    first, after = stores.audit.page(repo="o/a", limit=2)
    rest, end = stores.audit.page(repo="o/a", after=after, limit=2)
    assert ([row["id"] for row in first + rest], end) == ([5, 3, 1], None)
    assert stores.audit.page(repo="o/a", session="s2", since="1970", verdict="accepted")[0][0]["id"] == 3
    assert stores.audit.page(verdict="rejected") == ([], None)


def as_cursor(value: object) -> str:
    text = json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


@pytest.mark.parametrize(
    "value",
    [
        ["x"], ["x", "1"], ["x", 1, 2], ["x", True], ["x", None], ["x", 1.0], ["y", 1], {"x": 1}, "x", [1, 1],
        ["x", 2**63], ["x", -(2**80)], ["x", [1]], [["x"], 1],
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_cursor_reaches_no_database(value: object) -> None:
    """What SQLite cannot take, or of another type, is refused like any other text."""
    assert cursors.decode("x", as_cursor(["x", 7]), int) == [7]
    with pytest.raises(UsageError):
        cursors.decode("x", as_cursor(value), int)


def test_a_lone_surrogate_or_endless_nesting_is_refused() -> None:
    """Both are valid JSON, and no key."""
    for text in ('["x","\\ud800"]', "[" * 1500, '["x",' + "[" * 700 + "]" * 700 + "]"):
        with pytest.raises(UsageError):
            cursors.decode("x", base64.urlsafe_b64encode(text.encode()).decode().rstrip("="), str)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_cursor_brings_its_key_back(name: str, number: int) -> None:
    """And needs no quoting in a URL."""
    cursor = cursors.encode("x", name, number)
    assert cursors.decode("x", cursor, str, int) == [name, number]
    assert all(char.isalnum() or char in "-_" for char in cursor) and cursor.isascii()


@given(st.text(max_size=300))
def test_any_other_text_is_refused(text: str) -> None:
    """Never another error."""
    with pytest.raises(UsageError):
        cursors.decode("x", text, str, int)
