"""Reads turns for a search in this process, while no `serve` runs that would have read them."""

from __future__ import annotations

import asyncio
import time

from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirrors import Mirrors
from appliance.core.layout import Layout
from appliance.core.models import Tell
from appliance.core.node.state_dir import make_git
from appliance.core.process.owner import claim
from appliance.core.recording.turn_indexer import TurnIndexer
from appliance.core.store.stores import Stores

LONGEST = 20.0
"""Seconds that a command reads turns before it searches those it has: about a thousand turns, the newest."""
SAID_FROM = 200
"""The number of turns from which on a person is told, because reading them takes seconds."""


def index_alone(stores: Stores, layout: Layout, config: Config, tell: Tell) -> int:
    """Reads the turns that are not indexed yet, for LONGEST seconds; returns how many are left. Raises StoreError.

    If they cannot be read now, for example because another command works on the mirrors, `tell` gets the reason.
    """
    pending = stores.turn_index.pending()
    if not pending:
        return 0
    if pending >= SAID_FROM:
        tell(f"reading {pending} turns that were never searched, for at most {LONGEST:.0f} seconds")
    try:
        _read(stores, layout, config)
    except GitmirrorError as error:
        tell(f"turns cannot be read for this search: {error.message}")
    return stores.turn_index.pending()


def _read(stores: Stores, layout: Layout, config: Config) -> None:
    owned = claim(layout, "sessions")
    try:
        mirrors = Mirrors(layout, make_git(layout, config, owned.children))
        indexer = TurnIndexer(stores.turn_index, mirrors, mirrors.locks)
        asyncio.run(indexer.catch_up(time.monotonic() + LONGEST))
    finally:
        owned.release()
