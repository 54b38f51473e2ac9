"""The measurements of one repository: which servers are compared, in which order, and how often."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchlib.clones import HYDRATIONS, SHAPES, TIP_ONLY, Burst, Guests, Sample, Shape
from benchlib.disks import measure_next_tips
from benchlib.nginx import http_backend, http_backend_reason
from benchlib.processes import BenchError, Places, run_git
from benchlib.servers import Gitmirror, Server, answers_of, floor, git_daemon
from benchlib.workspaces import Workspaces, measure_workspaces

LEAST_RUNS = 3
"""Minimum number of runs of a row, even when its time is up."""


@dataclass(frozen=True)
class Settings:
    """How much to measure: `runs` of each row within `row_seconds`, and bursts of `at_once` guests."""

    runs: int
    at_once: tuple[int, ...]
    pushes: int
    row_seconds: float
    pyz: Path | None
    workspaces_only: bool
    tell: Callable[[str], None]


Contender = tuple[str, str]
"""Server and protocol."""


@dataclass
class Measured:
    """All figures of one repository, by shape or number of guests, and then by contender."""

    name: str
    about: dict[str, int]
    clones: dict[str, dict[Contender, list[Sample]]] = field(default_factory=dict)
    bursts: dict[int, dict[Contender, list[Burst]]] = field(default_factory=dict)
    first: dict[str, list[float]] = field(default_factory=dict)
    hot: dict[str, list[float]] = field(default_factory=dict)
    warming: list[float] = field(default_factory=list)
    cache: dict[str, int] = field(default_factory=dict)
    workspaces: Workspaces = field(default_factory=Workspaces)
    faults: list[str] = field(default_factory=list)


def measure(repository: Path, name: str, places: Places, env: Mapping[str, str], settings: Settings) -> Measured:
    """Measures a copy of one bare repository. Raises BenchError when a server does not start."""
    upstream = places.scratch / "upstream.git"
    shutil.copytree(repository, upstream, symlinks=True)
    branch = run_git("symbolic-ref", "HEAD", cwd=upstream, env=env)
    tip = run_git("rev-parse", "--verify", f"{branch}^0", cwd=upstream, env=env)
    measured = Measured(name, describe(upstream, env))
    guests = Guests(places.fast, env, tip)
    appliance = Gitmirror(places, env, name, settings.pyz)
    appliance.make_mirror(upstream)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(appliance.serving())
        appliance.wait_until_warm(tip)
        replay = stack.enter_context(floor(places, env, appliance.urls))
        servers = [replay, ours, stack.enter_context(git_daemon(places, env, appliance.mirrors, appliance.name))]
        if http_backend_reason() is None:
            servers.append(stack.enter_context(http_backend(places, env, appliance.mirrors, appliance.name)))
        contenders = [
            (server, protocol) for protocol in ("git", "http") for server in servers if protocol in server.urls
        ]
        for shape in () if settings.workspaces_only else SHAPES:
            settings.tell(f"{name}: {shape.text}")
            _warm_up(guests, shape, contenders)
            with _nothing_recorded(replay):
                measured.clones[shape.key] = _clone_in_turns(guests, shape, contenders, settings)
        for number in () if settings.workspaces_only else settings.at_once:
            settings.tell(f"{name}: {number} at once")
            with _nothing_recorded(replay):
                measured.bursts[number] = _burst_in_turns(guests, number, contenders, settings)
        settings.tell(f"{name}: ready workspaces")
        daemon = next(server for server in servers if server.name == "git daemon")
        runs, many = settings.runs, min(50, max(settings.at_once))
        measured.workspaces = measure_workspaces(guests, ours, daemon, appliance, places, env, runs, many)
        if measured.workspaces.disk is not None:
            settings.tell(f"{name}: disks of next tips")
            measure_next_tips(appliance, upstream, branch, env, measured.workspaces.disk)
        counts = appliance.status()["cache"]
        measured.cache = {key: int(counts[key]) for key in ("hits", "misses", "joined", "direct")}
        for shape in () if settings.workspaces_only else HYDRATIONS:
            settings.tell(f"{name}: after a push, {shape.text}")
            for _ in range(settings.pushes):
                _measure_after_push(guests, shape, upstream, branch, appliance, ours, measured, env)
    measured.faults += guests.faults
    return measured


def describe(repository: Path, env: Mapping[str, str]) -> dict[str, int]:
    """Counts files, bytes, commits, refs, packs, loose objects and bytes on disk."""
    sizes = [
        int(line.split()[3])
        for line in run_git("ls-tree", "-r", "-l", "HEAD", cwd=repository, env=env).splitlines()
        if line.split()[1] == "blob"
    ]
    counted = run_git("count-objects", "-v", cwd=repository, env=env).splitlines()
    counts = {key: int(value) for key, value in (line.split(": ") for line in counted)}
    return {
        "files": len(sizes),
        "bytes": sum(sizes),
        "commits": int(run_git("rev-list", "--count", "--all", cwd=repository, env=env)),
        "refs": len(run_git("for-each-ref", cwd=repository, env=env).splitlines()),
        "packs": counts["packs"],
        "loose": counts["count"],
        "disk": 1024 * (counts["size-pack"] + counts["size"]),
    }


def _warm_up(guests: Guests, shape: Shape, contenders: Sequence[tuple[Server, str]]) -> None:
    """Makes one clone from each contender, and checks that all clones are the same."""
    digests = {(server.name, protocol): guests.inspect(server, protocol, shape) for server, protocol in contenders}
    given = {contender: digest for contender, digest in digests.items() if digest}
    if len(set(given.values())) > 1:
        guests.faults.append(f"{shape.text}: the clones differ: {given}")


@contextlib.contextmanager
def _nothing_recorded(replay: Server) -> Iterator[None]:
    """Raises BenchError when the floor fetched a response meanwhile, because it then did more than replay."""
    before = answers_of(replay)
    yield
    if (more := answers_of(replay) - before) > 0:
        raise BenchError(f"the floor recorded {more} responses while it was measured; did the repository change?")


def _clone_in_turns(
    guests: Guests, shape: Shape, contenders: Sequence[tuple[Server, str]], settings: Settings
) -> dict[Contender, list[Sample]]:
    samples: dict[Contender, list[Sample]] = {(server.name, protocol): [] for server, protocol in contenders}
    end = time.monotonic() + settings.row_seconds
    for turn in range(settings.runs):
        if turn >= LEAST_RUNS and time.monotonic() > end:
            break
        for server, protocol in rotated(contenders, turn):
            sample = guests.sample(server, protocol, shape)
            if server.counted:
                sample = replace(sample, cpu=guests.sample(server.counting(), protocol, shape).cpu)
            samples[server.name, protocol].append(sample)
    return samples


def _burst_in_turns(
    guests: Guests, number: int, contenders: Sequence[tuple[Server, str]], settings: Settings
) -> dict[Contender, list[Burst]]:
    bursts: dict[Contender, list[Burst]] = {(server.name, protocol): [] for server, protocol in contenders}
    end = time.monotonic() + settings.row_seconds
    for turn in range(min(settings.runs, LEAST_RUNS)):
        if turn and time.monotonic() > end:
            break
        for server, protocol in rotated(contenders, turn):
            bursts[server.name, protocol].append(guests.burst(server, protocol, TIP_ONLY, number))
    return bursts


def rotated(contenders: Sequence[tuple[Server, str]], turn: int) -> list[tuple[Server, str]]:
    """Returns the contenders with another one first at each turn, so that none always runs after the same one."""
    at = turn % len(contenders)
    return [*contenders[at:], *contenders[:at]]


def _measure_after_push(
    guests: Guests,
    shape: Shape,
    upstream: Path,
    branch: str,
    appliance: Gitmirror,
    ours: Server,
    measured: Measured,
    env: Mapping[str, str],
) -> None:
    """Adds a commit upstream, refreshes, waits for warming, and then measures the first guest and the one after it."""
    guests.tip = push_upstream(upstream, branch, guests.tip, env)
    appliance.command("refresh", appliance.name)
    moved = time.perf_counter()
    appliance.wait_until_warm(guests.tip)
    measured.warming.append(time.perf_counter() - moved)
    for row in (measured.first, measured.hot):
        sample = guests.sample(ours, "git", shape)
        if not sample.refused:
            row.setdefault(shape.key, []).append(sample.seconds)


def push_upstream(upstream: Path, branch: str, tip: str, env: Mapping[str, str]) -> str:
    """Adds a commit on top of `tip` that changes one file, and returns its id."""
    stream = (
        f"commit {branch}\nmark :1\ncommitter A Developer <developer@example.com> 1700000000 +0000\n"
        f"data 6\nChange\nfrom {tip}\nM 100644 inline bench.txt\ndata 40\n{tip}\nget-mark :1\n"
    )
    return run_git("fast-import", "--quiet", "--force", cwd=upstream, env=env, stdin=stream.encode())
