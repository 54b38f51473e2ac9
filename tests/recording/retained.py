"""The retention of a node that was shut down, with a clock of the test's."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.core.config.settings import RecordingConfig
from appliance.core.events.facts import Event, SessionsEnded
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.models import Caller, Repo
from appliance.core.node.state_dir import open_stores
from appliance.core.recording.attachments import Attachments
from appliance.core.recording.quota import Quota
from appliance.core.recording.retention import Retention
from appliance.core.recording.trusted_time import TrustedTime
from appliance.core.recording.turns import TurnRecorder
from appliance.core.store.stores import Stores
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.recording.conftest import Book, record_turn
from tests.serving.conftest import SETTLED, Node
from tests.support.gitutil import git, refs
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

DAY = 86400.0
MONTH = 30 * DAY


async def require_nothing(repo: Repo, session: str, caller: Caller) -> None:
    """Whoever asks may attach."""


class Bench:
    """The retention of a node that was shut down, with a clock of the test's."""

    def __init__(self, state: Path) -> None:
        self.mirror = state / "mirrors" / f"{WIDGETS}.git"
        self.lab = Lab(state)
        self.stores: Stores = open_stores(self.lab.layout)
        self.now, self.running = time.time(), 0.0
        self.told = 0
        self.locks = MirrorLocks()
        self.quota = Quota(RecordingConfig, time.monotonic)
        self.repo: Repo = self.stores.registry.get(WIDGETS)
        self.attachments = Attachments(
            self.lab.layout, self.stores.details, self.quota, RecordingConfig, require_nothing, lambda: self.now
        )
        self.room = Retention(
            TurnRecorder(self.stores.sessions, self.lab.mirror),
            self.stores.begun_ends,
            self.quota,
            self.lab.mirror,
            self.locks,
            self.attachments,
            repos=lambda: [self.repo],
            settings=lambda: RecordingConfig(retention=MONTH),
            publish=self._published,
            time=self.time(),
        )

    def _published(self, event: Event) -> None:
        assert isinstance(event, SessionsEnded) and event.repo == self.repo
        self.told += 1

    def time(self) -> TrustedTime:
        """Decides after a start whether the clock can be trusted."""
        return TrustedTime(self.stores.time, lambda: self.now, lambda: self.running)

    def jump(self, seconds: float) -> None:
        """Look after the repository by a clock that was set by so much."""
        self.now += seconds
        self.lab.run(self.room.look_after(self.repo))

    def look(self, after: float) -> None:
        """Look after the repository so many seconds from now."""
        self.now += after
        self.running += after
        self.lab.run(self.room.look_after(self.repo))

    def close(self) -> None:
        """Give the state directory back."""
        self.stores.database.close()
        self.lab.close()


def names(bench: Bench, prefix: str) -> set[str]:
    """What the refs below a prefix are called."""
    return {ref.removeprefix(prefix) for ref in refs(bench.mirror) if ref.startswith(prefix)}


def record_sessions(base: Path, generated: Path) -> None:
    """Makes `state` below `base`, of a node to which guests pushed and that was shut down."""
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            guest = Node(serve, upstream).guest(base / "guest")
            for number in range(3):
                record_turn(guest, "old", f"turn {number}")
                git("reset", "--quiet", "--hard", "HEAD~1", cwd=guest)
            for name in ("kept", "young"):
                record_turn(guest, name, name)
            with Book(serve) as book:
                book.stores.sessions.keep(WIDGETS, "kept", True)
            serve.terminate()


def retained(
    generated_bare: Path, make_once: Callable[[str, Callable[[Path], object]], Path], tmp_path: Path
) -> Iterator[Bench]:
    """A node with the sessions `old` (three turns, rewritten), `kept` and `young`, shut down; a copy for this test."""

    def build(path: Path) -> None:
        path.mkdir()
        record_sessions(path, generated_bare)

    state = make_once("retained-sessions", build) / "state"
    shutil.copytree(state, tmp_path / "state", symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    with Book(Serve(tmp_path / "state")) as book:
        for name in ("old", "kept"):
            book.shift(name, 2 * DAY)
    bench = Bench(tmp_path / "state")
    yield bench
    bench.close()
