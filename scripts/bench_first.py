#!/usr/bin/env python3
"""Measures the figures of the README: a repository hydrated from its upstream over a link, and by each way of the node.

    scripts/bench_first.py REPO [--runs 7] [--delay 0.015] [--rate 12.5]

REPO is a bare repository. The upstream is `git http-backend` on this machine, behind a proxy that delays bytes and
limits their rate, because a forge on the Internet cannot be measured twice alike; it has no TLS, and no load of others.
The ways take turns, and the figures are medians of seconds. Every workspace is compared with the upstream's tip.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchlib.disks import DiskFigures, Drives, attached, why_no_disks  # noqa: E402
from benchlib.processes import (  # noqa: E402
    BenchError,
    clean_environment,
    describe_machine,
    run_git,
    temporary_places,
)

from tests.support.gitutil import wait_until  # noqa: E402
from tests.support.roads import Kind, Road  # noqa: E402
from tests.support.serve import Serve  # noqa: E402
from tests.support.upstream import HttpUpstream  # noqa: E402

NAME = "acme/widgets"
BUILD = 600.0
"""Seconds that the first clone, snapshot and disk may take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, metavar="REPO")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--delay", type=float, default=0.015, help="of the link, in seconds each way")
    parser.add_argument("--rate", type=float, default=12.5, help="of the link, in megabytes per second")
    options = parser.parse_args(argv)
    try:
        measure(options.repository.resolve(), options.runs, Kind(delay=options.delay, rate=options.rate * 1e6))
    except BenchError as error:
        print(f"bench_first: {error}", file=sys.stderr)
        return 2
    return 0


def measure(repository: Path, runs: int, link: Kind) -> None:
    """Prints the table. Raises BenchError."""
    with ExitStack() as stack:
        places = stack.enter_context(temporary_places())
        env = clean_environment(places.scratch / "home")
        upstream = stack.enter_context(HttpUpstream(places.scratch / "upstream"))
        bare = upstream.add(NAME, repository)
        tip = run_git("rev-parse", "HEAD", cwd=bare, env=env)
        road = stack.enter_context(Road(("127.0.0.1", upstream.port), link))
        far = f"http://127.0.0.1:{road.port}/{NAME}"
        serve = stack.enter_context(Serve(places.scratch / "state"))
        serve.start()
        serve.cli("add-repo", upstream.url(NAME), timeout=BUILD)
        wait_until(lambda: freshness(serve)["snapshot"] == tip, timeout=BUILD, message="the snapshot is built")
        kit = places.scratch / "guest.sh"
        kit.write_text(serve.cli("guest-kit").stdout)
        clone = ("git", "clone", "--quiet")
        hydrate = ("sh", str(kit), "hydrate", NAME)
        ways: dict[str, Callable[[Path], float]] = {
            "git clone, from the upstream": lambda path: timed((*clone, far, str(path)), env),
            "git clone --depth 1, from the upstream": lambda path: timed((*clone, "--depth=1", far, str(path)), env),
            "git clone, from the mirror": lambda path: timed((*clone, f"{serve.git_url}/{NAME}", str(path)), env),
            "the kit, by the tar": lambda path: timed((*hydrate, str(path)), {**env, "GITMIRROR_DRIVES": ""}),
        }
        if reason := why_no_disks():
            print(f"without disks: {reason}", file=sys.stderr)
        else:
            ways["the kit, by a disk"] = by_disk(serve, tip, kit, places.fast, env, stack)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(runs + 1):
            for name, way in ways.items():
                path = places.fast / "workspace"
                seconds = way(path)
                if path.is_dir() and run_git("rev-parse", "HEAD", cwd=path, env=env) != tip:
                    raise BenchError(f"{name}: the workspace is not at the tip")
                shutil.rmtree(path, ignore_errors=True)
                # The first turn warms up.
                if turn:
                    found[name].append(seconds)
        machine = describe_machine(places, env)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"link: {2000 * link.delay:g} ms there and back, {link.rate * 8 / 1e6:g} Mbit/s; medians of {runs}\n")
    print("| way | seconds | times faster |")
    print("|---|---|---|")
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    first = next(iter(medians.values()))
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3f} | {first / seconds:.1f} |")


def by_disk(
    serve: Serve, tip: str, kit: Path, fast: Path, env: Mapping[str, str], stack: ExitStack
) -> Callable[[Path], float]:
    """Leases the disk of the tip and attaches its drives; returns what hydrates from them."""
    lease = serve.cli_json("disk", NAME, "--ttl", "1h", timeout=BUILD)
    if lease["commit"] != tip:
        raise BenchError("the disk is not at the tip")
    paths = {drive["role"]: Path(drive["path"]) for drive in lease["drives"]}
    devices = [stack.enter_context(attached(paths[role])) for role in ("tree", "data")]
    drives = Drives(",".join(devices), NAME, tip, kit, fast, env)

    def hydrate(path: Path) -> float:
        figures = DiskFigures()
        drives.hydrate(figures)
        return figures.kit[-1]

    return hydrate


def freshness(serve: Serve) -> dict[str, Any]:
    """What the mirror says of itself and its snapshot."""
    with urlopen(f"{serve.http_url}/{NAME}/freshness", timeout=10) as answer:
        return dict(json.loads(answer.read()))


def timed(argv: Sequence[str], env: Mapping[str, str]) -> float:
    """The seconds that a command takes. Raises BenchError when it fails."""
    start = time.perf_counter()
    done = subprocess.run(argv, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise BenchError(f"{argv[0]} failed: {done.stderr.strip()}")
    if "hydrated via=" in done.stdout and "via=snapshot " not in done.stdout:
        raise BenchError(f"the kit did not take the tar: {done.stdout.strip()}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
