"""Refs that are being listed while the guest that asked for them leaves."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.core.models import Repo
from appliance.core.serving.fetch.ref_snapshots import RefSnapshots


def test_an_error_that_nobody_waits_for_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when `serve` stops, and ends the git that lists them."""
    repo = Repo(1, "acme/widgets", "https://example.com/x", "main", "cli", None, True, 0.0)

    async def leave() -> None:
        begun, end = asyncio.Event(), asyncio.Event()

        async def collect(*_: Any, **__: Any) -> bytes:
            begun.set()
            await end.wait()
            raise OSError("git was ended")

        mirror: Any = SimpleNamespace(path=tmp_path)
        upload_pack: Any = SimpleNamespace(collect=collect)
        asking = asyncio.create_task(RefSnapshots(upload_pack, lambda _: mirror).get(repo))
        await begun.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        end.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    gc.collect()
    assert "never retrieved" not in caplog.text
