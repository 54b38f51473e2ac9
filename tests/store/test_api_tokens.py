"""API tokens: who holds one may use the API until it expires or is revoked, and the database holds no token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.core.errors import UsageError
from appliance.core.store.api_tokens import ApiToken, ApiTokenStore, TokenScope, UnknownApiToken
from appliance.core.store.database import Database
from appliance.core.store.tokens import KEPT, LONGEST

KEYS = {"id", "name", "scope", "state", "created_at", "expires_at", "last_used_at", "revoked_at"}
UNKNOWN_ID = 99


@dataclass
class Clocked:
    """A store over a file, and its clock."""

    path: Path
    now: float = 1_700_000_000.0
    store: ApiTokenStore = field(init=False)
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(self.path)
        self.store = ApiTokenStore(self.database, lambda: self.now)


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[Clocked]:
    """An empty store."""
    made = Clocked(tmp_path / "gitmirror.db")
    yield made
    made.database.close()


def test_an_issued_token_is_found_with_its_scope(clocked: Clocked) -> None:
    """By its whole text alone."""
    issued = clocked.store.issue(TokenScope.OPERATE, 60.0, "platform")
    assert set(issued) == KEYS | {"token"}
    assert issued["token"].startswith("gma_") and len(issued["token"]) > 40
    assert clocked.store.find(issued["token"]) == ApiToken(1, "platform", TokenScope.OPERATE)
    for wrong in (issued["token"][:-1], issued["token"].upper(), issued["token"] + "x", "", "gma_", "\ud800", "é"):
        assert clocked.store.find(wrong) is None


def test_only_hashes_are_stored(clocked: Clocked) -> None:
    """Neither the file nor its log has the token, so a backup of them opens nothing."""
    token = clocked.store.issue(TokenScope.READ)["token"]
    clocked.database.close()
    stored = b"".join(path.read_bytes() for path in clocked.path.parent.iterdir())
    assert b"api_tokens" in stored
    assert token.encode() not in stored and token.removeprefix("gma_").encode() not in stored


def test_a_token_ends_with_its_time_or_by_revocation(clocked: Clocked) -> None:
    """Without a time it goes on until it is revoked; the states say which."""
    brief, lasting = clocked.store.issue(TokenScope.READ, 60.0), clocked.store.issue(TokenScope.READ)
    assert (lasting["expires_at"], lasting["state"]) == (None, "valid")
    clocked.now += 60
    assert clocked.store.find(brief["token"]) is None
    clocked.now += 20 * LONGEST
    assert clocked.store.find(lasting["token"]) is not None
    revoked = clocked.store.revoke(lasting["id"])
    assert (set(revoked), revoked["state"]) == (KEYS, "revoked")
    assert clocked.store.find(lasting["token"]) is None
    assert [(row["id"], row["state"]) for row in clocked.store.all()] == [(2, "revoked"), (1, "expired")]


def test_revoking_again_keeps_the_first_time(clocked: Clocked) -> None:
    """And an unknown number is an error in words."""
    number = clocked.store.issue(TokenScope.READ)["id"]
    first = clocked.store.revoke(number)
    clocked.now += 5
    assert clocked.store.revoke(number) == first
    with pytest.raises(UnknownApiToken, match="there is no API token 99") as caught:
        clocked.store.revoke(UNKNOWN_ID)
    assert "api-token list" in caught.value.hint


def test_another_process_revokes_at_once(clocked: Clocked) -> None:
    """`serve` holds its own connection: what a command wrote holds at the next request."""
    issued = clocked.store.issue(TokenScope.READ)
    other = Database(clocked.path)
    try:
        assert clocked.store.find(issued["token"])
        ApiTokenStore(other, lambda: clocked.now).revoke(issued["id"])
        assert clocked.store.find(issued["token"]) is None
    finally:
        other.close()


def test_the_last_use_is_recorded(clocked: Clocked) -> None:
    """Of the tokens that were used, in one write."""
    for _ in range(2):
        clocked.store.issue(TokenScope.READ)
    clocked.store.used({2: clocked.now})
    assert [row["last_used_at"] for row in clocked.store.all()] == ["2023-11-14T22:13:20.000Z", None]


def test_rows_of_the_past_go_when_a_token_is_issued(clocked: Clocked) -> None:
    """Those that expired or were revoked long ago, and no others; a number is not given twice."""
    clocked.store.issue(TokenScope.READ, 60.0)
    clocked.store.revoke(clocked.store.issue(TokenScope.READ)["id"])
    clocked.store.issue(TokenScope.READ)
    clocked.now += KEPT + 61
    assert clocked.store.issue(TokenScope.READ)["id"] == 4
    assert [row["id"] for row in clocked.store.all()] == [4, 3]


def test_no_token_expires_in_more_than_ten_years(clocked: Clocked) -> None:
    """A time beyond what a date can be written for is refused before anything is stored."""
    with pytest.raises(UsageError, match="ten years"):
        clocked.store.issue(TokenScope.READ, LONGEST + 1)
    assert clocked.store.all() == []


def test_a_name_of_any_bytes_is_stored(clocked: Clocked) -> None:
    """A shell may pass any."""
    assert clocked.store.issue(TokenScope.READ, None, "caf\udce9")["name"] == "caf\\xe9"
