#!/usr/bin/env python3
"""Measures what a fleet costs: its messages, its bytes and its processor time, and how soon one node has another's.

    scripts/bench_fleet.py [--nodes 20,50,100,200] [--pushes 10,50,100] [--repos 1000] [--seconds 30]
    scripts/bench_fleet.py --hydrate [--times 5]

The first form runs simulated nodes: all that they send to NATS and read from it, without git (see
benchlib/fleet_nodes.py), with one NATS server on this machine. It measures each number of nodes with the first number
of pushes a second, and each number of pushes with a hundred nodes. Messages and bytes are those that the server counts
for each connection. The second form runs three real nodes on three NATS servers with three replicas.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.fleet_hydrate import measure_hydrations
from benchlib.fleet_load import Load, measure_load
from benchlib.processes import BenchError, adopt_orphans, temporary_places

COLUMNS = (
    "nodes",
    "pushes/s",
    "msgs/min in",
    "msgs/min out",
    "KiB/min in",
    "KiB/min out",
    "node CPU",
    "NATS CPU",
    "turn elsewhere, median",
    "95%",
    "upstream looks/min",
    "late",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=_numbers, default=[20, 50, 100, 200], help="numbers of simulated nodes")
    parser.add_argument("--pushes", type=_numbers, default=[10, 50, 100], help="turns a second of the whole fleet")
    parser.add_argument("--repos", type=int, default=1000, help="number of repositories")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two looks at a repository")
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of each measurement")
    parser.add_argument("--processes", type=int, default=2, help="processes that the simulated nodes are in")
    parser.add_argument("--hydrate", action="store_true", help="measure three real nodes instead")
    parser.add_argument("--times", type=int, default=5, help="how often each step of --hydrate is done")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    adopt_orphans()
    # The code that is measured is that of this checkout.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        with temporary_places() as places:
            if options.hydrate:
                found: Any = measure_hydrations(places, options.times)
                for step, seconds in found.items():
                    print(f"{step:<64} {statistics.median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
            else:
                found = _measure_all(places.fast, options)
    except BenchError as error:
        print(f"bench_fleet: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _measure_all(place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    wanted = [(nodes, options.pushes[0]) for nodes in options.nodes]
    wanted += [(100, pushes) for pushes in options.pushes[1:]]
    found = []
    for number, (nodes, pushes) in enumerate(wanted):
        load = Load(nodes, pushes, options.repos, options.interval, options.seconds, options.processes)
        figures = measure_load(place / str(number), load)
        print("| " + " | ".join(figures[column] for column in COLUMNS) + " |", flush=True)
        found.append(figures)
    return found


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
