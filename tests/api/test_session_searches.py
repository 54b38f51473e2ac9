"""Searches of the sessions wait for each other, and nothing else waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.core.api.declaration import Call
from appliance.core.api.operations import NodeOperations
from appliance.core.api.session_routes import SessionRoutes
from appliance.core.store.database import Database
from appliance.core.store.stores import Stores

WAIT = 30.0


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """All stores over an empty database."""
    database = Database(tmp_path / "gitmirror.db")
    yield Stores.over(database)
    database.close()


@asynccontextmanager
async def lasting(cut: Callable[[], None] = lambda: None, /) -> AsyncIterator[Callable[[], bool]]:
    """A response that may last."""
    yield lambda: True


def asking(**query: str) -> Call:
    """A request for the list of sessions."""
    return Call({}, query, {}, "*/*", lambda _: None, False, None, lasting)


@pytest.mark.parametrize("query", [{"q": "parser"}, {"path": "src"}])
def test_one_search_runs_at_a_time(stores: Stores, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]) -> None:
    """Also after whoever asked has left, and a plain list passes them by."""
    find, running, most = stores.sessions.find, 0, 0
    started, gate, lock = threading.Event(), threading.Event(), threading.Lock()

    def slow(repo: str | None, path: str | None, text: str | None, *more: Any) -> Any:
        nonlocal running, most
        if not (path or text):
            return find(repo, path, text, *more)
        with lock:
            running += 1
            most = max(most, running)
        started.set()
        assert gate.wait(WAIT)
        with lock:
            running -= 1
        return find(repo, path, text, *more)

    monkeypatch.setattr(stores.sessions, "find", slow)
    routes = SessionRoutes(cast(NodeOperations, None), stores)
    [respond] = [each.respond for each in routes.operations() if each.name == "list-sessions"]

    async def test() -> None:
        try:
            left = asyncio.ensure_future(respond(asking(**query)))
            assert await asyncio.to_thread(started.wait, WAIT)
            left.cancel()
            searches = [asyncio.ensure_future(respond(asking(**query))) for _ in range(4)]
            for _ in range(3):
                # The threads that all share are free, however many searches there are.
                listed = await asyncio.wait_for(respond(asking()), WAIT)
                assert listed["items"] == []
        finally:
            gate.set()
        assert [found["items"] for found in await asyncio.gather(*searches)] == 4 * [[]]

    asyncio.run(test())
    assert most == 1
