"""A real `serve` on a state directory with disks in it: what it keeps at its start, and what purging does."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.core.models import Repo
from appliance.core.store.database import Database, rows
from appliance.core.store.disk_leases import DiskLease, DiskLeaseStore
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import refs, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED

BLOCK = 4096


@pytest.fixture
def serve(serve_factory: ServeFactory, upstream: HttpUpstream) -> Serve:
    """With one repository that is mirrored; it runs."""
    made = serve_factory(refresh=SETTLED).start()
    made.cli("add-repo", upstream.url(WIDGETS))
    made.wait_for_repo(WIDGETS)
    return made


class Stored:
    """What lies in the state directory of a node, written as a build and a lease do."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.place = DiskPlace(serve.state / "disks" / WIDGETS)
        self.database = serve.state / "gitmirror.db"
        [repo] = serve.cli_json("repos")
        self.url = repo["url"]
        self.tip = refs(serve.mirror(WIDGETS))["refs/heads/main"]

    def image(self, number: int = 1, commit: str | None = None, made_at: float = 0.0) -> DiskImage:
        """Write an image of main."""
        made = DiskImage(
            WIDGETS, self.url, "main", commit or self.tip, DiskForm.EROFS, "full", "open",
            number, f"{made_at:.0f}.erofs", BLOCK, BLOCK, "", made_at,
        )  # fmt: skip
        (self.place.generation(number) / "images").mkdir(parents=True, exist_ok=True)
        (self.place.generation(number) / "data").write_bytes(b"d" * BLOCK)
        self.place.tree(made).write_bytes(b"t" * BLOCK)
        self.place.description(made).write_text(self.place.describe(made))
        return made

    def lease(self, image: DiskImage, ttl: float = 3600.0, ago: float = 0.0) -> DiskLease:
        """Lease an image, as if that had been some time ago."""
        database = Database(self.database)
        try:
            with database.reading() as connection:
                [row] = rows(connection, "SELECT id FROM repos WHERE name = ?", WIDGETS)
            repo = Repo(row["id"], WIDGETS, self.url, None, "cli", None, True, 0.0)
            return DiskLeaseStore(database, lambda: time.time() - ago).issue(
                repo, branch=image.branch, commit=image.commit, form=image.form, generation=image.generation,
                name=image.name, guest="vm-7", ttl=ttl, of_tip=False,
            )  # fmt: skip
        finally:
            database.close()

    def release(self, lease: DiskLease) -> None:
        """End a lease."""
        database = Database(self.database)
        try:
            DiskLeaseStore(database, time.time).release(lease.id)
        finally:
            database.close()

    def live(self) -> list[str]:
        """The ids of the leases that have not ended."""
        database = Database(self.database)
        try:
            return [lease.id for lease in DiskLeaseStore(database, time.time).live()]
        finally:
            database.close()

    def files(self) -> set[str]:
        """Every file below the directory of the repository."""
        return {str(path.relative_to(self.place.directory)) for path in self.place.directory.rglob("*.*")}


@pytest.mark.slow
def test_a_kill_leaves_what_is_leased_and_nothing_half_done(serve: Serve) -> None:
    """Twice: each start finds the same, and the paths of the drives stay."""
    stored = Stored(serve)
    serve.kill()
    held, old = stored.image(1, made_at=1.0), stored.image(1, "b" * 40, made_at=2.0)
    newest = stored.image(2, made_at=3.0)
    lease, over = stored.lease(held), stored.lease(old, ttl=60.0, ago=120.0)
    for left in ("1/images/half.new", "2/images/.x.json.9.new", "3/images/half.new", ".gone-4-ab/data.x"):
        (stored.place.directory / left).parent.mkdir(parents=True, exist_ok=True)
        (stored.place.directory / left).write_bytes(b"x")
    for _ in range(2):
        serve.start()
        # The old image is of an older generation, so nobody would ever be given it again.
        assert stored.files() == {f"{n}/images/{each.name}" for n, each in ((1, held), (2, newest))} | {
            "1/images/1.json", "2/images/3.json",
        }  # fmt: skip
        assert {path.name for path in stored.place.directory.iterdir()} == {"1", "2"}
        assert stored.live() == [lease.id] and over.id != lease.id
        by = serve.cli_json("status")["storage"]["by"]
        assert by["disks"] >= 4 * BLOCK
        serve.kill()


