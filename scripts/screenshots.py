#!/usr/bin/env python3
"""Makes new pictures of the live view for docs/pictures/ from real data: a real `serve`, clones, recordings.

    .venv/bin/python scripts/screenshots.py
    .venv/bin/python scripts/screenshots.py --stay     # prints the command to look at it, and runs until Ctrl-C

The repositories are generated; the bundles in ../shared/data are used too when they exist. Only the loopback is used.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from appliance.core.api.client import call  # noqa: E402
from appliance.core.config.settings import load_config  # noqa: E402
from appliance.core.layout import Layout  # noqa: E402
from appliance.core.node.node import Node  # noqa: E402
from appliance.core.node.queries import NodeQueries  # noqa: E402
from appliance.tui.app import Tui  # noqa: E402
from tests.support.generate import add_commit, generate_repository  # noqa: E402
from tests.support.gitutil import commit_files, git, wait_until  # noqa: E402
from tests.support.serve import Serve  # noqa: E402
from tests.support.upstream import HttpUpstream  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE = (118, 32)
BUNDLES = {"homelab": "jomcgi/homelab", "sqlite-utils": "simonw/sqlite-utils"}
GENERATED = ("acme/billing", "acme/search", "acme/widgets", "acme/web", "acme/infra")

RETRY = '''"""Calls that are tried again."""

import random
import time


class GaveUp(Exception):
    """Every attempt failed; the last error is the cause."""


def retry(call, *, attempts=5, base=0.1, cap=10.0):
    """Call until it succeeds, waiting longer each time (full jitter)."""
    for attempt in range(attempts):
        try:
            return call()
        except OSError as error:
            last = error
            time.sleep(random.uniform(0, min(cap, base * 2**attempt)))
    raise GaveUp(f"{attempts} attempts") from last
'''
TEST = """import pytest

from common.retry import GaveUp, retry


def test_gives_up_after_the_last_attempt():
    calls = []

    def fails():
        calls.append(1)
        raise OSError("down")

    with pytest.raises(GaveUp):
        retry(fails, attempts=3, base=0)
    assert len(calls) == 3
"""
TURNS: Mapping[str, list[tuple[str, dict[str, str]]]] = {
    "retry-with-backoff": [
        ("Try calls again, with backoff", {"src/common/retry.py": RETRY}),
        ("Test that it gives up", {"tests/unit/test_retry.py": TEST}),
        ("Wait for less at first", {"src/common/retry.py": RETRY.replace("base=0.1", "base=0.05")}),
    ],
    "docs-tidy": [("Say what the service is for", {"docs/guides/purpose.md": "# Purpose\n\nIt answers questions.\n"})],
    "fix-login-timeout": [
        ("Login waits 30 s, as the gateway does", {"src/server/login.py": "TIMEOUT = 30.0\n"}),
        ("And says so", {"src/server/login.py": 'TIMEOUT = 30.0\n"""Seconds, as at the gateway."""\n'}),
    ],
}


class Stage:
    """A `serve` with several upstreams, and guests that clone and record."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.upstream = HttpUpstream(base / "upstream")
        self.serve = Serve(base / "state", refresh={"interval": "5s", "stale_after": "30s"})

    def set(self) -> None:
        """Mirrors every repository, lets guests clone and push, and breaks one upstream."""
        names = self._fill()
        self.serve.configure(
            [self.upstream.url(name) for name in names], refresh={"interval": "5s", "stale_after": "30s"}
        )
        self.serve.start()
        for name in names:
            self.serve.wait_for_repo(name, timeout=120)
        self._know()
        for number, (session, turns) in enumerate(TURNS.items()):
            name = ("acme/widgets", "acme/billing", "acme/search")[number]
            guest = self.serve.clone(self.base / "guests" / session, name, "--depth=1")
            for message, files in turns:
                commit_files(guest, files, message)
                git("push", "--quiet", "--force", "origin", f"HEAD:refs/agents/{session}", cwd=guest)
        self.upstream.on("acme/infra").fail = True
        self.serve.cli("disable", "acme/web")
        for number, name in enumerate([*names[:3], "acme/search", "acme/search"]):
            self.serve.clone(self.base / "guests" / f"clone-{number}", name, "--depth=1", http=number % 2 == 1)
        self.move("acme/search", "Rank recent documents higher")
        wait_until(self._behind, timeout=60, message="a repository is behind")

    def _know(self) -> None:
        """Makes guests known: the one that records everything here, one of a VM, and one with a token."""
        for guest in (
            {"name": "builder", "sessions": ["*"], "address": "127.0.0.1"},
            {"name": "vm-7", "sessions": ["fix-dns", "docs-*"], "unix": str(self.base / "v.sock"), "ttl": 30_000},
            {"name": "reviewer", "repos": ["acme/billing"], "only": True, "token": True},
        ):
            call(Layout(self.serve.state), "POST", "/v1/guests", guest)

    def move(self, name: str, message: str) -> None:
        """Adds a commit to an upstream."""
        add_commit(self.upstream.path(name), "main", {"CHANGES.md": f"{message} ({time.time()})\n"}, message)

    def close(self) -> None:
        """Ends everything."""
        self.serve.close()
        self.upstream.close()

    def _fill(self) -> list[str]:
        names = list(GENERATED)
        for seed, name in enumerate(GENERATED):
            self.upstream.path(name).parent.mkdir(parents=True, exist_ok=True)
            generate_repository(self.upstream.path(name), files=60 + 80 * seed, commits=40, seed=seed)
        for bundle, name in BUNDLES.items():
            path = ROOT.parent / "shared" / "data" / f"{bundle}.bundle"
            path = path if path.exists() else ROOT.parent.parent / "shared" / "data" / f"{bundle}.bundle"
            if path.exists():
                bare = self.base / f"{bundle}.git"
                git("clone", "--quiet", "--mirror", str(path), str(bare), timeout=300)
                self.upstream.add(name, bare)
                names.insert(0, name)
        return names

    def _behind(self) -> bool:
        status = self.serve.cli_json("status")
        return any(repo["state"] == "failing" for repo in status["repos"])


