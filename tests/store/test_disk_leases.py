"""Leases of disks: each holds its image until it ends, over restarts, and says which branches are followed."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import UsageError
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import open_stores
from appliance.core.store.database import Database
from appliance.core.store.disk_leases import (
    FOLLOWED,
    KEPT,
    LONGEST,
    LONGEST_GUEST,
    DiskLease,
    DiskLeaseStore,
    UnknownLease,
)
from tests.support.tars import unpack_tar

WIDGETS = Repo(1, "acme/widgets", "https://h/acme/widgets", None, "cli", None, True, 0.0)
TOOLS = Repo(2, "acme/tools", "https://h/acme/tools", None, "cli", None, True, 0.0)
AGAIN = Repo(3, "acme/widgets", "https://other/acme/widgets", None, "cli", None, True, 0.0)
DAY = 86400.0


@dataclass
class Clocked:
    """A store over a file, and its clock."""

    path: Path
    now: float = 1_700_000_000.0
    store: DiskLeaseStore = field(init=False)
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Open the file, as each start does."""
        self.database = Database(self.path)
        self.store = DiskLeaseStore(self.database, lambda: self.now)

    def issue(self, repo: Repo = WIDGETS, **changed: Any) -> DiskLease:
        """Lease one image, for an hour unless told otherwise."""
        given: dict[str, Any] = {
            "branch": "main", "commit": "a" * 40, "form": "erofs", "generation": 1, "name": "main-1", "guest": None,
            "ttl": 3600.0, "of_tip": True,
        }  # fmt: skip
        return self.store.issue(repo, **(given | changed))


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[Clocked]:
    """An empty store."""
    made = Clocked(tmp_path / "gitmirror.db")
    yield made
    made.database.close()


def test_a_lease_outlives_a_restart(clocked: Clocked) -> None:
    """With all that says which image it is of; its id is short."""
    lease = clocked.issue(guest="vm-7", generation=3, name="main-9", ttl=60.0)
    assert len(lease.id) == 8 and int(lease.id, 16) >= 0
    assert lease == DiskLease(
        lease.id, "acme/widgets", "main", "a" * 40, "erofs", 3, "main-9", "vm-7", clocked.now, clocked.now + 60, None
    )
    clocked.database.close()
    clocked.open()
    assert clocked.store.find(lease.id) == lease
    assert clocked.store.live() == [lease]


def test_it_ends_with_its_time(clocked: Clocked) -> None:
    """It is no longer live from that moment; the pass that ends it finds it once."""
    brief, lasting = clocked.issue(ttl=60.0), clocked.issue(ttl=120.0)
    assert clocked.store.expire() == []
    clocked.now += 60
    assert clocked.store.live() == [lasting]
    assert [lease.id for lease in clocked.store.expire()] == [brief.id]
    assert clocked.store.expire() == []
    assert clocked.store.find(brief.id).released_at == brief.expires_at


def test_it_ends_by_release_and_releasing_again_keeps_the_first_time(clocked: Clocked) -> None:
    """A platform may repeat a request whose answer was lost."""
    lease, other = clocked.issue(), clocked.issue()
    clocked.now += 5
    released = clocked.store.release(lease.id)
    assert released.released_at == clocked.now
    clocked.now += 5
    assert clocked.store.release(lease.id) == released
    assert clocked.store.live() == [other]


@pytest.mark.parametrize("unknown", ["0badcafe", "", "\udce9", "x" * 1000, "a\x1b[2J"])
def test_an_unknown_id_is_an_error_in_words(clocked: Clocked, unknown: str) -> None:
    """Whatever a client sends for one, and fit to be shown."""
    clocked.issue()
    for ask in (clocked.store.find, clocked.store.release):
        with pytest.raises(UnknownLease, match="there is no lease") as caught:
            ask(unknown)
        assert caught.value.hint == "`disks` lists them"
        assert caught.value.message.isprintable() and len(caught.value.message) < 150


def test_live_ones_are_listed_newest_first_and_by_repository(clocked: Clocked) -> None:
    """Two of one millisecond in the order in which they were issued."""
    first, second = clocked.issue(), clocked.issue()
    clocked.now += 1
    third = clocked.issue(TOOLS)
    assert clocked.store.live() == [third, second, first]
    assert clocked.store.live("acme/widgets") == [second, first]
    clocked.store.release_all("acme/widgets")
    assert clocked.store.live() == [third]


def test_branches_are_followed_for_a_week_after_the_last_request(clocked: Clocked) -> None:
    """By requests for their tip, also when those leases have ended; not by requests for a commit."""
    clocked.store.release(clocked.issue(branch="main").id)
    clocked.issue(branch="main", form="ext4")
    clocked.issue(branch="pinned", of_tip=False)
    clocked.issue(TOOLS, branch="other")
    first = clocked.now
    clocked.now += DAY
    clocked.issue(branch="main")
    assert clocked.store.followed(WIDGETS) == {("main", "erofs", None): clocked.now, ("main", "ext4", None): first}
    clocked.now = first + FOLLOWED
    assert clocked.store.followed(WIDGETS) == {("main", "erofs", None): first + DAY}


def test_another_registration_of_the_name_follows_nothing(clocked: Clocked) -> None:
    """It may be of another upstream; the leases go on until they end."""
    lease = clocked.issue()
    assert clocked.store.followed(AGAIN) == {}
    assert clocked.store.live("acme/widgets") == [lease]


def test_rows_of_the_past_go_when_a_lease_is_issued(clocked: Clocked) -> None:
    """Not before nobody follows a branch by them, and never a lease that lasts."""
    lasting, brief = clocked.issue(ttl=KEPT * 3), clocked.issue(ttl=60.0)
    clocked.now += 60
    clocked.store.expire()
    clocked.now += KEPT
    second = clocked.issue()
    assert clocked.store.find(brief.id).id == brief.id
    clocked.now += 1
    third = clocked.issue()
    with pytest.raises(UnknownLease):
        clocked.store.find(brief.id)
    assert clocked.store.live() == [third, second, lasting]
    assert KEPT > FOLLOWED


@pytest.mark.parametrize("ttl", [0.0, -1.0, 0.5, LONGEST + 1, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(clocked: Clocked, ttl: float) -> None:
    """A lease that nobody ends would hold its image for ever."""
    with pytest.raises(UsageError, match="at most 365 days"):
        clocked.issue(ttl=ttl)
    assert clocked.store.live() == []


def test_names_of_any_bytes_are_stored(clocked: Clocked) -> None:
    """A branch may have any, and a shell may pass any; a guest's name is cut."""
    lease = clocked.issue(branch="caf\udce9", guest="vm\udcff" + "x" * 1000)
    assert lease.branch == "caf\\xe9"
    assert lease.guest is not None and lease.guest.startswith("vm\\xffxxx") and len(lease.guest) == LONGEST_GUEST


def test_the_database_of_the_version_before_gets_the_table(tmp_path: Path) -> None:
    """Opening it migrates it, and leases are stored in it at once."""
    with tarfile.open(Path(__file__).parent / "fixtures" / "state-0.1.0.tar.xz") as archive:
        unpack_tar(archive, tmp_path)
    stores = open_stores(Layout(tmp_path / "state"), create=False)
    assert stores.disk_leases.live() == []
    repo = stores.registry.get("acme/widgets")
    lease = stores.disk_leases.issue(
        repo, branch="main", commit="a" * 40, form="erofs", generation=1, name="x", guest=None, ttl=60.0, of_tip=True
    )
    stores.database.close()
    assert [each.id for each in open_stores(Layout(tmp_path / "state"), create=False).disk_leases.live()] == [lease.id]
