"""The compared servers: gitmirror, git daemon, and the floor. http-backend is in nginx.py."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchlib.processes import BenchError, Places, Running, free_port, listens, run_git, wait_until

ROOT = Path(__file__).resolve().parents[2]
OWNER = "bench"
START = 30.0
"""Seconds that a server may take to start."""
CLONE = 600.0
"""Seconds that the first clone and the warming of a repository may take."""


@dataclass(frozen=True)
class Server:
    """One compared server: the URL of the repository for each protocol (`git`, `http`), and its processes.

    A server whose children cannot be found in /proc has `counted_urls`; there, their CPU time is written to a file.
    """

    name: str
    urls: Mapping[str, str]
    running: tuple[Running, ...] = field(default=(), repr=False)
    counted_urls: Mapping[str, str] = field(default_factory=dict)
    counted: Path | None = None

    def cpu(self) -> float:
        """CPU seconds used so far."""
        aside = self.counted.read_text().split() if self.counted else []
        return sum(each.cpu() for each in self.running) + sum(map(float, aside))

    def counting(self) -> Server:
        """Returns the server with the URLs at which its CPU time is measured."""
        return replace(self, urls=self.counted_urls) if self.counted else self


class Gitmirror:
    """gitmirror as a process, with one repository and its state below `scratch`."""

    def __init__(self, places: Places, env: Mapping[str, str], name: str, pyz: Path | None) -> None:
        self._scratch = places.scratch / "gitmirror"
        self._scratch.mkdir()
        self._config = self._scratch / "gitmirror.toml"
        # With this interval only the benchmark triggers refreshes, so that none happens during a measurement.
        self._config.write_text('[refresh]\ninterval = "1h"\nallow_local = true\n')
        self._command = [sys.executable, str(pyz)] if pyz else [sys.executable, "-m", "appliance"]
        self._command += ["--state", str(self._scratch / "state"), "--config", str(self._config)]
        inside = {"SHIV_ROOT": str(self._scratch / "shiv")} if pyz else {"PYTHONPATH": str(ROOT)}
        self._env = {**env, **inside, "PYTHONDONTWRITEBYTECODE": "1"}
        self.name = f"{OWNER}/{name}"
        self.mirrors = self._scratch / "state" / "mirrors"
        self.mirror = self.mirrors / f"{self.name}.git"
        self.urls: dict[str, str] = {}
        self._running: Running | None = None

    @contextlib.contextmanager
    def serving(self) -> Iterator[Server]:
        """Runs `serve` on free ports until the context ends. Raises BenchError when it does not start."""
        any_port = [word for name in ("git", "http", "admin") for word in (f"--{name}", "127.0.0.1:0")]
        log = self._scratch / "serve.log"
        argv = [*self._command, "serve", *any_port]
        with Running(argv, env=self._env, log=log, cwd=self._scratch, stdout=subprocess.PIPE) as running:
            line = running.stdout.readline().decode()
            found = re.match(r"ready (git://\S+) (http://\S+) ", line)
            if found is None:
                running.process.wait(START)
                running.check()
            assert found is not None
            self.urls = {"git": f"{found[1]}/{self.name}.git", "http": f"{found[2]}/{self.name}.git"}
            yield Server("gitmirror", self.urls, (running,))

    def command(self, *arguments: str) -> str:
        """Runs another command on the same state and returns its output. Raises BenchError."""
        argv = [*self._command, *arguments]
        done = subprocess.run(argv, env=self._env, cwd=self._scratch, capture_output=True, text=True, timeout=CLONE)
        if done.returncode not in (0, 3):
            raise BenchError(f"gitmirror {arguments[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Returns the document of `status --json`."""
        return dict(json.loads(self.command("status", "--json")))

    def disk_builds(self) -> list[float]:
        """Returns the seconds that each build of a disk took so far, from the log of `serve`."""
        text = (self._scratch / "serve.log").read_text(encoding="utf-8", errors="replace")
        return [float(seconds) for seconds in re.findall(r"disk of .* in ([0-9.]+)s$", text, re.MULTILINE)]

    def wait_until_warm(self, tip: str) -> None:
        """Waits until every response warmed for this tip is cached and the snapshot is built. Raises BenchError."""

        def warm() -> bool:
            known = self.status()["warmed"].get(self.name, {})
            if known.get("tip") != tip or not known["answers"] == known["wanted"] > 0:
                return False
            with urlopen(f"{self.urls['http'].removesuffix('.git')}/freshness", timeout=START) as answer:
                return bool(json.load(answer)["snapshot"] == tip)

        wait_until(warm, "warming", CLONE)

    def make_mirror(self, upstream: Path) -> None:
        """Registers the upstream and waits for its first clone; then gives the mirror the upstream's packs and objects.

        A first clone is a single pack, which is not how a mirror looks after some time.
        """
        with self.serving():
            self.command("add-repo", upstream.as_uri(), "--name", self.name, "--allow-local", "--json")
        objects = self.mirror / "objects"
        if not (upstream / "objects" / "info" / "alternates").exists():
            shutil.rmtree(objects)
            shutil.copytree(upstream / "objects", objects)


@contextlib.contextmanager
def git_daemon(places: Places, env: Mapping[str, str], mirrors: Path, name: str) -> Iterator[Server]:
    """Runs the stock git daemon with its default limit of 32 children."""
    port = free_port()
    # Runs git-daemon itself, because `git daemon` would add another process in between.
    program = Path(run_git("--exec-path", cwd=places.scratch, env=env)) / "git-daemon"
    argv = [str(program), "--export-all", f"--base-path={mirrors}", "--reuseaddr"]
    argv += ["--listen=127.0.0.1", f"--port={port}", "--log-destination=none"]
    with Running(argv, env=serving_environment(places, env), log=places.scratch / "daemon.log") as running:
        wait_until(lambda: _up(running, port), "git daemon listens", START)
        yield Server("git daemon", {"git": f"git://127.0.0.1:{port}/{name}.git"}, (running,))


def _up(running: Running, port: int) -> bool:
    running.check()
    return listens(port)


def serving_environment(places: Places, env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment that servers other than gitmirror need to serve this mirror at all."""
    config = places.scratch / "serving.config"
    config.write_text("[safe]\n\tdirectory = *\n\tbareRepository = all\n")
    return {**env, "GIT_CONFIG_GLOBAL": str(config)}


@contextlib.contextmanager
def floor(places: Places, env: Mapping[str, str], recorded: Mapping[str, str]) -> Iterator[Server]:
    """Runs a replay of the responses of the server with these URLs."""
    ports = [str(_split(recorded[protocol])[0]) for protocol in ("git", "http")]
    program = Path(__file__).with_name("floor.py")
    argv = [sys.executable, "-IS", str(program), *ports]
    log = places.scratch / "floor.log"
    with Running(argv, env=env, log=log, stdout=subprocess.PIPE) as running:
        words = running.stdout.readline().decode().split()
        if len(words) != 2:
            running.process.wait(START)
            running.check()
        urls = {
            protocol: f"{protocol}://127.0.0.1:{port}/{_split(recorded[protocol])[1]}"
            for protocol, port in zip(("git", "http"), words, strict=True)
        }
        yield Server("floor", urls, (running,))


def answers_of(replay: Server) -> int:
    """Returns how many responses the floor has recorded."""
    base = replay.urls["http"].split("/", 3)
    with urlopen(f"http://{base[2]}/recorded", timeout=START) as answer:
        return int(answer.read())


def _split(url: str) -> tuple[int, str]:
    """Splits a URL of the loopback into port and path."""
    _, _, place, path = url.split("/", 3)
    return int(place.rpartition(":")[2]), path
