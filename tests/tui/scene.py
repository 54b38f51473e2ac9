"""A node that is always the same: fixed times, ids, addresses; for pictures of the view."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.settings import load_config
from appliance.core.layout import Layout
from appliance.core.models import Hydration, RefChange, RefreshOutcome, Turn
from appliance.core.node.node import Node
from appliance.core.node.queries import Disk, NodeQueries
from appliance.core.node.state_dir import open_stores
from appliance.core.ops import doctor
from appliance.core.store.audit import Attempt
from appliance.core.store.figures import STEP, Figures, FigureStore
from appliance.core.store.guests import GuestOrder, GuestStore
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.units import rfc3339
from appliance.tui.app import Tui
from appliance.tui.data.messages import StreamChanged
from tests.support.generate import add_commit, generate_repository
from tests.support.gitutil import git

NOW = 1769860800.0
"""2026-01-31 12:00:00 UTC."""
WIDGETS = "acme/widgets"
LONG = "an-organisation-with-a-long-name/a-repository-with-a-long-name"
Make = Callable[[str, Callable[[Path], object]], Path]
"""Makes something on disk once for all workers, by its name, as the fixture `make_once` does."""
PULSE: dict[str, Any] = {
    "serving": True,
    "pid": 4711,
    "git": "git://mirror.test:9418",
    "http": "http://mirror.test:9419",
    "admin": None,
    "clients": 3,
    "connections": {"git": 2, "http": 1},
    "max_clients": 512,
    "pushes": {"accepted": 1412, "rejected": 3},
    "warnings": [],
    "cache": {"hits": 980, "joined": 12, "misses": 41, "direct": 7, "bytes": 3 * 2**30, "budget": 10 * 2**30},
    "cloning": ["acme/new"],
    "clones": {
        "acme/new": {
            "phase": "receiving objects",
            "percent": 45,
            "objects": 450_123,
            "total": 1_000_000,
            "bytes": 1_300_000_000,
            "speed": 12_600_000.0,
            "seconds": 140.0,
        },
    },
    "backup": {
        "to": "/mnt/backup/node1",
        "at": "2026-01-31T09:12:00Z",
        "age": 10_080.0,
        "bytes": 1_288_490_188,
        "error": None,
        "verified_at": "2026-01-29T08:00:00Z",
        "faults": 0,
    },
    "known_guests": {
        "count": 4,
        "problems": {"vm-9": "cannot listen on /run/fc/vm-9/v.sock_9418: No such file or directory"},
    },
}
TRANSFERS: list[dict[str, Any]] = [
    {
        "id": 1, "repo": WIDGETS, "want": "7" * 40, "shape": "workspace.tar", "way": "snapshot", "protocol": "http",
        "road": "unix", "client": "unix:vm-7", "guest": "vm-7", "started_at": "2026-01-31T11:59:47Z", "seconds": 12.5,
        "bytes": 450_000_000, "size": 1_000_000_000,
    },
    {
        "id": 2, "repo": WIDGETS, "want": "7" * 40, "shape": "depth 1, blob:none", "way": "miss", "protocol": "git",
        "road": "tcp", "client": "10.0.3.77", "guest": None, "started_at": "2026-01-31T11:59:59Z", "seconds": 0.6,
        "bytes": 0, "size": None,
    },
]  # fmt: skip
STORAGE: dict[str, Any] = {
    "used": 8 * 2**30,
    "budget": 20 * 2**30,
    "has_budget": True,
    "over": 0,
    "measured_at": "2026-07-05T12:00:00Z",
    "by": {
        "mirrors": 2_100_000_000,
        "answers": 3 * 2**30,
        "workspaces": 2_400_000_000,
        "disks": 800_000_000,
        "lfs": 0,
        "recordings": 14_000_000,
        "database": 2_000_000,
    },
    "repos": [
        {"name": "acme/infra", "bytes": 4 * 2**30, "by": {}},
        {"name": "acme/search", "bytes": 3 * 2**30, "by": {}},
        {"name": "acme/widgets", "bytes": 2**30, "by": {}},
    ],
    "next": [
        {
            "kind": "answers", "repo": "acme/search", "what": "41 cached responses", "bytes": 1_300_000_000,
            "used_at": "2026-07-04T12:00:00Z",
        },
        {
            "kind": "workspaces", "repo": "acme/infra", "what": "the snapshot of main", "bytes": 640_000_000,
            "used_at": "2026-07-05T09:00:00Z",
        },
    ],
    "removed": {"bytes": 5 * 2**30, "count": 211},
}  # fmt: skip
CHECKS = [
    doctor.Check("git", True, "git version 2.47.3"),
    doctor.Check("config", True, "/etc/gitmirror/gitmirror.toml (6 repositories)"),
    doctor.Check("disk", True, "180 GiB free"),
    doctor.Check("database", True, "6 repositories, 2824 audit events"),
    doctor.Check("serve", True, "process 4711, pushes are guarded"),
]
BROKEN = [
    *CHECKS[:2],
    doctor.Check("disk", False, "312 MiB free", "make room, or move the state directory"),
    CHECKS[3],
    doctor.Check("serve", False, "behind: acme/infra, acme/search", "`status` says why"),
]


class FixedQueries(NodeQueries):
    """Reads a real database, and makes up what only a running serve and the machine know."""

    told: dict[str, Any] | None = PULSE
    sent: list[dict[str, Any]] = []  # noqa: RUF012 - each scene sets its own
    room = Disk(500 * 10**9, 194 * 10**9, STORAGE)

    def pulse(self) -> dict[str, Any] | None:
        return self.told

    def transfers(self) -> list[dict[str, Any]]:
        return self.sent if self.told else []

    def disk(self) -> Disk:
        super().disk()
        return self.room


class StillEvents:
    """Stands for the event stream of a serve in which nothing happens, or for its absence."""

    def __init__(self, app: Tui, serving: bool) -> None:
        self._app = app
        self._serving = serving

    def start(self) -> None:
        self._app.post_message(StreamChanged(self._serving))

    def take(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        return None


@dataclass
class Scene:
    """A state directory, and the view of it."""

    state: Path
    pulse: dict[str, Any] | None = field(default_factory=lambda: PULSE)
    checks: list[doctor.Check] = field(default_factory=lambda: CHECKS)
    sent: list[dict[str, Any]] = field(default_factory=list)
    """What guests are being sent."""

    def app(self, monkeypatch: pytest.MonkeyPatch) -> Tui:
        """The view of it, at NOW for ever."""
        monkeypatch.setattr(doctor, "examine", lambda _: self.checks)
        queries = FixedQueries(Node(Layout(self.state), load_config(None), create=False), clock=lambda: NOW)
        queries.told, queries.sent = self.pulse, self.sent
        app = Tui(queries, clock=lambda: NOW)
        app.context.follower.events = StillEvents(app, self.pulse is not None)  # type: ignore[assignment]
        return app


def build_empty(state: Path) -> None:
    """A node on which nothing is registered."""
    open_stores(Layout(state)).database.close()


def build(state: Path) -> None:
    """Six repositories in six states, one with sessions that can be read."""
    stores = open_stores(Layout(state))
    mirror = Layout(state).mirror(WIDGETS)
    mirror.parent.mkdir(parents=True)
    generate_repository(mirror, files=30, commits=12, branches=3, tags=2)
    tip = git("rev-parse", "main", cwd=mirror)
    _register(stores, WIDGETS, tip, lag=12, sessions=2, size=402_653_184)
    error = "git ls-remote failed: fatal: unable to access 'https://github.com/acme/infra/': Could not resolve host"
    _register(stores, "acme/infra", "1" * 40, lag=7_380, failures=9, error=error)
    _register(stores, "acme/search", "2" * 40, lag=1_260, failures=2, error="git fetch failed: it took longer than 10m")
    _register(stores, "acme/new", None, lag=None)
    _register(stores, "acme/web", "3" * 40, lag=4_000, size=9_000_000)
    stores.registry.change("acme/web", {"enabled": False})
    _register(stores, LONG, "4" * 40, lag=31, size=52_000_000_000)
    _refreshes(stores, tip)
    _hydrations(stores, tip)
    _figures(stores)
    _sessions(stores, mirror, tip)
    _guests(stores)
    stores.database.close()


def _register(
    stores: Stores,
    name: str,
    tip: str | None,
    *,
    lag: float | None,
    failures: int = 0,
    error: str | None = None,
    sessions: int = 0,
    size: int = 2_000_000,
) -> None:
    repo = stores.registry.add(Wanted(name, f"https://github.com/{name}"))
    stores.health.update(
        repo.id,
        tip=tip,
        head="refs/heads/main" if tip else None,
        verified_at=None if lag is None else NOW - lag,
        checked_at=None if lag is None else NOW - 12,
        last_error=error,
        failures=failures,
        cloned=int(tip is not None),
        refs=14 if tip else 0,
        size=size if tip else 0,
        sessions=sessions,
        next_due=NOW + 48,
    )


def _refreshes(stores: Stores, tip: str) -> None:
    repos = {repo.name: repo.id for repo in stores.registry.all()}
    for number in range(40):
        at = NOW - 60.0 * (40 - number) + 48
        moved = (RefChange("refs/heads/main", "5" * 40, tip),) if number % 9 == 3 else ()
        took = 0.12 + 0.05 * (number % 5) + (0.9 if moved else 0)
        stores.health.record_refresh(repos[WIDGETS], RefreshOutcome(WIDGETS, at, took, moved), failures=0)
        error = None if number < 31 else "Could not resolve host: github.com"
        stores.health.record_refresh(repos["acme/infra"], RefreshOutcome("acme/infra", at, 2.5, (), error), refs=14)


def _hydrations(stores: Stores, tip: str) -> None:
    ways = ("hit", "hit", "snapshot", "joined", "hit", "miss", "hit", "direct")
    rows = []
    for number in range(40):
        way = ways[number % len(ways)]
        shape = "workspace.tar" if way == "snapshot" else "depth 1, blob:none"
        seconds = 0.004 + 0.11 * (number % 3)
        client = f"10.0.3.{number % 7 + 2}"
        guest = "vm-7" if number % 7 == 6 else None
        protocol = "http" if way == "snapshot" else "git"
        what = Hydration(WIDGETS, tip, 1, shape, way, 1_400_000 + number, 0.003, seconds, client, protocol, guest)
        rows.append((NOW - 9.0 * (40 - number), what))
    stores.database.close()
    # The rows' age is measured by the store's own clock: only this one lives at NOW.
    from appliance.core.store.activity import ActivityStore

    ActivityStore(stores.database, lambda: NOW).record(rows)


def _figures(stores: Stores) -> None:
    """A day with a calm night, an hour without a serve, and a busy last quarter of an hour."""
    slots = []
    for at in range(int(NOW) - 86_400, int(NOW), STEP):
        before, number = NOW - at, at // STEP
        if 25_000 < before < 28_600:
            continue
        busy = 3 if before < 900 else (number % 7 == 0) if before < 36_000 else 0
        figures = Figures(refreshes=1 + number % 2, failures=int(number % 11 == 0 and before < 3_000))
        for each in range(busy + number % 2 * busy):
            seconds = 0.12 + 0.03 * ((number + each) % 5) + (2.1 if (number + each) % 17 == 0 else 0)
            way = "miss" if (number + each) % 13 == 0 else "hit"
            figures.hydrated(Hydration(WIDGETS, "1" * 40, 1, "full", way, 3_400_000, 0.1, seconds, "c", "git"))
        slots.append((at, figures))
    FigureStore(stores.database, lambda: NOW).add(slots)


def _sessions(stores: Stores, mirror: Path, tip: str) -> None:
    code = 'def greet(name):\n    """Say hello."""\n    return f\'hello {name}\'\n'
    turns: dict[str, list[tuple[str, Mapping[str, str]]]] = {
        "fix-login-timeout": [
            ("Greet whoever comes", {"src/server/greeting.py": code}),
            ("Greet them louder", {"src/server/greeting.py": code.replace("hello {", "HELLO {"), "docs/a.md": "# A\n"}),
        ],
        "a-session-with-a-rather-long-name-of-its-own": [("One thing\x1b[31m and its colour", {"a [b] c.txt": "x\n"})],
    }
    number = 0
    for session, commits in turns.items():
        git("branch", "--force", "work", tip, cwd=mirror)
        for turn, (subject, files) in enumerate(commits, 1):
            commit = add_commit(mirror, "work", files, subject)
            git("update-ref", f"refs/agents/{session}", commit, cwd=mirror)
            number += 1
            ref, client, at = f"refs/agents/{session}", f"10.0.3.{number}", NOW - 3600.0 / number
            guest = "vm-7" if session == "fix-login-timeout" else None
            stores.audit._clock = lambda at=at: at  # type: ignore[misc]
            push = Attempt(f"p{number}", WIDGETS, ref, session, None, commit, "accepted", None, client, guest)
            [attempt] = stores.audit.record_attempts([push])
            stores.audit.record_outcomes([(attempt, "applied", None)])
            figures = (turn, len(files), 3 * turn, turn - 1)
            stores.sessions.record(
                Turn(
                    attempt, WIDGETS, session, commit, tip, rfc3339(at), subject, *figures, client, 2048 * number, guest
                )
            )
    refused = Attempt(
        "p9", WIDGETS, "refs/heads/main", None, None, "6" * 40, "rejected", "only refs/agents", "10.0.3.9"
    )
    stores.audit._clock = lambda: NOW - 40
    stores.audit.record_attempts([refused])
    stores.sessions.keep(WIDGETS, "fix-login-timeout", True)
    git("branch", "-D", "--quiet", "work", cwd=mirror)


def _guests(stores: Stores) -> None:
    """Four that are known, of every way; the time of one is over. Nobody opens their sockets."""
    search = stores.registry.get("acme/search")
    orders = [
        GuestOrder("builder-with-a-rather-long-name", ("*",), address="10.0.3.200", token=True),
        GuestOrder("reviewer", repos=(search,), only=True, token=True, ttl=60.0),
        GuestOrder("vm-7", ("docs-*", "fix-login-timeout"), (search,), unix="/run/fc/vm-7/v.sock", ttl=30_000.0),
        GuestOrder("vm-9", ("fix-dns",), unix="/run/fc/vm-9/v.sock"),
    ]
    for order in orders:
        GuestStore(stores.database, lambda: NOW - 600.0).add(order)


def remake() -> bool:
    """Whether pictures are to be written rather than compared."""
    return bool(os.environ.get("REMAKE_PICTURES"))
