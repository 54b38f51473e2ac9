"""Nodes for fetches: one shared by tests that only read, nodes with a gate before git, and their counters."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.core.api.client import call
from appliance.core.layout import Layout
from appliance.core.serving.fetch.kept_responses import taken_by
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import DEEP, SETTLED, Node
from tests.serving.conftest import big_bare as big_bare
from tests.serving.fetch.wire import http_ask
from tests.support.gitutil import clean_env, git, refs, wait_until
from tests.support.serve import Serve, Value
from tests.support.upstream import GitDaemonUpstream, HttpUpstream

TOOLS = "sub/tools"
"""The name under which `DEEP` is registered."""


def status_of(serve: Serve) -> dict[str, Any]:
    """`status --json`, by the socket that the command asks: a tenth of the time."""
    return dict(call(Layout(serve.state), "GET", "/v1/status"))


def cache_of(serve: Serve) -> dict[str, int]:
    """`cache` of `status --json`."""
    return dict(status_of(serve)["cache"])


def clients_of(serve: Serve) -> int:
    """`clients` of `status --json`."""
    return int(status_of(serve)["clients"])


def wait_kept(serve: Serve) -> None:
    """Wait until no answer is in the making. A guest may have it whole before git has ended and it counts as kept."""

    def look() -> bool:
        with contextlib.suppress(FileNotFoundError):
            files = (serve.state / "cache" / "responses").iterdir()
            return sum(taken_by(each.stat().st_size) for each in files) == cache_of(serve)["bytes"]
        return False

    wait_until(look, message="all answers are kept")


WAYS = ("hits", "joined", "misses", "direct")


class Counting:
    """How the fetches since its creation were counted."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._before = cache_of(serve)

    def since(self) -> dict[str, int]:
        """Hits, joined, misses and direct; those that are 0 are left out."""
        now = cache_of(self._serve)
        return {way: now[way] - self._before[way] for way in WAYS if now[way] != self._before[way]}


def metrics_of(serve: Serve) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of `/metrics`, by its name and labels."""
    page = http_ask(f"{serve.admin_url}/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def metric(serve: Serve, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels."""
    found = metrics_of(serve).items()
    return sum(value for (each, has), value in found if each == name and labels.items() <= dict(has).items())


def wait_warm(serve: Serve, repo: str = WIDGETS, *, tip: str | None = None) -> dict[str, Any]:
    """Waits until every usual response for the tip is cached. Returns what `status` says about it."""

    def look() -> dict[str, Any] | None:
        warmed = dict(status_of(serve)["warmed"][repo])
        expected = tip or git("rev-parse", "refs/heads/main", cwd=serve.mirror(repo))
        ready = warmed["tip"] == expected and warmed["wanted"] and warmed["answers"] == warmed["wanted"]
        return warmed if ready else None

    return wait_until(look, timeout=60, message=f"{repo} is warm")


@dataclass(frozen=True)
class Contents:
    """What a clone consists of, whoever it came from."""

    refs: dict[str, str]
    objects: frozenset[str]
    shallow: frozenset[str]
    index: str


def contents_of(repo: Path) -> Contents:
    """Refs, every object that is there with its type and size, the shallow commits, and the index."""
    directory = repo / git("rev-parse", "--git-dir", cwd=repo)
    shallow = directory / "shallow"
    listed = git("cat-file", "--batch-all-objects", "--batch-check", cwd=repo).splitlines()
    return Contents(
        refs(repo) | {"HEAD": git("rev-parse", "HEAD", cwd=repo, check=False)},
        frozenset(listed),
        frozenset(shallow.read_text().split()) if shallow.exists() else frozenset(),
        git("ls-files", "--stage", cwd=repo, check=False),
    )


