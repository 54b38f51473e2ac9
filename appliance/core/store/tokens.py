"""Read tokens, each of which lets a guest read one private mirror. Only their hashes are stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from appliance.core.errors import NotFound, UsageError
from appliance.core.models import Repo
from appliance.core.store.cursors import Page, page_by_id
from appliance.core.store.database import Database, rows
from appliance.core.units import rfc3339

PREFIX = "gmt_"
"""The prefix of every read token, so that a leaked one can be recognised."""

KEPT = 90 * 86400.0
"""Seconds that a token's row is kept after the token has expired."""
LONGEST = 3650 * 86400.0
"""The longest lifetime of a token, in seconds."""

_TIMES = ("created_at", "expires_at", "last_used_at", "revoked_at")


def hash_of(token: str) -> str:
    """What is stored of a token. 256 random bits need no salt and no slow hash. Takes any text that a client sends."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def state_of_token(row: Mapping[str, Any], now: float) -> str:
    """`revoked`, `expired` or `valid`, from the columns of any token; without `expires_at` a token does not expire."""
    if row["revoked_at"] is not None:
        return "revoked"
    return "valid" if row["expires_at"] is None or row["expires_at"] > now else "expired"


def times_of_token(row: Mapping[str, Any]) -> dict[str, str | None]:
    """The times of any token for its document: RFC 3339, or None for what did not happen."""
    return {key: None if row[key] is None else rfc3339(row[key]) for key in _TIMES}


class UnknownToken(NotFound):
    """There is no read token with that number."""

    def __init__(self, token_id: int) -> None:
        super().__init__(f"there is no read token {token_id}", hint="`token list` lists the existing tokens")


class TokenStore:
    """The read tokens in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def issue(self, repo: Repo, ttl: float, note: str) -> dict[str, Any]:
        """Creates a token that is valid for `ttl` seconds; returns its row in the form of `all`, with the `token`.

        The token itself is returned only this once. Rows of tokens that expired long ago are deleted. Raises UsageError
        for more than ten years.
        """
        if ttl > LONGEST:
            raise UsageError("a read token is valid for at most ten years", hint="use --ttl 3650d, or better 7d")
        token, now = PREFIX + secrets.token_urlsafe(32), self._clock()
        columns = {
            "repo_id": repo.id,
            "repo": repo.name,
            "hash": hash_of(token),
            "note": note,
            "created_at": now,
            "expires_at": now + ttl,
        }
        with self._database.writing() as connection:
            connection.execute("DELETE FROM read_tokens WHERE expires_at < ?", [now - KEPT])
            connection.table("read_tokens").insert(columns)
            [row] = rows(connection, "SELECT * FROM read_tokens WHERE hash = ?", columns["hash"])
        return self._document(row) | {"token": token}

    def find(self, token: str) -> tuple[int, int] | None:
        """The token's number and the id of the repository it currently opens; None if it is not valid.

        Looking up a hash reveals nothing about how close a guess was.
        """
        with self._database.reading() as connection:
            found = rows(
                connection,
                "SELECT id, repo_id FROM read_tokens WHERE hash = ? AND revoked_at IS NULL AND expires_at > ?",
                hash_of(token),
                self._clock(),
            )
        return (found[0]["id"], found[0]["repo_id"]) if found else None

    def all(self, repo: str | None = None) -> list[dict[str, Any]]:
        """Every token, newest first: id, repo, note, its times (RFC 3339 or None) and its state."""
        return self.page(repo)[0]

    def page(self, repo: str | None = None, *, after: str | None = None, limit: int | None = None) -> Page:
        """One page of `all`. Raises UsageError for a cursor of another list."""

        def read(below: int, most: int) -> list[dict[str, Any]]:
            with self._database.reading() as connection:
                found = rows(
                    connection,
                    """SELECT * FROM read_tokens WHERE (?1 IS NULL OR repo = ?1) AND id < ?2
                       ORDER BY id DESC LIMIT ?3""",
                    repo,
                    below,
                    most,
                )
            return [self._document(row) for row in found]

        return page_by_id("tokens", read, after, limit)

    def revoke(self, token_id: int) -> dict[str, Any]:
        """Revokes a token at once; returns its row. Raises UnknownToken."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE read_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", [self._clock(), token_id]
            )
            found = rows(connection, "SELECT * FROM read_tokens WHERE id = ?", token_id)
        if not found:
            raise UnknownToken(token_id)
        return self._document(found[0])

    def used(self, times: Mapping[int, float]) -> None:
        """Records when tokens were last used; `times` maps their numbers to Unix seconds."""
        with self._database.writing() as connection:
            for token_id, at in times.items():
                connection.execute("UPDATE read_tokens SET last_used_at = ? WHERE id = ?", [at, token_id])

    def _document(self, row: dict[str, Any]) -> dict[str, Any]:
        state, times = state_of_token(row, self._clock()), times_of_token(row)
        return {"id": row["id"], "repo": row["repo"], "note": row["note"], "state": state, **times}
