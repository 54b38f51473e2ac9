#!/usr/bin/env python3
"""Measures what repositories, guests and sessions cost a node: memory, processor time and bytes on disk.

    scripts/bench_costs.py REPO [--repos 1,100,1000] [--guests 100] [--sessions 50] [--turns 4]

REPO is a bare repository for guests and sessions. The others, for the cost of having many, are copies of a small one,
which are refreshed every ten minutes. Memory is that of `serve`, and of the git processes beside it; times are those
of the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchlib.processes import clean_environment, describe_machine, run_git, temporary_places  # noqa: E402

from tests.support.generate import copy_repository, generate_repository  # noqa: E402
from tests.support.gitutil import wait_until  # noqa: E402
from tests.support.serve import Serve, Value  # noqa: E402

NAME = "acme/widgets"
REFRESH: dict[str, Value] = {"allow_local": True, "interval": "10m", "stale_after": "1h", "concurrency": 8}
LONG = 1800.0
"""Seconds that a step may take on a slow machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, metavar="REPO")
    parser.add_argument("--repos", default="1,100,1000", help="how many small repositories, in turn")
    parser.add_argument("--guests", type=int, default=100, help="guests that hydrate at once")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--turns", type=int, default=4, help="of each session, each of one changed line")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds at idle")
    options = parser.parse_args(argv)
    with temporary_places() as places:
        env = clean_environment(places.scratch / "home")
        print(", ".join(f"{key} {value}" for key, value in describe_machine(places, env).items()), flush=True)
        with Serve(places.scratch / "many", refresh=REFRESH) as serve:
            small = generate_repository(places.scratch / "small.git", files=10, commits=3)
            measure_repositories(serve, small, [int(count) for count in options.repos.split(",")], options.idle)
        with Serve(places.scratch / "state", refresh={"allow_local": True, "interval": "1h"}) as serve:
            serve.start()
            serve.cli("add-repo", str(options.repository.resolve()), "--name", NAME, timeout=LONG)
            place = serve.state / "workspaces"
            wait_until(lambda: glob(f"{place}/**/*.tar", recursive=True), timeout=LONG, message="the first snapshot")
            rest(serve)
            print(f"one repository: {in_words(storage(serve))}", flush=True)
            measure_guests(serve, places.fast, options.guests, env)
            measure_sessions(serve, places.fast, options.sessions, options.turns, env)
    return 0


def measure_repositories(serve: Serve, small: Path, counts: Sequence[int], idle: float) -> None:
    """Memory and processor time at rest, and the bytes of each repository, with more and more of them."""
    upstreams = serve.state.parent / "upstreams"
    urls: list[dict[str, Any]] = []
    for count in counts:
        for number in range(len(urls), count):
            path = copy_repository(small, upstreams / f"r{number}.git")
            urls.append({"url": str(path), "name": f"acme/r{number}"})
        serve.configure(urls, refresh=REFRESH)
        serve.restart()
        wait_until(lambda: all(repo["tip"] for repo in serve.status()["repos"]), timeout=LONG, message="all are cloned")
        rest(serve)
        serve.restart()
        rest(serve)
        share, rss = cpu_share(serve, idle), memory(serve)
        each = in_words({kind: size / count for kind, size in storage(serve).items()})
        print(f"{count} small repositories: {rss:.0f} MB, {share:.3f} cores; each {each}", flush=True)


def measure_guests(serve: Serve, fast: Path, guests: int, env: dict[str, str]) -> None:
    """Peaks of memory while guests clone at once, and while as many take the tar."""
    for name, take in (("git clone --depth 1", clone), ("the tar", tar)):
        take(serve, fast / "warm", env).wait()
        before = memory(serve)
        used = cpu(serve)
        with peaks(serve) as found:
            running = [take(serve, fast / f"guest-{number}", env) for number in range(guests)]
            codes = [process.wait() for process in running]
        spent = 1000 * (cpu(serve) - used) / guests
        assert not any(codes), f"{sum(map(bool, codes))} guests failed"
        print(
            f"{guests} guests by {name}: serve {before:.0f} to {found['serve']:.0f} MB, "
            f"git beside it {found['git']:.0f} MB, {spent:.1f} ms of CPU time each",
            flush=True,
        )
        subprocess.run(["sh", "-c", f"rm -rf {fast}/guest-* {fast}/warm"], check=True)


