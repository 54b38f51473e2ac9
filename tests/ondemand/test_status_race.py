"""`status` while a repository that guests brought ends."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.core.daemon import status as status_module
from appliance.core.daemon.status import Status
from appliance.core.models import ALLOWED, Health, Repo


def test_a_repository_that_ends_meanwhile_does_not_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a KeyError when it ended while the sizes on disk were read."""
    repo = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, ALLOWED, None, True, time.time())
    state = SimpleNamespace(repos=[repo], config=None, privacy=SimpleNamespace(told=lambda documents: documents))

    async def short() -> dict[str, Any]:
        state.repos = []
        return {}

    async def pulse(_: Status) -> dict[str, Any]:
        return {"audit_head": None}

    monkeypatch.setattr(Status, "pulse", pulse)
    monkeypatch.setattr(Status, "_healths", lambda _: {})
    monkeypatch.setattr(status_module, "status_document", lambda *_, **__: {"repos": [{"name": repo.name}]})
    rooms: dict[str, Any] = dict.fromkeys(Status.__dataclass_fields__)
    rooms |= {
        "state": state,
        "storage": SimpleNamespace(short=short),
        "scheduler": SimpleNamespace(health=lambda _: Health()),
        "fetching": SimpleNamespace(warmer=SimpleNamespace(state=lambda _: None)),
        "workspaces": SimpleNamespace(modules=SimpleNamespace(lacks=lambda *_: [])),
    }
    document = asyncio.run(Status(**cast(Any, rooms)).status())
    assert document["repos"] == [{"name": repo.name, "lacks": []}]
