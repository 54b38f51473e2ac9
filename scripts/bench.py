#!/usr/bin/env python3
"""Compares gitmirror with git daemon, git http-backend and the floor, on the same bare repository.

    scripts/bench.py REPO... [--generate] [--json FILE]

The floor is the cost of the client alone: the same client against a server that replays recorded responses. Everything
runs on the loopback and in temporary directories. docs/performance.md explains the columns. Exits with 1 when a clone
differs from the repository, however fast it was; a refused clone is counted and is not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchlib.generate import TINY, Plan, generate
from benchlib.measure import Settings, measure
from benchlib.nginx import http_backend_reason
from benchlib.processes import (
    BenchError,
    Places,
    adopt_orphans,
    clean_environment,
    describe_machine,
    temporary_places,
)
from benchlib.report import document, tables

QUIET = 0.7
"""Load above which other work on the machine affects the figures, on two cores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    options = parse(argv)
    signal.signal(signal.SIGTERM, _end)
    adopt_orphans()
    settings = Settings(
        runs=options.runs or (1 if options.quick else 11),
        at_once=options.at_once or ((1, 4) if options.quick else (1, 10, 50, 200)),
        pushes=1 if options.quick else 5,
        row_seconds=5.0 if options.quick else 60.0,
        pyz=options.pyz,
        workspaces_only=options.workspaces_only,
        tell=lambda text: print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True),
    )
    began = time.monotonic()
    try:
        found = run(options, settings)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    faults = [fault for repository in found["repositories"] for fault in repository["faults"]]
    for fault in faults:
        print(f"WRONG: {fault}", file=sys.stderr)
    return 1 if faults else 0


def run(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Measures each repository, prints its tables, and returns all figures as one document. Raises BenchError."""
    with temporary_places() as places:
        env = clean_environment(places.scratch / "home")
        machine = describe_machine(places, env)
        print(", ".join(f"{key} {value}" for key, value in machine.items()) + "\n")
        if os.getloadavg()[0] > QUIET:
            settings.tell("this machine is busy with other work, so the figures cannot be trusted")
        skipped = {}
        if reason := http_backend_reason():
            skipped["http-backend"] = reason
            settings.tell(f"http-backend is left out: {reason}")
        repositories = [(path, path.resolve().name.removesuffix(".git")) for path in options.repositories]
        if options.generate:
            plan = TINY if options.quick else Plan(files=options.files, size=options.files * 10_000)
            settings.tell(f"{plan.name}: generating it, or reusing an earlier one")
            repositories.append((generate(plan, options.cache or places.scratch / "cache", env), plan.name))
        measured = []
        for number, (path, name) in enumerate(repositories):
            mine = Places(places.scratch / str(number), places.fast, places.on_tmpfs)
            mine.scratch.mkdir()
            measured.append(document(measure(path, name, mine, env, settings)))
            print(tables(measured[-1]), flush=True)
    return {
        "machine": machine,
        "settings": {"runs": settings.runs, "at_once": settings.at_once, "quick": options.quick},
        "skipped": skipped,
        "repositories": measured,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("repositories", nargs="*", type=Path, metavar="REPO", help="a bare repository")
    parser.add_argument("--generate", action="store_true", help="also measure a generated one (tiny with --quick)")
    parser.add_argument(
        "--files", type=_positive, metavar="N", default=Plan().files, help="files of the generated one (default: 5000)"
    )
    parser.add_argument(
        "--workspaces-only", action="store_true", help="measure ready workspaces and disks, but no clones and pushes"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the generated repository here for the next run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="few runs and small bursts, only to show that it works")
    parser.add_argument("--runs", type=_positive, metavar="N", help="runs of each row (default: 11)")
    parser.add_argument("--at-once", type=_numbers, metavar="N,N", help="guests at once (default: 1,10,50,200)")
    parser.add_argument(
        "--pyz", type=Path, metavar="FILE", help="measure this built file (default: the package of this checkout)"
    )
    options = parser.parse_args(argv)
    if not options.repositories and not options.generate:
        parser.error("give a bare repository, or --generate")
    for path in options.repositories:
        if not (path / "objects").is_dir() or not (path / "HEAD").is_file():
            parser.error(f"{path} is not a bare repository")
    if options.pyz:
        options.pyz = options.pyz.resolve()
        if not options.pyz.is_file():
            parser.error(f"{options.pyz} does not exist; build it with scripts/build_pyz.sh")
    return options


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _end(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM like Ctrl-C, so that every context manager cleans up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
