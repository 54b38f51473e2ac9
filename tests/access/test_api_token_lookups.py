"""Tokens at each request: what is valid now, and when it was last used."""

from __future__ import annotations

import asyncio
from pathlib import Path

from appliance.core.access.api_tokens import ApiTokens
from appliance.core.access.read_tokens import ReadTokens
from appliance.core.store.api_tokens import TokenScope
from appliance.core.store.database import Database
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores


def test_a_token_is_looked_up_each_time_and_its_use_is_stored_later(tmp_path: Path) -> None:
    """A revocation holds at the next request; a database that fails loses no time of use."""
    database = Database(tmp_path / "gitmirror.db")
    stores = Stores.over(database)
    token = stores.api_tokens.issue(TokenScope.READ)["token"]
    tokens = ApiTokens(stores.api_tokens)

    async def work() -> None:
        found = await tokens.holder_of(token)
        assert found is not None and found.scope == TokenScope.READ
        assert await tokens.holder_of("gma_other") is None
        assert stores.api_tokens.all()[0]["last_used_at"] is None
        moved = tmp_path / "moved"
        database.path.rename(moved)
        await tokens.write()
        moved.rename(database.path)
        await tokens.write()
        assert stores.api_tokens.all()[0]["last_used_at"] is not None
        stores.api_tokens.revoke(1)
        assert await tokens.holder_of(token) is None

    try:
        asyncio.run(work())
    finally:
        database.close()


def test_a_read_token_and_an_api_token_open_different_things(tmp_path: Path) -> None:
    """Neither is the other, and each notes its own use."""
    database = Database(tmp_path / "gitmirror.db")
    stores = Stores.over(database)
    repo = stores.registry.add(Wanted("o/r", "https://h/o/r"))
    guests, programs = (
        stores.tokens.issue(repo, 60.0, "")["token"],
        stores.api_tokens.issue(TokenScope.OPERATE)["token"],
    )
    reading, using = ReadTokens(stores.tokens), ApiTokens(stores.api_tokens)

    async def work() -> None:
        assert await reading.repo_of(guests) == repo.id
        assert await reading.repo_of(programs) is None
        assert await using.holder_of(guests) is None
        await using.write()
        await reading.write()

    try:
        asyncio.run(work())
        assert stores.api_tokens.all()[0]["last_used_at"] is None
        assert stores.tokens.all()[0]["last_used_at"] is not None
    finally:
        database.close()