# Nodes


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that all tests of a worker share: none may change more than `refs/agents` of its own sessions."""
    base = tmp_path_factory.mktemp("hot")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        upstream.add(DEEP, generated_bare)
        repos = [upstream.url(WIDGETS), upstream.url(DEEP)]
        with Serve(base / "state", repos=repos, refresh=SETTLED).start() as serve:
            for name in (WIDGETS, TOOLS):
                serve.wait_for_repo(name)
                wait_warm(serve, name)
            yield Node(serve, upstream)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, node: Node) -> Iterator[GitDaemonUpstream]:
    """A stock `git daemon` on the very mirrors of `node`."""
    root = tmp_path_factory.mktemp("stock")
    for each in node.mirror.parent.parent.iterdir():
        (root / each.name).symlink_to(each)
    with GitDaemonUpstream(root) as daemon:
        yield daemon


class Gate:
    """A `git` in front of the real one. It notes the upload-packs, and stops packs midway while it is closed."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        self._closed, self._log = directory / "closed", directory / "log"
        self._log.touch()
        real = shutil.which("git")
        self._packing = directory / "packing"
        self._packing.mkdir()
        hook = directory / "pack-objects"
        # A pack stops after its first 20,000 bytes, with a living upload-pack that has already sent them on. It waits
        # for the very file that it found, so that another one can hold up those that come later.
        hook.write_text(
            "#!/bin/sh\n"
            f"gate=$(cat {self._closed} 2>/dev/null)\n"
            f"touch {self._packing}/$PPID\n"
            '"$@" | { head -c 20000; while [ -n "$gate" ] && [ -e "$gate" ]; do sleep 0.02; done; cat; }\n'
        )
        (self.bin / "git").write_text(
            "#!/bin/sh\n"
            f'case "$*" in upload-pack*--advertise-refs*) exec {real} "$@";; upload-pack*) ;; *) exec {real} "$@";; '
            "esac\n"
            f'echo "$$ $(cat /proc/$$/stat | cut -d" " -f19) $*" >>{self._log}\n'
            "export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=uploadpack.packObjectsHook "
            f"GIT_CONFIG_VALUE_0={hook}\n"
            f'exec {real} "$@"\n'
        )
        for script in (hook, self.bin / "git"):
            script.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which this git is found first."""
        return {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def close(self) -> None:
        """Stops every later pack midway."""
        holding = self.bin.parent / "holding"
        holding.touch()
        self._closed.write_text(str(holding))

    def open_for_others(self) -> None:
        """Later packs are not stopped; those that are stopped stay so."""
        self._closed.unlink()

    def open(self) -> None:
        """Lets all packs continue."""
        self._closed.unlink(missing_ok=True)
        (self.bin.parent / "holding").unlink(missing_ok=True)

    def packing(self) -> set[int]:
        """The pids of all upload-packs so far that made a pack."""
        return {int(each.name) for each in self._packing.iterdir()}

    def forget(self) -> None:
        """Forgets who made packs so far: sooner or later another process has the same pid."""
        for each in self._packing.iterdir():
            each.unlink()

    def started(self) -> list[int]:
        """The pids of all upload-packs so far that answered a fetch, oldest first."""
        return [int(line.split()[0]) for line in self._log.read_text().splitlines()]

    def priorities(self) -> list[int]:
        """Their nice values."""
        return [int(line.split()[1]) for line in self._log.read_text().splitlines()]


@dataclass(frozen=True)
class GatedNode(Node):
    """A node whose git is behind a gate."""

    gate: Gate


GatedFactory = Callable[..., GatedNode]


@pytest.fixture
def gated(serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path) -> Iterator[GatedFactory]:
    """Make a node behind a gate, with further sections of config; its warming is over."""
    gates: list[Gate] = []

    def make(**sections: Mapping[str, Value]) -> GatedNode:
        gate = Gate(tmp_path / f"gate{len(gates)}")
        gates.append(gate)
        serve = serve_factory(f"gated{len(gates)}", repos=[upstream.url(WIDGETS)], env=gate.env)
        serve.configure([upstream.url(WIDGETS)], refresh=SETTLED, **sections)
        serve.start()
        serve.wait_for_repo(WIDGETS)
        wait_warm(serve)
        return GatedNode(serve, upstream, gate)

    yield make
    for gate in gates:
        gate.open()


@pytest.fixture(scope="session")
def _shared_gate(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[GatedNode]:
    base = tmp_path_factory.mktemp("gated")
    gate = Gate(base / "gate")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED, env=gate.env).start() as serve:
            serve.wait_for_repo(WIDGETS)
            wait_warm(serve)
            yield GatedNode(serve, upstream, gate)


@pytest.fixture
def gated_node(_shared_gate: GatedNode) -> Iterator[GatedNode]:
    """A node behind a gate that tests share; each is left with an open gate. For cold answers see `a_cold_shape`."""
    _shared_gate.gate.forget()
    yield _shared_gate
    _shared_gate.gate.open()


_depths = itertools.count(1001)


def a_cold_shape() -> str:
    """An option of clone that nobody used before: the depth is part of the key, and reaches past every commit."""
    return f"--depth={next(_depths)}"


def guest_env(home: Path) -> dict[str, str]:
    """The environment of a guest that runs beside the test."""
    return clean_env(home)
