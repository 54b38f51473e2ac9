"""Turns of a node that only exists in NATS: bundles in the object store, and rows in the stream."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nats.js import JetStreamContext

from appliance.core.fleet.messages import Attached, TurnRow
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.wire import write
from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

_ids = itertools.count(1)


@dataclass
class Elsewhere:
    """Node `a`: a clone in which an agent works. What it records goes to the fleet of `serve`."""

    serve: Serve
    nats: NatsCluster
    upstream: HttpUpstream
    clone: Path
    fleet: str

    @classmethod
    def of(cls, serve: Serve, nats: NatsCluster, upstream: HttpUpstream, fleet: str, clone: Path) -> Elsewhere:
        """A clone of the upstream as it is now."""
        git("clone", "-q", str(upstream.path(WIDGETS)), str(clone))
        return cls(serve, nats, upstream, clone, fleet)

    def commit(self, name: str = "work.txt", *, anew: bool = False) -> str:
        """Commits on top of what is checked out, or of the upstream's branch."""
        if anew:
            git("checkout", "-q", "--detach", "origin/HEAD", cwd=self.clone)
        return commit_files(self.clone, {name: f"{name} {next(_ids)}\n"}, f"work on {name}")

    def record(
        self,
        session: str,
        commit: str,
        *,
        needs: Sequence[str] = ("origin/HEAD",),
        data: bytes | None = None,
        stored: bool = True,
        bundled: bool = True,
        attached: dict[str, bytes] | None = None,
    ) -> TurnRow:
        """Adds a turn as a node does: its bundle (or `data` in its place) as an object, its row in the stream."""
        uid = hashlib.sha256(f"{session} {commit} {next(_ids)}".encode()).hexdigest()
        tips = [git("rev-parse", each, cwd=self.clone) for each in needs]
        if data is None:
            data = self.bundle(session, commit, tips) if bundled else b""
        files = attached or {}
        row = TurnRow(
            uid=uid, node="a", id=1, repo=WIDGETS, session=session, commit=commit, old=None, base=tips[0],
            at="2026-11-27T08:00:00.000000Z", subject="work", commits=1, files_changed=1, insertions=1, deletions=0,
            client="10.0.0.1", guest=None, bytes=len(data), bundle=uid, bundle_size=len(data),
            bundle_sha256=hashlib.sha256(data).hexdigest(), needs=tuple(tips),
            attachments=tuple(Attached(name, len(each), _digest(each)) for name, each in files.items()),
        )  # fmt: skip
        if not bundled:
            row = replace(row, bundle=None, bundle_size=0, bundle_sha256=None, needs=())
        objects = {_digest(each): each for each in files.values()}
        if stored and bundled:
            objects[uid] = data
        self._store(objects)
        self._publish(row)
        return row

    def bundle(self, session: str, commit: str, needs: Sequence[str]) -> bytes:
        """A bundle, as git makes it."""
        path = self.clone.parent / f"bundle-{next(_ids)}"
        ref = f"refs/agents/{session}"
        git("update-ref", ref, commit, cwd=self.clone)
        git("bundle", "create", "-q", str(path), ref, *(f"^{each}" for each in needs), cwd=self.clone)
        return path.read_bytes()

    def _store(self, objects: dict[str, bytes]) -> None:
        async def put(context: JetStreamContext) -> None:
            store = await context.object_store(FleetNames(self.fleet).objects)
            for name, data in objects.items():
                await store.put(name, data)

        if objects:
            self.nats.ask(put)

    def _publish(self, row: TurnRow) -> None:
        """Puts the row into the stream, and waits until node `b` has read it."""

        async def publish(context: JetStreamContext) -> None:
            await context.publish(FleetNames(self.fleet).turns_of("a"), write(row))

        self.nats.ask(publish)
        wait_until(lambda: self._knows(row), timeout=60, message="the turn is listed")

    def _knows(self, row: TurnRow) -> bool:
        with sqlite3.connect(self.serve.state / "gitmirror.db", timeout=30) as db:
            return bool(db.execute("SELECT 1 FROM turns WHERE uid = ?", [row.uid]).fetchall())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
