"""Many simulated nodes on one NATS server, and what the server counts of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

from benchlib.processes import TICK, BenchError, Running, clean_environment, free_port, listens, wait_until

ROOT = Path(__file__).resolve().parents[2]
START = 300.0
"""Seconds that the nodes may take until each has looked at each repository once."""


@dataclass(frozen=True)
class Load:
    """What is simulated: turns are counted a second, for the whole fleet."""

    nodes: int
    pushes: float
    repos: int
    interval: float
    seconds: float
    processes: int


class NatsAlone:
    """One NATS server with JetStream and its monitoring port. A context manager."""

    def __init__(self, place: Path) -> None:
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
        self._program = shutil.which("nats-server", path=path)
        if self._program is None:
            raise BenchError("nats-server is missing (Debian's package nats-server)")
        self.port, self._monitoring = free_port(), free_port()
        self._place = place
        place.mkdir(parents=True)
        self._config = place / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nhttp: "127.0.0.1:{self._monitoring}"\n'
            f'jetstream {{ store_dir: "{place / "store"}" }}\n'
        )

    def __enter__(self) -> NatsAlone:
        env = clean_environment(self._place / "home")
        assert self._program is not None
        self._running = Running([self._program, "-c", str(self._config)], env=env, log=self._place / "nats.log")
        wait_until(lambda: listens(self.port), "nats-server listens", 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.end()

    @property
    def url(self) -> str:
        """For clients."""
        return f"nats://127.0.0.1:{self.port}"

    def totals(self) -> dict[str, int]:
        """Messages and bytes of all connections so far; `in` is what nodes sent."""
        with urlopen(f"http://127.0.0.1:{self._monitoring}/connz?limit=10000", timeout=30) as response:
            connections = json.load(response)["connections"]
        return {key: sum(each[key] for each in connections) for key in ("in_msgs", "out_msgs", "in_bytes", "out_bytes")}

    def processor_seconds(self) -> float:
        """The CPU time of the server so far."""
        fields = Path(f"/proc/{self._running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


def measure_load(place: Path, load: Load) -> dict[str, str]:
    """Runs the nodes for a while. Returns the figures as texts, by column."""
    with NatsAlone(place) as nats:
        asyncio.run(_fill_registry(nats.url, load.repos))
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_nodes(place, nats.url, load, number)) for number in range(load.processes)]
            for process in processes:
                _expect(process, "ready", place)
            # The first looks of all nodes come together, and are no part of the measurement.
            time.sleep(min(load.interval / 4, 10.0))
            before, used = nats.totals(), nats.processor_seconds()
            began = time.monotonic()
            for process in processes:
                _tell(process, "begin")
            time.sleep(load.seconds)
            after, used = nats.totals(), nats.processor_seconds() - used
            took = time.monotonic() - began
            for process in processes:
                _tell(process, "end")
            reports = [json.loads(_line(process, place)) for process in processes]
    return _figures(load, {key: after[key] - before[key] for key in after}, used, took, reports)


def _figures(load: Load, moved: dict[str, int], used: float, took: float, reports: list[Any]) -> dict[str, str]:
    if broken := [each for report in reports for each in report["broken"]]:
        raise BenchError(f"a simulated node broke: {broken[0]}")
    per_minute = 60 / took / load.nodes
    delays = sorted(delay for report in reports for delay in report["delays"])
    cpu = sum(report["cpu"] for report in reports)
    rows = sum(report["rows"] for report in reports)
    pushed = sum(report["pushed"] for report in reports)
    if pushed == 0 or rows == 0:
        raise BenchError("no turn went out, or none came in")
    return {
        "nodes": str(load.nodes),
        "pushes/s": f"{load.pushes:g}",
        "msgs/min in": f"{moved['in_msgs'] * per_minute:,.0f}",
        "msgs/min out": f"{moved['out_msgs'] * per_minute:,.0f}",
        "KiB/min in": f"{moved['in_bytes'] * per_minute / 1024:,.0f}",
        "KiB/min out": f"{moved['out_bytes'] * per_minute / 1024:,.0f}",
        "node CPU": f"{cpu / took / load.nodes:.2%}",
        "NATS CPU": f"{used / took:.0%}",
        "turn elsewhere, median": f"{statistics.median(delays) * 1000:.0f} ms" if delays else "-",
        "95%": f"{delays[int(len(delays) * 0.95)] * 1000:.0f} ms" if delays else "-",
        "upstream looks/min": f"{sum(report['looks'] for report in reports) * 60 / took:,.0f}",
        "late": f"{sum(report['late_pushes'] for report in reports)} of {pushed}",
    }


async def _fill_registry(url: str, repos: int) -> None:
    """Registers the repositories, as nodes would have."""
    from appliance.core.config.fleet import FleetConfig
    from appliance.core.fleet.bucket import RegistryBucket
    from appliance.core.fleet.link import FleetLink
    from benchlib.fleet_nodes import entry_of, repos_of

    link = FleetLink(FleetConfig(servers=(url,), name="bench", node="node-0"))
    running = asyncio.create_task(link.run())
    await asyncio.wait_for(link.wait_up(), 30)
    bucket = RegistryBucket(link)
    for repo in repos_of(repos):
        await bucket.put(entry_of(repo), 0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@contextlib.contextmanager
def _nodes(place: Path, url: str, load: Load, number: int) -> Iterator[subprocess.Popen[str]]:
    """Starts one process with its share of the nodes."""
    shares = [load.nodes * each // load.processes for each in range(load.processes + 1)]
    first, count = shares[number], shares[number + 1] - shares[number]
    words = [url, first + 1, count, load.repos, load.interval, load.pushes * count / load.nodes, place]
    env = clean_environment(place / "home", {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"})
    argv = [sys.executable, "-m", "benchlib.fleet_nodes", *map(str, words)]
    with (place / f"nodes-{number}.log").open("w") as errors:
        process = subprocess.Popen(
            argv, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _tell(process: subprocess.Popen[str], word: str) -> None:
    print(word, file=_stream(process.stdin), flush=True)


def _line(process: subprocess.Popen[str], place: Path) -> str:
    stream, line = _stream(process.stdout), ""
    if select.select([stream], [], [], START)[0]:
        line = stream.readline()
    if not line:
        logs = "".join(path.read_text()[-2000:] for path in sorted(place.glob("nodes-*.log")))
        raise BenchError(f"the simulated nodes ended, or took more than {START:.0f} s: {logs}")
    return line.strip()


def _expect(process: subprocess.Popen[str], word: str, place: Path) -> None:
    if (said := _line(process, place)) != word:
        raise BenchError(f"the simulated nodes said {said!r} instead of {word!r}")