async def take(stage: Stage) -> None:
    """Drives the view, and writes what it shows."""
    node = Node(Layout(stage.serve.state), load_config(stage.serve.config), create=False)
    app = Tui(NodeQueries(node))

    def write(name: str) -> None:
        # The ids are random and would change every picture each time. The fonts come from the reader's machine.
        svg = re.sub(r"terminal-\d+", "terminal", app.export_screenshot(title="gitmirror.pyz tui", simplify=True))
        svg = re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
        (PICTURES / f"{name}.svg").write_text(svg)

    async with app.run_test(size=SIZE) as pilot:

        async def settle() -> None:
            await asyncio.sleep(1.5)
            await pilot.pause()

        await settle()
        await pilot.press("b")
        await settle()
        write("repositories")
        await pilot.press("slash", *"acme/search", "enter", "enter")
        await settle()
        write("repository")
        await pilot.press("2", "slash", *"retry", "enter")
        await settle()
        write("sessions")
        await pilot.press("enter")
        await settle()
        write("diff")
        await pilot.press("3")
        stage.move("acme/billing", "Round to the cent")
        await asyncio.to_thread(stage.serve.clone, stage.base / "guests" / "last", "acme/widgets", "--depth=1")
        await asyncio.sleep(5)
        await settle()
        write("activity")
        await pilot.press("5")
        await settle()
        write("guests")


def main() -> None:
    """Starts everything, then takes the pictures, or keeps running with --stay."""
    parser = argparse.ArgumentParser(description="Make new pictures of the live view for the docs.")
    parser.add_argument("--stay", action="store_true", help="keep serve running to look at, until Ctrl-C")
    wanted = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gitmirror-stage-") as base:
        stage = Stage(Path(base))
        try:
            stage.set()
            if wanted.stay:
                print(f"python -m appliance --state {stage.serve.state} --config {stage.serve.config} tui", flush=True)
                while True:
                    time.sleep(20)
                    stage.move("acme/search", "Another change")
            asyncio.run(take(stage))
        except KeyboardInterrupt:
            pass
        finally:
            stage.close()


if __name__ == "__main__":
    main()
