#!/usr/bin/env python3
"""Measures what known guests cost: memory, processor time at idle, and the time to add one and to start again.

    scripts/bench_guests.py [--guests 1000] [--idle 10]

Each guest has two unix sockets. The figures with them are beside those of the same `serve` before the first one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.processes import BenchError, Running, clean_environment, free_port, listens, temporary_places, wait_until

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=1000, help="known guests")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds at idle")
    options = parser.parse_args(argv)
    try:
        print(json.dumps(measure(options.guests, options.idle), indent=1))
    except BenchError as error:
        print(f"bench_guests: {error}", file=sys.stderr)
        return 2
    return 0


def measure(guests: int, idle: float) -> dict[str, Any]:
    """Returns the figures as one document."""
    with temporary_places() as places:
        env = clean_environment(places.scratch / "home", {"PYTHONPATH": str(ROOT)})
        config, state, sockets = (places.scratch / name for name in ("gitmirror.toml", "state", "sockets"))
        config.write_text("")
        sockets.mkdir()
        port = free_port()
        argv = [sys.executable, "-m", "appliance", "--state", str(state), "--config", str(config)]
        argv += ["serve", "--git", f"127.0.0.1:{port}", "--http", "", "--admin", ""]
        log = places.scratch / "serve.log"
        began = time.monotonic()
        with Running(argv, env=env, log=log, cwd=ROOT) as serve:
            wait_until(lambda: listens(port), "serve listens", 60.0)
            start_without = time.monotonic() - began
            time.sleep(2.0)
            before = _figures(serve.process.pid, idle)
            took = [_add(state / "control.sock", number, sockets) for number in range(guests)]
            after = _figures(serve.process.pid, idle)
        began, last = time.monotonic(), sockets / f"v{guests - 1}_9419"
        with Running(argv, env=env, log=log, cwd=ROOT):
            wait_until(lambda: listens(port) and last.exists(), "all guests are known again", 60.0)
            start = time.monotonic() - began
    add = {"median": statistics.median(took), "max": max(took), "last_100": statistics.median(took[-100:])}
    return {
        "guests": guests,
        "add_ms": {name: round(value, 1) for name, value in add.items()},
        "without": before,
        "with": after,
        "start_s": {"without": round(start_without, 2), "with": round(start, 2)},
    }


def _add(control: Path, number: int, sockets: Path) -> float:
    """Makes one guest known, and returns how long that took, in milliseconds. Raises BenchError."""
    order = {"name": f"vm-{number}", "sessions": [f"s{number}"], "unix": str(sockets / f"v{number}")}
    began = time.perf_counter()
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(control))
    connection.request("POST", "/v1/guests", json.dumps(order), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 201:
        raise BenchError(f"POST /v1/guests answers {answer.status}: {body[:200]!r}")
    return (time.perf_counter() - began) * 1000


def _figures(pid: int, idle: float) -> dict[str, float]:
    """The resident memory of a process, in MB, and the share of a processor that it takes, in percent."""
    began = _seconds(pid)
    time.sleep(idle)
    used = _seconds(pid) - began
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return {"rss_mb": round(int(found[1]) / 1024 if found else 0.0, 1), "cpu_percent": round(100 * used / idle, 2)}


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
