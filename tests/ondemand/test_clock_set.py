"""A clock that is set ends nothing that guests have brought."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.core.daemon.allowed_repos import AllowedRepos
from appliance.core.models import ALLOWED, Repo
from appliance.core.store.allowed_repos import Use

DAY = 86_400.0


class FakeStore:
    """The table of uses."""

    def __init__(self, used_at: float) -> None:
        self.found = {1: Use(used_at, 7 * DAY)}

    def uses(self) -> dict[int, Use]:
        """All of them."""
        return dict(self.found)

    def record(self, used: dict[int, float]) -> None:
        """Stores later ones."""
        self.found = {key: Use(used_at, 7 * DAY) for key, used_at in used.items()}

    def leased_until(self, repo: Repo) -> float:
        """No disk is leased."""
        return 0.0


@pytest.mark.parametrize("days", [8.0, 20_000.0, -20_000.0])
def test_what_is_used_stays_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, days: float) -> None:
    real, shift, ended = time.time, [0.0], list[float]()
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    repo = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, ALLOWED, None, True, real())
    config = SimpleNamespace(allow=(), refresh=SimpleNamespace(allow_local=False))
    state = SimpleNamespace(registry_lost=None, repos=[repo], config=config)
    store: Any = FakeStore(real() - 6 * DAY)
    nothing = cast(Any, None)
    allowed = AllowedRepos(cast(Any, state), store, nothing, nothing, nothing, nothing, lambda _: None, nothing)

    async def is_held(_: Repo) -> bool:
        return False

    async def expire(_: Repo, since: float) -> bool:
        ended.append(since)
        return True

    monkeypatch.setattr(allowed, "_is_held", is_held)
    monkeypatch.setattr(allowed, "_expire", expire)

    async def look() -> None:
        await allowed.look()
        shift[0] += days * DAY
        await allowed.look()
        await allowed.look()
        assert not ended
        # Its time goes on from there, and a restart does not forget that.
        monkeypatch.setattr(allowed, "_clock", SimpleNamespace(step=lambda: 0.0))
        shift[0] += (1.1 if days > 0 else 7.1) * DAY
        await allowed.look()
        assert ended

    asyncio.run(look())
