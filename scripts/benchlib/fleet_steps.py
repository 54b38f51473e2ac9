"""The steps that are measured on three real nodes, and on a node alone beside them.

A repository is added, a webhook comes, and a session is hydrated.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchlib.fleet_hydrate import timed
from tests.support.fleet import TestFleet
from tests.support.fleet_users import (
    KitGuest,
    Pushing,
    ask,
    commits_of,
    fleet_of,
    is_warm,
    send_webhook,
    webhook_settings,
)
from tests.support.generate import add_commit, generate_repository
from tests.support.gitutil import git
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

REPO = "acme/widgets"


class Steps:
    """The nodes `a`, `b` and `c` and a node alone, each warm with one repository. A context manager."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Steps:
        with contextlib.ExitStack() as stack:
            place = self._place
            self.upstream = stack.enter_context(HttpUpstream(place / "upstream"))
            self.source = generate_repository(place / "source.git")
            self.upstream.add(REPO, self.source)
            nats = stack.enter_context(NatsCluster(place / "nats", 3))
            refresh: Any = {"interval": "1h", "stale_after": "1d", **webhook_settings(place)}
            self.fleet = stack.enter_context(TestFleet(place, nats, refresh=refresh))
            for serve in self.fleet.start().nodes.values():
                serve.keep_ports()
            self.alone = stack.enter_context(Serve(place / "alone", refresh=refresh | {"allow_local": True})).start()
            self.fleet.wait_all(lambda serve: fleet_of(serve)["connected"], "the fleet is there")
            for serve in (self.fleet["a"], self.alone):
                serve.cli("add-repo", self.upstream.url(REPO))
            self._all_warm(REPO)
            self._is_warm_alone(REPO)
            self.pushing = Pushing(place / "pushing.git", self.upstream.path(REPO))
            self.guest = KitGuest(place / "guest", self.fleet["a"], REPO, self.upstream.url(REPO))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def all(self) -> list[tuple[str, Callable[[int], float]]]:
        """The steps by what they measure, in seconds."""
        return [
            ("added on one: warm on all, after the clone on that one", self.added),
            ("pushed upstream: warm on all, after one webhook", self.hooked),
            ("recorded on A: hydrated on B by session:, from the push's end", self.recorded),
            ("recorded on A: hydrated on B, from when A was killed", self.killed),
            ("added on a node alone: warm, after its clone", self.added_alone),
            ("pushed upstream: a node alone is warm, after a webhook", self.hooked_alone),
            ("recorded on a node alone: hydrated there, from the push's end", self.recorded_alone),
        ]

    def _all_warm(self, name: str) -> float:
        tip = git("rev-parse", "main", cwd=self.upstream.path(name))
        return timed(lambda: all(is_warm(serve, name, tip) for serve in self.fleet.nodes.values()))

    def _is_warm_alone(self, name: str) -> float:
        tip = git("rev-parse", "main", cwd=self.upstream.path(name))
        return timed(lambda: is_warm(self.alone, name, tip))

    def added(self, number: int) -> float:
        """A repository is added on one node."""
        return self._all_warm(self._add(self.fleet["b"], f"acme/added-{number}"))

    def added_alone(self, number: int) -> float:
        """The same on the node alone."""
        return self._is_warm_alone(self._add(self.alone, f"acme/added-alone-{number}"))

    def _add(self, serve: Serve, name: str) -> str:
        self.upstream.add(name, self.source)
        ask(serve, "POST", "repos", {"url": self.upstream.url(name)})
        return name

    def hooked(self, number: int) -> float:
        """Somebody pushes to the upstream, which tells one node."""
        self._hook(self.fleet["c"], f"hooked-{number}")
        return self._all_warm(REPO)

    def hooked_alone(self, number: int) -> float:
        """The same with the node alone. Nobody tells the fleet, so it does nothing meanwhile."""
        self._hook(self.alone, f"hooked-alone-{number}")
        return self._is_warm_alone(REPO)

    def _hook(self, serve: Serve, path: str) -> None:
        before = git("rev-parse", "main", cwd=self.upstream.path(REPO))
        tip = add_commit(self.upstream.path(REPO), "main", {path: "x\n"})
        url = f"{self.upstream.url(REPO)}.git"
        send_webhook(serve, REPO, url, ref="refs/heads/main", before=before, after=tip)

    def recorded(self, number: int) -> float:
        """A turn of `a` is hydrated at `b` by the kit, as soon as `b` lists it."""
        session = f"recorded-{number}"
        self._record(self.fleet["a"], session)
        began = time.monotonic()
        self._hydrate(self.fleet["b"], session)
        return time.monotonic() - began

    def recorded_alone(self, number: int) -> float:
        """The same on one node alone."""
        session = f"recorded-alone-{number}"
        self._record(self.alone, session)
        began = time.monotonic()
        self._hydrate(self.alone, session)
        return time.monotonic() - began

    def killed(self, number: int) -> float:
        """The same, after a `kill -9` of the node that has recorded it, once another lists it."""
        session = f"killed-{number}"
        self._record(self.fleet["a"], session)
        timed(lambda: self._lists(self.fleet["c"], session))
        self.fleet["a"].kill()
        began = time.monotonic()
        self._hydrate(self.fleet["b"], session)
        took = time.monotonic() - began
        self.fleet["a"].start()
        self.fleet.wait_all(lambda serve: fleet_of(serve)["connected"], "the fleet is there again")
        self._all_warm(REPO)
        return took

    def _record(self, serve: Serve, session: str) -> None:
        done, said = self.pushing.push(serve, REPO, session, self.pushing.commit(session))
        assert done, said

    def _lists(self, serve: Serve, session: str) -> bool:
        with contextlib.suppress(Exception):
            return bool(commits_of(serve, REPO, session))
        return False

    def _hydrate(self, serve: Serve, session: str) -> None:
        timed(lambda: self._lists(serve, session))
        dest = self._place / f"hydrated-{session}"
        self.guest.hydrate(serve, dest, f"session:{session}")
        assert (dest / "turn.txt").read_text().startswith(session)
