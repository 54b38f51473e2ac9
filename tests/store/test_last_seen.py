"""What each known guest did last."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.models import Hydration, Turn
from appliance.core.node.state_dir import open_stores
from appliance.core.store.audit import Attempt
from appliance.core.store.guests import GuestOrder
from appliance.core.units import rfc3339

NOW = 1769860800.0
REPO, OID = "acme/widgets", "1" * 40


@pytest.mark.parametrize(("hydrated", "what"), [(NOW + 0.2, "recorded fix-dns"), (NOW + 0.9, "hydrated")])
def test_the_newest_counts_even_within_one_second(tmp_path: Path, hydrated: float, what: str) -> None:
    """A guest that hydrates and records within a second did last what ended last."""
    stores = open_stores(Layout(tmp_path))
    stores.guests.add(GuestOrder("vm-7", ("fix-dns",), token=True))
    stores.activity._clock = lambda: NOW
    fetch = Hydration(REPO, OID, 1, "depth 1", "miss", 1, 0.1, 0.1, "c", "git", "vm-7")
    stores.activity.record([(hydrated, fetch)])
    at = rfc3339(NOW + 0.6)
    push = Attempt("p1", REPO, "refs/agents/fix-dns", "fix-dns", None, OID, "accepted", None, "c", "vm-7")
    [attempt] = stores.audit.record_attempts([push])
    stores.sessions.record(Turn(attempt, REPO, "fix-dns", OID, None, at, "subject", 1, 1, 1, 0, "c", 10, "vm-7"))
    last = stores.guests.last_seen()["vm-7"]
    assert last == {"at": rfc3339(max(hydrated, NOW + 0.6)), "what": what, "repo": REPO}
    stores.database.close()
