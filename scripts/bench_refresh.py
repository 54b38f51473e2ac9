#!/usr/bin/env python3
"""Measures the cost of keeping many repositories fresh while nothing moves: the CPU seconds of serve and its children.

    scripts/bench_refresh.py [--repos 1000] [--interval 60] [--seconds 60] [--by path|git|https]

The upstreams are small repositories on this machine, each with a few branches and tags. `path` upstreams are read from
disk, so the upstream's own git (upload-pack) is counted too; with `git` and `https` it runs in another server and is
not counted. With `https`, git trusts the system's authorities, read once, and a certificate made for the benchmark.
First clones are not counted. The kernel counts CPU seconds, so other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchlib.https import make_certificate
from benchlib.processes import (
    BenchError,
    Places,
    Running,
    adopt_orphans,
    clean_environment,
    free_port,
    listens,
    run_git,
    temporary_places,
    wait_until,
)

ROOT = Path(__file__).resolve().parents[1]
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
CLONES = 900.0
"""Seconds that all first clones may take together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repos", type=int, default=1000, help="number of repositories")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two refreshes of a repository")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the measurement")
    parser.add_argument("--by", choices=["path", "git", "https"], default="path", help="how upstreams are reached")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    adopt_orphans()
    try:
        with temporary_places() as places:
            found = measure(places, options.repos, options.interval, options.seconds, options.by)
    except BenchError as error:
        print(f"bench_refresh: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(places: Places, repos: int, interval: float, seconds: float, by: str) -> dict[str, Any]:
    """Returns the figures as one document: CPU seconds, refreshes, and CPU time per refresh."""
    env = clean_environment(places.scratch / "home", {"PYTHONPATH": str(ROOT)})
    upstreams = places.scratch / "upstreams"
    make_upstreams(upstreams, repos, env)
    with Upstreams(places.scratch, upstreams, env, by) as served:
        config = places.scratch / "gitmirror.toml"
        lines = ["[refresh]", f'interval = "{interval:g}s"', "allow_local = true"]
        for number in range(repos):
            lines += ["[[repos]]", f'url = "{served.url}/bench/repo-{number}"']
        config.write_text("\n".join(lines) + "\n")
        argv = [sys.executable, "-m", "appliance", "--state", str(places.scratch / "state"), "--config", str(config)]
        argv += ["serve", "--git", "", "--http", "", "--admin", f"127.0.0.1:{(port := free_port())}"]
        with Running(argv, env=env, log=places.scratch / "serve.log", cwd=ROOT) as serve:
            admin = f"http://127.0.0.1:{port}"
            wait_until(lambda: listens(port), "serve listens", CLONES)
            wait_until(lambda: _all_fresh(admin, repos, serve), "all are cloned", CLONES)
            # Wait for two rounds: the first refresh after a clone reads the refs again, and snapshots are still built.
            _let_pass(serve, min(2 * interval, 60.0))
            return _count(serve, admin, seconds) | {"repositories": repos, "interval": interval, "upstreams": by}


def make_upstreams(place: Path, repos: int, env: dict[str, str]) -> None:
    """Creates identical bare repositories below `place`, each with 3 commits, 4 branches and 3 tags."""
    first = place / "bench" / "repo-0.git"
    first.mkdir(parents=True)
    run_git("init", "--quiet", "--bare", "--initial-branch=main", ".", cwd=first, env=env)
    script = ""
    for number in range(3):
        script += f"commit refs/heads/main\ncommitter b <b@b> {1_700_000_000 + number} +0000\ndata 1\nx\n"
        script += f"M 644 inline file\ndata 1\n{number}\n\n"
    run_git("fast-import", "--quiet", cwd=first, env=env, stdin=script.encode())
    for number in range(3):
        run_git("update-ref", f"refs/heads/topic-{number}", "refs/heads/main", cwd=first, env=env)
        run_git("update-ref", f"refs/tags/v{number}", "refs/heads/main", cwd=first, env=env)
    shutil.rmtree(first / "hooks", ignore_errors=True)
    for number in range(1, repos):
        shutil.copytree(first, place / "bench" / f"repo-{number}.git")


class Upstreams:
    """Serves the upstreams at `url`, and adds to `env` what git needs to reach them. A context manager."""

    def __init__(self, scratch: Path, place: Path, env: dict[str, str], by: str) -> None:
        self.url = str(place)
        self._server: Running | None = None
        if by == "git":
            port = free_port()
            argv = ["git", "-c", "safe.directory=*", "daemon", "--export-all", f"--base-path={place}"]
            argv += ["--listen=127.0.0.1", f"--port={port}", "--reuseaddr", str(place)]
            self._server = Running(argv, env=env, log=scratch / "daemon.log")
            self.url = f"git://127.0.0.1:{port}"
            wait_until(lambda: listens(port), "git daemon listens", 10)
        elif by == "https":
            port = free_port()
            cert, key = make_certificate(scratch)
            trusted, nothing = scratch / "trusted.pem", scratch / "nothing"
            nothing.mkdir()
            system = AUTHORITIES.read_bytes() if AUTHORITIES.is_file() else b""
            trusted.write_bytes(system + cert.read_bytes())
            env |= {"GIT_SSL_CAINFO": str(trusted), "GIT_SSL_CAPATH": str(nothing)}
            argv = [sys.executable, "-m", "benchlib.https", str(place), str(port), str(cert), str(key)]
            aside = env | {"PYTHONPATH": str(ROOT / "scripts")}
            self._server = Running(argv, env=aside, log=scratch / "https.log")
            self.url = f"https://127.0.0.1:{port}"
            wait_until(lambda: listens(port), "the https upstream listens", 10)

    def __enter__(self) -> Upstreams:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.end()


def _count(serve: Running, admin: str, seconds: float) -> dict[str, Any]:
    cpu, refreshes, began = serve.cpu(), _refreshes(admin), time.monotonic()
    _let_pass(serve, seconds)
    took = time.monotonic() - began
    cpu, refreshes = serve.cpu() - cpu, _refreshes(admin) - refreshes
    return {
        "seconds": round(took, 1),
        "cpu_seconds": round(cpu, 2),
        "cores": round(cpu / took, 3),
        "refreshes": int(refreshes),
        "ms_each": round(1000 * cpu / max(refreshes, 1), 2),
    }


def _let_pass(serve: Running, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        serve.check()
        time.sleep(min(left, 1.0))


def _page(admin: str) -> str:
    with urlopen(f"{admin}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def _refreshes(admin: str) -> float:
    return sum(float(value) for value in re.findall(r"^gitmirror_refreshes_total\{.*\} (\S+)$", _page(admin), re.M))


def _all_fresh(admin: str, repos: int, serve: Running) -> bool:
    serve.check()
    time.sleep(1)
    return len(re.findall(r'^gitmirror_repo_state\{.*state="fresh"\} 1', _page(admin), re.MULTILINE)) == repos


if __name__ == "__main__":
    sys.exit(main())