def clone(serve: Serve, path: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A guest that clones without a checkout."""
    argv = ["git", "clone", "--quiet", "--no-checkout", "--depth=1", f"{serve.git_url}/{NAME}", str(path)]
    return subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)


def tar(serve: Serve, path: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A guest that downloads the tar."""
    argv = ["curl", "-sf", "-o", "/dev/null", f"{serve.http_url}/{NAME}/workspace.tar"]
    return subprocess.Popen(argv, env=env, cwd=path.parent)


def measure_sessions(serve: Serve, fast: Path, sessions: int, turns: int, env: dict[str, str]) -> None:
    """Bytes and processor time of each recorded turn."""
    guest = serve.clone(fast / "guest", NAME)
    serve.terminate()
    before = storage(serve)
    serve.keep_ports()
    serve.start()
    used = cpu(serve)
    began = time.monotonic()
    for session in range(sessions):
        for turn in range(turns):
            (guest / "AGENT.md").write_text(f"session {session}, turn {turn}\n")
            run_git("add", "AGENT.md", cwd=guest, env=env)
            identity = ("-c", "user.name=agent", "-c", "user.email=agent@example.com")
            run_git(*identity, "commit", "--quiet", "--message", f"Turn {turn}", cwd=guest, env=env)
            run_git("push", "--quiet", "--force", "origin", f"HEAD:refs/agents/s{session}", cwd=guest, env=env)
        run_git("reset", "--quiet", "--hard", "origin/HEAD", cwd=guest, env=env)
    seconds = time.monotonic() - began
    count = sessions * turns
    spent = 1000 * (cpu(serve) - used) / count
    serve.terminate()
    after = storage(serve)
    each = in_words({kind: (after[kind] - before[kind]) / count for kind in ("mirrors", "database")})
    print(f"{sessions} sessions of {turns} turns: each turn {each}, {spent:.0f} ms of CPU time, {seconds:.0f} s in all")


def rest(serve: Serve) -> None:
    """Waits until what follows a clone or a start has ended: warming, snapshots, measuring the disk."""
    wait_until(lambda: cpu_share(serve, 3.0) < 0.2, timeout=LONG, message="serve rests")


def storage(serve: Serve) -> dict[str, int]:
    """The bytes that the state directory takes on its disk, by kind. The database is whole once `serve` has ended."""
    kinds = {"mirrors": "mirrors", "workspaces": "workspaces", "cache": "cache"}
    found = {kind: taken(serve.state / name) for kind, name in kinds.items()}
    found["database"] = sum(path.stat().st_size for path in serve.state.glob("gitmirror.db*"))
    return found


def taken(place: Path) -> int:
    """The bytes of the blocks of all files below a directory, each counted once."""
    seen: dict[int, int] = {}
    for directory, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(directory, name))
                seen[found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def in_words(sizes: dict[str, Any]) -> str:
    """Sizes by kind, those that are not zero."""
    return ", ".join(f"{kind} {size / 1000:,.1f} kB" for kind, size in sizes.items() if size)


def memory(serve: Serve, key: str = "VmRSS") -> float:
    """The resident memory of `serve`, in MB."""
    return status_of(serve.pid, key)


def status_of(pid: int, key: str) -> float:
    """A size of a process, in MB; 0 if it has ended."""
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


@contextlib.contextmanager
def peaks(serve: Serve) -> Iterator[dict[str, float]]:
    """The most memory that `serve`, and the git processes beside it, took meanwhile; known at the end."""
    found = {"serve": 0.0, "git": 0.0}
    # The kernel counts the peak anew from here on.
    Path(f"/proc/{serve.pid}/clear_refs").write_text("5")
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            others = [pid for pid in processes(serve.pid) if pid != serve.pid]
            found["git"] = max(found["git"], sum(status_of(pid, "VmRSS") for pid in others))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found["serve"] = memory(serve, "VmHWM")


def processes(leader: int) -> list[int]:
    """The processes of a session: `serve` leads one of its own."""
    return [pid for pid, fields in stats() if int(fields[3]) == leader]


def stats() -> Iterator[tuple[int, list[str]]]:
    """Every process with the fields of its /proc/PID/stat, from the third on."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(path.name), (path / "stat").read_text().rpartition(")")[2].split()


def cpu(serve: Serve) -> float:
    """The CPU seconds of `serve` and of its children that have ended."""
    fields = Path(f"/proc/{serve.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def cpu_share(serve: Serve, seconds: float) -> float:
    """The cores that `serve` and its children take during some seconds."""
    before = cpu(serve)
    time.sleep(seconds)
    return (cpu(serve) - before) / seconds


if __name__ == "__main__":
    sys.exit(main())
