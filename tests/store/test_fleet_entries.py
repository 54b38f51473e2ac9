"""The entries of the fleet's registry that a node has applied."""

from __future__ import annotations

from pathlib import Path

from appliance.core.store.database import Database
from appliance.core.store.fleet_repos import FleetRepoStore, KnownEntry, Settled


def test_entries_are_read_by_name_or_all(tmp_path: Path) -> None:
    """A change of one repository reads one entry, and not the thousand others."""
    store = FleetRepoStore(Database(tmp_path / "gitmirror.db"), lambda: 0.0)
    for number, name in enumerate(("o/a", "o/b", "o/c"), 1):
        store.settle(Settled(name, KnownEntry(number, {"name": name})))
    assert store.known("o/b", "o/none", "o/c").keys() == {"o/b", "o/c"}
    assert store.known("o/none") == {}
    assert {name: each.revision for name, each in store.known().items()} == {"o/a": 1, "o/b": 2, "o/c": 3}