@pytest.mark.slow
def test_a_damaged_description_keeps_nobody_from_being_served(serve: Serve, tmp_path: Path) -> None:
    """One wrong bit in a key: `serve` starts, and the drives of who has leased them stay."""
    stored = Stored(serve)
    serve.terminate()
    image = stored.image(1, made_at=1.0)
    stored.lease(image)
    description = stored.place.description(image)
    description.write_text(description.read_text().replace('"form"', '"fobm"'))
    serve.start()
    serve.clone(tmp_path / "guest", WIDGETS)
    assert stored.place.tree(image).exists()


@pytest.mark.slow
def test_a_directory_of_disks_that_cannot_be_used_stops_nothing(serve: Serve, tmp_path: Path) -> None:
    """`serve` starts, guests are served, and the log names the directory."""
    stored = Stored(serve)
    serve.terminate()
    stored.place.generation(1).mkdir(parents=True)
    # No directory: it cannot be removed as one.
    stored.place.generation(2).write_bytes(b"x")
    serve.start()
    assert f"{WIDGETS}: removing old disks failed" in serve.log()
    serve.clone(tmp_path / "guest", WIDGETS)


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False], ids=["with serve", "without serve"])
def test_a_purge_takes_disks_and_leases_along(serve: Serve, running: bool) -> None:
    """Removing alone leaves both."""
    stored = Stored(serve)
    lease = stored.lease(stored.image(1))
    if not running:
        serve.terminate()
    serve.cli("remove-repo", WIDGETS)
    assert stored.live() == [lease.id] and stored.files()
    serve.cli("remove-repo", WIDGETS, "--purge", "--yes")
    assert stored.live() == [] and not stored.place.directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False], ids=["with serve", "without serve"])
def test_a_purge_counts_the_leases_that_it_ends(serve: Serve, running: bool) -> None:
    """Before it asks. Without leases it says nothing about disks."""
    stored = Stored(serve)
    image = stored.image(1)
    leases = [stored.lease(image), stored.lease(image)]
    if not running:
        serve.terminate()
    for text in (f"ends {len(leases)} leases", "ends 1 lease of"):
        done = serve.cli("remove-repo", WIDGETS, "--purge", check=False, input="n\n")
        assert done.returncode == 1 and f"deletes the disks of {WIDGETS} and {text}" in done.stderr
        stored.release(leases.pop())
    assert "disks" not in serve.cli("remove-repo", WIDGETS, "--purge", check=False, input="n\n").stderr
    assert [repo["name"] for repo in serve.cli_json("repos")] == [WIDGETS] and stored.files()


def test_status_shows_what_disks_take(serve: Serve) -> None:
    """One line, and none without disks."""
    assert "disks take" not in serve.cli("status").stdout
    Stored(serve).image(1)
    assert re.search(r"^  disks take [0-9.]+ [KM]iB; `disks` lists their leases$", serve.cli("status").stdout, re.M)


def test_a_backup_has_no_disks(serve: Serve, tmp_path: Path) -> None:
    """They can be built again, and are large."""
    stored = Stored(serve)
    stored.lease(stored.image(1))
    serve.cli("backup", str(tmp_path / "backup"))
    found = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert found and not [path for path in found if path.read_bytes()[:BLOCK] in (b"d" * BLOCK, b"t" * BLOCK)]


@pytest.mark.slow
def test_a_lower_budget_holds_after_a_reload(serve: Serve, upstream: HttpUpstream) -> None:
    """In the next round of the tidying, and what is leased stays; /metrics counts what is left."""
    stored = Stored(serve)
    held = stored.image(1, made_at=1.0)
    old = replace(held, name="2.erofs", made_at=2.0)
    stored.place.tree(old).write_bytes(b"t" * BLOCK)
    stored.place.description(old).write_text(stored.place.describe(old))
    stored.lease(held)
    serve.configure(refresh=SETTLED, workspace={"disk_budget": "1B"})
    serve.reload()
    wait_until(lambda: not stored.place.tree(old).exists(), message="the image goes")
    assert stored.place.tree(held).exists()
    wait_until(lambda: "disks take" in serve.log(), message="the log says that the rest is leased")
