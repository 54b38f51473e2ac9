#!/usr/bin/env python3
"""Measures a part of a tree against the whole: what the tars take, and how long their builds and hydrations do.

    scripts/bench_parts.py [--files 80000] [--directories 200] [--bytes 2000] [--commits 20]

A generated repository has its files in directories of equal size, one of which is asked for. The snapshots are built in
this process as `serve` builds them, and unpacked by tar. Times are seconds of CPU time. The whole tar has the history
`trees`, as the part has.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from appliance.core.config.settings import Config  # noqa: E402
from appliance.core.git.mirror import Mirror  # noqa: E402
from appliance.core.layout import Layout  # noqa: E402
from appliance.core.node.state_dir import make_git, make_state  # noqa: E402
from appliance.core.process.owner import claim  # noqa: E402
from appliance.core.workspace.history import History  # noqa: E402
from appliance.core.workspace.shape import Shape  # noqa: E402
from appliance.core.workspace.snapshot_build import build_snapshot  # noqa: E402
from appliance.core.workspace.snapshot_place import SnapshotPlace  # noqa: E402

T = TypeVar("T")
WHO = b"A Tester <tester@example.com> 1700000000 +0000"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=80_000)
    parser.add_argument("--directories", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=2000, help="of each file")
    parser.add_argument("--commits", type=int, default=20, help="each of which changes a file in every directory")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        _measure(Path(made), options.files, options.directories, options.bytes, options.commits)
    return 0


def _measure(place: Path, files: int, directories: int, size: int, commits: int) -> None:
    bare = place / "upstream.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
    each = files // directories
    rng = random.Random(1)
    paths = [f"d{number:03}/s{at % 20:02}/f{at}" for number in range(directories) for at in range(each)]
    _commit(bare, rng, size, paths)
    for turn in range(commits):
        _commit(bare, rng, size, [f"d{number:03}/s00/f{turn % each // 20 * 20}" for number in range(directories)])
    layout = Layout(place / "state")
    make_state(layout)
    owner = claim(layout, "bench_parts")
    git = make_git(layout, Config(), owner.children)
    mirror = Mirror(bare, git)
    whole = SnapshotPlace(place / "snapshots", "main", Shape(History.TREES))
    part = SnapshotPlace(place / "snapshots", "main", Shape(History.TREES, ("d007",)))

    def build(of: SnapshotPlace) -> Path:
        tip = subprocess.check_output(["git", "rev-parse", "main"], cwd=bare, text=True).strip()
        snapshot = _run(build_snapshot(of, mirror, git, "https://example.com/acme/widgets", tip))
        of.remove_others(snapshot)
        return of.path(snapshot)

    try:
        for name, of in (("whole", whole), ("part", part)):
            tar, first = _timed(partial(build, of))
            print(f"{name}: {tar.stat().st_size / 1e6:.1f} MB, first build {first:.1f} s")
            guests = [place / f"guest-{name}-{turn}" for turn in range(3)]
            unpacked = min(_timed(partial(_unpack, tar, guest))[1] for guest in guests)
            status = _timed(partial(subprocess.run, ["git", "status", "--porcelain"], cwd=guests[0], check=True))[1]
            print(f"{name}: unpacked in {unpacked:.2f} s, git status {status:.2f} s")
        _commit(bare, rng, size, ["d100/s00/f0"])
        for name, of in (("whole", whole), ("part", part)):
            print(f"{name}: the next tip, of one file elsewhere, in {_timed(partial(build, of))[1]:.1f} s")
    finally:
        owner.release()


def _commit(bare: Path, rng: random.Random, size: int, paths: Sequence[str]) -> None:
    head = subprocess.run(["git", "rev-parse", "--verify", "-q", "main"], cwd=bare, capture_output=True, check=False)
    parts = [b"commit refs/heads/main\ncommitter " + WHO + b"\ndata 1\nx\n"]
    if head.returncode == 0:
        parts.append(b"from " + head.stdout)
    for path in paths:
        text = rng.randbytes(size // 2).hex().encode()
        parts.append(f"M 100644 inline {path}\ndata {len(text)}\n".encode() + text + b"\n")
    subprocess.run(["git", "fast-import", "--quiet"], cwd=bare, input=b"".join(parts), check=True)


def _unpack(tar: Path, guest: Path) -> None:
    guest.mkdir()
    subprocess.run(["tar", "-xf", str(tar), "-C", str(guest)], check=True)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds of CPU time that it and its children took."""
    start = os.times()
    found = work()
    return found, sum(os.times()[:4]) - sum(start[:4])


if __name__ == "__main__":
    raise SystemExit(main())
