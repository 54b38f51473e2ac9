#!/usr/bin/env python3
"""Measures what the API costs: guests beside it, open event streams, and the latency of searches and diffs.

    scripts/bench_api.py [--repo BARE] [--rounds 6] [--seconds 8] [--rate 100] [--streams 1000] [--sessions 1000]

Guests hydrate (blob:none, no checkout) in a loop, in turns with and without `--rate` API requests a second beside them;
the ratio of both rates says what the API takes from guests. Then the resident memory of serve with `--streams` open
event streams and without, and the median of requests one after another. Without `--repo`, a small repository is made.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

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

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parents[1]
GUESTS = 2
PAUSE = 560
"""Sessions recorded between two pauses."""
ASKED = ("/v1/pulse", "/v1/repos", "/v1/repos/bench/one", "/v1/sessions?limit=20", "/v1/audit?limit=20")
"""What a platform's screens poll, in turns."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, help="a bare repository")
    parser.add_argument("--rounds", type=int, default=6, help="rounds with and without requests beside the guests")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each half of a round")
    parser.add_argument("--rate", type=int, default=100, help="API requests a second")
    parser.add_argument("--streams", type=int, default=1000, help="open event streams")
    parser.add_argument("--sessions", type=int, default=1000, help="recorded sessions")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    adopt_orphans()
    try:
        with temporary_places() as places:
            found = measure(places, options)
    except BenchError as error:
        print(f"bench_api: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(places: Places, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures as one document."""
    author = {f"GIT_{who}_{what}": "bench@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = clean_environment(places.scratch / "home", {"PYTHONPATH": str(ROOT), **author})
    upstream = places.scratch / "up" / "bench" / "one.git"
    upstream.parent.mkdir(parents=True)
    if options.repo:
        run_git("clone", "-q", "--mirror", str(options.repo), str(upstream), cwd=places.scratch, env=env)
    else:
        _make(upstream, env)
    config = places.scratch / "gitmirror.toml"
    config.write_text(f'[refresh]\nallow_local = true\ninterval = "1h"\n[[repos]]\nurl = "{upstream}"\n')
    state = places.scratch / "state"
    admin, git = free_port(), free_port()
    command = [sys.executable, "-m", "appliance", "--state", str(state), "--config", str(config)]
    serving = ["serve", "--git", f"127.0.0.1:{git}", "--http", "", "--admin", f"127.0.0.1:{admin}"]
    with Running([*command, *serving], env=env, log=places.scratch / "serve.log", cwd=ROOT) as serve:
        wait_until(lambda: listens(git), "serve listens", 60.0)
        url = f"git://127.0.0.1:{git}/bench/one"
        wait_until(lambda: _answers(url, env), "the repository is cloned", 600.0)
        issued = subprocess.run(
            [*command, "api-token", "issue", "--scope", "operate", "--json"], env=env, cwd=ROOT, check=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        api = Api(admin, json.loads(issued.stdout)["token"])
        found = {"guests": _guests_beside(places.scratch, url, api, env, options)}
        _record(places.scratch, url, options.sessions, env)
        found["latency_ms"] = _latencies(api)
        found["streams"] = _streams(api, options.streams, serve.process.pid)
    return found


class Api:
    """One connection to the admin port."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {token}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str, accept: str = "*/*") -> bytes:
        """The body of a response. Raises BenchError unless its status is 200."""
        headers = {**self.headers, "Accept": accept}
        try:
            self._connection.request("GET", path, headers=headers)
            response = self._connection.getresponse()
        except http.client.RemoteDisconnected:
            # It was idle for too long.
            self._connection.close()
            self._connection.request("GET", path, headers=headers)
            response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise BenchError(f"{path}: {response.status} {body[:200]!r}")
        return body


def _make(bare: Path, env: Mapping[str, str]) -> None:
    work = bare.parent / "work"
    run_git("init", "-q", "-b", "main", str(work), cwd=bare.parent, env=env)
    for number in range(200):
        (work / f"file-{number}.py").write_text("".join(f"line {line} of {number}\n" for line in range(200)))
    run_git("add", "-A", cwd=work, env=env)
    run_git("commit", "-qm", "first", cwd=work, env=env)
    run_git("clone", "-q", "--bare", str(work), str(bare), cwd=bare.parent, env=env)


def _answers(url: str, env: Mapping[str, str]) -> bool:
    listing = subprocess.run(["git", "ls-remote", url, "HEAD"], env=env, capture_output=True, check=False)
    return listing.returncode == 0 and bool(listing.stdout)


def _guests_beside(
    scratch: Path, url: str, api: Api, env: Mapping[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    asked = 0
    for number in range(options.rounds * 2 + 1):
        # The first half-round warms up. Then the halves take turns, and every second round begins with the other.
        beside = bool(number % 2) != bool(number // 2 % 2)
        # A process of its own: as a thread it would hold up those that start the guests.
        ended, counted = FORK.Event(), FORK.Value("i", 0)
        asking = FORK.Process(target=_ask, args=(api.port, api.headers["Authorization"], options.rate, ended, counted))
        if beside:
            asking.start()
        rate = _hydrate(scratch, url, env, options.seconds)
        ended.set()
        if beside:
            asking.join()
            asked += counted.value
        if number:
            rates[beside].append(rate)
    alone, together = statistics.median(rates[False]), statistics.median(rates[True])
    return {
        "hydrations_per_second_alone": round(alone, 1),
        "hydrations_per_second_beside_the_api": round(together, 1),
        "ratio": round(together / alone, 3),
        "api_requests_per_second": round(asked / (options.seconds * (options.rounds + 0.5)), 1),
    }


def _ask(port: int, authorization: str, rate: int, ended: Event, counted: Synchronized[int]) -> None:
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        while not ended.is_set():
            _poll(connection, ASKED[counted.value % len(ASKED)], authorization)
            counted.value += 1
            time.sleep(max(0.0, start + counted.value / rate - time.monotonic()))


def _poll(connection: socket.socket, path: str, authorization: str) -> None:
    """One request by hand, because a platform's client runs elsewhere: `http.client` costs as much as the response."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(2**18)
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    if b" 200 " not in head[:16] or length is None:
        raise BenchError(f"{path}: {head[:200]!r}")
    while len(body) < int(length[1]):
        body += connection.recv(2**18)


def _hydrate(scratch: Path, url: str, env: Mapping[str, str], seconds: float) -> float:
    """Hydrations a second of GUESTS guests that come back at once."""
    until, done = time.monotonic() + seconds, [0] * GUESTS

    def work(number: int) -> None:
        place = scratch / f"guest-{number}"
        while time.monotonic() < until:
            run_git("clone", "-q", "-n", "--filter=blob:none", url, str(place), cwd=scratch, env=env)
            shutil.rmtree(place)
            done[number] += 1

    guests = [threading.Thread(target=work, args=(number,)) for number in range(GUESTS)]
    start = time.monotonic()
    for guest in guests:
        guest.start()
    for guest in guests:
        guest.join()
    return sum(done) / (time.monotonic() - start)


def _record(scratch: Path, url: str, sessions: int, env: Mapping[str, str]) -> None:
    work = scratch / "agent"
    run_git("clone", "-q", "--depth=1", url, str(work), cwd=scratch, env=env)
    begun = time.monotonic()
    paths = sorted(path for path in work.iterdir() if path.is_file())
    for number in range(sessions):
        changed = paths[number % len(paths)]
        with changed.open("a") as file:
            file.write(f"session {number}\n")
        run_git("commit", "-qam", f"session {number}", cwd=work, env=env)
        if number % 16 == 15 or number == sessions - 1:
            first = number - number % 16
            refs = [f"HEAD~{number - each}:refs/agents/session-{each}" for each in range(first, number + 1)]
            run_git("push", "-q", "origin", *refs, cwd=work, env=env)
        if number % PAUSE == PAUSE - 1:
            # A node takes so many new sessions a minute, and no more.
            time.sleep(max(0.0, begun + 61.0 - time.monotonic()))
            begun = time.monotonic()


def _latencies(api: Api) -> dict[str, float]:
    newest = json.loads(api.get("/v1/sessions?limit=1"))["items"][0]["session"]
    path = json.loads(api.get(f"/v1/repos/bench/one/sessions/{newest}/diff?against=previous", "application/json"))
    touched = path["files"][0]["path"]
    requests = {
        "sessions by path": (f"/v1/sessions?path={touched}", "*/*"),
        "sessions by text": ("/v1/sessions?q=session%20777", "*/*"),
        "diff as text": (f"/v1/repos/bench/one/sessions/{newest}/diff", "text/x-diff"),
        "diff as JSON": (f"/v1/repos/bench/one/sessions/{newest}/diff", "application/json"),
        "file": (f"/v1/repos/bench/one/files/{touched}", "*/*"),
        "refs": ("/v1/repos/bench/one/refs", "*/*"),
        "status": ("/v1/status", "*/*"),
        "pulse": ("/v1/pulse", "*/*"),
        "repos": ("/v1/repos", "*/*"),
    }
    found = {}
    for name, (target, accept) in requests.items():
        took = []
        for _ in range(30):
            start = time.perf_counter()
            api.get(target, accept)
            took.append(time.perf_counter() - start)
        found[name] = round(statistics.median(took) * 1000, 2)
    return found


def _streams(api: Api, many: int, pid: int) -> dict[str, Any]:
    before = _resident(pid)
    head = f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: {api.headers['Authorization']}\r\n\r\n".encode()
    streams = []
    for _ in range(many):
        stream = socket.create_connection(("127.0.0.1", api.port), timeout=60)
        stream.sendall(head)
        if b" 200 " not in stream.recv(4096):
            raise BenchError("an event stream was refused")
        streams.append(stream)
    after = _resident(pid)
    for stream in streams:
        stream.close()
    return {"open": many, "MiB": round((after - before) / 2**20, 1)}


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


if __name__ == "__main__":
    sys.exit(main())
