"""What is said of sessions goes out in its order, and what may not go out holds up nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from appliance.core.fleet.announcing import Announcer
from appliance.core.store.database import Database
from appliance.core.store.fleet import FleetStore, enqueue

PRIVATE, PUBLIC = "acme/private", "acme/public"


def test_what_may_not_go_out_holds_up_nothing(tmp_path: Path) -> None:
    """However much waits of a private repository, which stays on its node."""
    database = Database(tmp_path / "gitmirror.db")
    with database.writing() as connection:
        for number in range(1001):
            kept = {"repo": PRIVATE, "session": f"s{number}", "kept": True}
            enqueue(connection, "kept", kept, 0)
        end = {"repo": PUBLIC, "session": "s", "reason": "ended by a test", "upto": 0, "uids": []}
        enqueue(connection, "end", end, 0)
    told: list[str] = []

    async def announce(message: Any, number: int) -> None:
        told.append(f"{message.repo} {message.session}")

    async def clear(document: Any) -> None:
        pass

    anything: Any = SimpleNamespace(node="a", announce=announce, clear=clear, unclear=set())
    announcer = Announcer(anything, anything, FleetStore(database, lambda: 0.0), lambda repo: repo == PUBLIC)
    assert asyncio.run(announcer.count()) == 1
    assert asyncio.run(announcer.send(anything, ()))
    assert told == [f"{PUBLIC} s"]
    assert asyncio.run(announcer.count()) == 0
    database.close()
