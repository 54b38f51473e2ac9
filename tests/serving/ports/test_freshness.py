"""A commit that a guest asks for and that a refresh brings meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from appliance.core.models import Health, Repo
from appliance.core.serving.ports import freshness
from appliance.core.serving.ports.freshness import Freshness

REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
COMMIT = "1" * 40


def test_what_another_guests_look_brought_meanwhile_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked for before that look had ended, and it is not looked for upstream again so soon."""
    looked = asyncio.Event()
    checks = 0

    async def has_object(mirror: object, oid: str) -> bool:
        nonlocal checks
        checks += 1
        here = looked.is_set()
        if checks == 2:
            # The second guest is told late, when the look of the first has ended.
            while not looked.is_set():
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
        return here

    async def refresh_now(repo: Repo) -> None:
        while checks < 2:
            await asyncio.sleep(0)
        looked.set()

    monkeypatch.setattr(freshness, "has_object", has_object)
    scheduler = Mock(refresh_now=AsyncMock(side_effect=refresh_now), health=lambda _: Health())
    workspaces = Mock(current=lambda _: None)
    fresh = Freshness(scheduler, workspaces, Mock(), lambda: 60.0, Mock(is_on=False))

    async def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        return await asyncio.gather(fresh.document(REPO, COMMIT), fresh.document(REPO, COMMIT))

    assert [document["has"] for document in asyncio.run(ask())] == [True, True]
    assert scheduler.refresh_now.await_count == 1
