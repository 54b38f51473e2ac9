"""API tokens, each of which lets a program use the API below /v1. Only their hashes are stored."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from appliance.core.errors import NotFound, UsageError
from appliance.core.store.cursors import Page, page_by_id
from appliance.core.store.database import Database, rows
from appliance.core.store.tokens import KEPT, LONGEST, hash_of, state_of_token, times_of_token
from appliance.core.text import storable

PREFIX = "gma_"
"""The prefix of every API token, so that a leaked one can be recognised, and told from a guest's read token."""


class TokenScope(StrEnum):
    """What an API token allows: READ shows everything, OPERATE also changes what an operator may change."""

    READ = "read"
    OPERATE = "operate"


@dataclass(frozen=True)
class ApiToken:
    """A valid token, without its secret."""

    id: int
    name: str
    scope: TokenScope


class UnknownApiToken(NotFound):
    """There is no API token with that number."""

    def __init__(self, token_id: int) -> None:
        super().__init__(f"there is no API token {token_id}", hint="`api-token list` lists the existing tokens")


class ApiTokenStore:
    """The API tokens in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def issue(self, scope: TokenScope, ttl: float | None = None, name: str = "") -> dict[str, Any]:
        """Creates a token that is valid for `ttl` seconds, or until it is revoked if `ttl` is None.

        Returns its row in the form of `all`, with the `token`, which is returned only this once. Rows of tokens that
        expired or were revoked long ago are deleted. Raises UsageError for more than ten years.
        """
        if ttl is not None and ttl > LONGEST:
            raise UsageError(
                "an API token that expires is valid for at most ten years", hint="leave --ttl out, or use --ttl 3650d"
            )
        token, now = PREFIX + secrets.token_urlsafe(32), self._clock()
        columns = {
            "name": storable(name),
            "scope": scope,
            "hash": hash_of(token),
            "created_at": now,
            "expires_at": None if ttl is None else now + ttl,
        }
        with self._database.writing() as connection:
            connection.execute("DELETE FROM api_tokens WHERE expires_at < ?1 OR revoked_at < ?1", [now - KEPT])
            connection.table("api_tokens").insert(columns)
            [row] = rows(connection, "SELECT * FROM api_tokens WHERE hash = ?", columns["hash"])
        return self._document(row) | {"token": token}

    def find(self, token: str) -> ApiToken | None:
        """The token, or None if it is unknown, expired or revoked. Never cached: a revocation holds at once."""
        digest = hash_of(token)
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT id, name, scope, hash FROM api_tokens WHERE hash = ? AND revoked_at IS NULL
                   AND (expires_at IS NULL OR expires_at > ?)""",
                digest,
                self._clock(),
            )
        if not found or not hmac.compare_digest(found[0]["hash"], digest):
            return None
        return ApiToken(found[0]["id"], found[0]["name"], TokenScope(found[0]["scope"]))

    def all(self) -> list[dict[str, Any]]:
        """Every token, newest first: `{id, name, scope, state, created_at, expires_at, last_used_at, revoked_at}`."""
        return self.page()[0]

    def page(self, *, after: str | None = None, limit: int | None = None) -> Page:
        """One page of `all`. Raises UsageError for a cursor of another list."""

        def read(below: int, most: int) -> list[dict[str, Any]]:
            with self._database.reading() as connection:
                sql = "SELECT * FROM api_tokens WHERE id < ?1 ORDER BY id DESC LIMIT ?2"
                return [self._document(row) for row in rows(connection, sql, below, most)]

        return page_by_id("api-tokens", read, after, limit)

    def revoke(self, token_id: int) -> dict[str, Any]:
        """Revokes a token at once; returns its row. Raises UnknownApiToken."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE api_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", [self._clock(), token_id]
            )
            found = rows(connection, "SELECT * FROM api_tokens WHERE id = ?", token_id)
        if not found:
            raise UnknownApiToken(token_id)
        return self._document(found[0])

    def used(self, times: Mapping[int, float]) -> None:
        """Records when tokens were last used; `times` maps their numbers to Unix seconds."""
        with self._database.writing() as connection:
            for token_id, at in times.items():
                connection.execute("UPDATE api_tokens SET last_used_at = ? WHERE id = ?", [at, token_id])

    def _document(self, row: dict[str, Any]) -> dict[str, Any]:
        state, times = state_of_token(row, self._clock()), times_of_token(row)
        return {"id": row["id"], "name": row["name"], "scope": row["scope"], "state": state, **times}
