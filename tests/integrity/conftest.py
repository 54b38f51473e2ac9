"""A state directory with recorded work, copied for each test, which damages it and has it healed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from appliance.core.config.credentials import Credentials
from appliance.core.config.settings import Config
from appliance.core.git.keyring import Keyring
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.git.mirrors import Mirrors
from appliance.core.integrity.exchange import settle
from appliance.core.integrity.healing import Healer, Healing
from appliance.core.integrity.inspection import Inspection, inspect, look
from appliance.core.integrity.recorded_refs import RecordedRefs, recorded_refs
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import make_git, open_stores
from appliance.core.process.owner import claim
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.runs import RefreshRun
from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS, Book, record_turn
from tests.serving.conftest import SETTLED, Node, wait_settled
from tests.support.generate import add_commit, force_push
from tests.support.gitutil import git, refs
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

OTHER = "acme/other"
_T = TypeVar("_T")


def record_work(base: Path, generated: Path) -> None:
    """Builds `base`: `upstream.git`, and `state` of a serve to which guests pushed and that was stopped."""
    with HttpUpstream(base / "upstream") as upstream:
        for name in (WIDGETS, OTHER):
            upstream.add(name, generated)
        urls = [upstream.url(WIDGETS), upstream.url(OTHER)]
        with Serve(base / "state", repos=urls, refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.wait_for_repo(OTHER)
            node = Node(serve, upstream)
            guest = node.guest(base / "guest")
            for session, turns in (("one", 3), ("two", 2), ("old", 1)):
                git("reset", "--quiet", "--hard", "origin/HEAD", cwd=guest)
                for number in range(turns):
                    record_turn(guest, session, f"{session} {number}")
            # Its second turn replaces the first, so that only the turn's ref keeps that.
            git("reset", "--quiet", "--hard", "origin/HEAD", cwd=guest)
            record_turn(guest, "one", "one, anew")
            wait_settled(serve)
            # An anchor, and objects of a branch that are loose.
            force_push(upstream.path(WIDGETS), "develop")
            add_commit(upstream.path(WIDGETS), "main", {"NEWS": "new\n"})
            serve.cli("refresh", WIDGETS)
            with Book(serve) as book:
                book.shift("old", 2 * 86400)
            serve.terminate()
        # The archive, as retention makes it.
        mirror = base / "state" / "mirrors" / f"{WIDGETS}.git"
        tip = git("rev-parse", f"{AGENTS}old", cwd=mirror)
        git("update-ref", f"{ARCHIVE}old", tip, cwd=mirror)
        git("update-ref", "-d", f"{AGENTS}old", cwd=mirror)
        stores = open_stores(Layout(base / "state"), create=False)
        stores.sessions.set_archived(WIDGETS, ["old"], True)
        stores.database.close()
    shutil.rmtree(base / "guest")


class Scene:
    """One copy of that state directory, worked on as its owner. Close it after use."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.layout = Layout(base / "state")
        self.upstream = base / "upstream" / f"{WIDGETS}.git"
        self._claim = claim(self.layout, "tests")
        self.git = make_git(self.layout, Config(), self._claim.children)
        self.mirrors = Mirrors(self.layout, self.git)
        self.stores = open_stores(self.layout, create=False)
        [found] = [repo for repo in self.stores.registry.all() if repo.name == WIDGETS]
        self.repo = Repo(found.id, WIDGETS, str(self.upstream), None, "cli", None, True, found.created_at)
        settle(self.layout)
        self.mirror.configure(self.repo.url)

    @property
    def mirror(self) -> Mirror:
        """The mirror that gets damaged."""
        return self.mirrors(WIDGETS)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.mirror.path

    @property
    def recorded(self) -> RecordedRefs:
        """What the database knows."""
        return recorded_refs(self.stores, WIDGETS)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end."""
        return asyncio.run(work)

    def look(self) -> Inspection:
        """What a look finds."""
        return self.run(look(self.mirror, self.recorded))

    def inspect(self, *, full: bool = False) -> Inspection:
        """What an inspection finds."""
        return self.run(inspect(self.mirror, self.recorded, full=full))

    async def fetch(self, mirror: Mirror, repo: Repo) -> None:
        """Bring a mirror, wherever it is, to the upstream's state as a refresh does."""
        at = Layout(mirror.path.parents[2])
        refresher = Refresher(at, self.git, MirrorLocks(), Keyring(Credentials(), {}), timeout=60.0)
        await refresher.refresh(RefreshRun(repo))

    def heal(self, found: Inspection, backup: Path | None = None) -> Healing:
        """Have it healed."""
        healer = Healer(self.mirrors, self.layout, self.stores, self.fetch, lambda: backup)
        return self.run(healer.heal(self.repo, found))

    def refresh(self) -> None:
        """Refresh the mirror."""
        self.run(self.fetch(self.mirror, self.repo))

    def object_of(self, revision: str) -> Path:
        """The file of a loose object."""
        oid = git("rev-parse", "--verify", revision, cwd=self.path)
        return self.path / "objects" / oid[:2] / oid[2:]

    def pack_everything(self) -> Path:
        """Repack all objects into one pack and all refs into packed-refs; return the pack."""
        git("pack-refs", "--all", cwd=self.path)
        git("repack", "-adq", cwd=self.path)
        [pack] = (self.path / "objects" / "pack").glob("pack-*.pack")
        for file in pack.parent.iterdir():
            file.chmod(0o644)
        return pack

    def snapshot_of_others(self) -> dict[str, bytes]:
        """Every file of the other mirror."""
        other = self.layout.mirror(OTHER)
        return {str(path.relative_to(other)): path.read_bytes() for path in other.rglob("*") if path.is_file()}

    def close(self) -> None:
        """Give the state directory up."""
        self.stores.database.close()
        self._claim.release()


def kept(mirror: Path) -> dict[str, str]:
    """The refs of sessions and turns."""
    return {ref: oid for ref, oid in refs(mirror).items() if ref.startswith((AGENTS, ARCHIVE, TURNS))}


@pytest.fixture(scope="session")
def recorded_base(generated_bare: Path, make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """What `record_work` builds. Do not write to it; copy it."""

    def build(path: Path) -> None:
        path.mkdir()
        record_work(path, generated_bare)

    return make_once("recorded-work", build)


@pytest.fixture
def scene(recorded_base: Path, tmp_path: Path) -> Iterator[Scene]:
    """A copy for this test alone."""
    shutil.copytree(recorded_base, tmp_path / "scene", symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    made = Scene(tmp_path / "scene")
    yield made
    made.close()
