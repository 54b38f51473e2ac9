"""Ready workspaces: the guest kit by snapshot and by disk, compared with `curl | tar x`, `cp -a` and git daemon."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from benchlib.clones import BURST, HYDRATIONS, Guests
from benchlib.disks import DiskFigures, leased, why_no_disks
from benchlib.processes import BenchError, Places, run_git, wait_until
from benchlib.servers import Gitmirror, Server

KIT, DISK, TAR, COPY, DAEMON = "kit", "kit by disk", "curl | tar x", "cp -a", "git daemon"
WAYS = (KIT, DISK, TAR, COPY, DAEMON)
SNAPSHOT = 120.0
"""Seconds that the first snapshot may take."""


@dataclass
class Workspaces:
    """Seconds by method, and one burst with the kit: `served` of `guests` were correct after `burst_seconds`.

    `disk` is None where disks cannot be measured; `no_disk` says why.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    guests: int = 0
    served: int = 0
    burst_seconds: float = 0.0
    disk: DiskFigures | None = None
    no_disk: str = ""


@dataclass(frozen=True)
class Place:
    """Where to get the snapshot: the URL of the mirror's HTTP port, OWNER/REPO, and the tip it must contain."""

    base: str
    name: str
    tip: str
    kit: Path
    fast: Path
    env: Mapping[str, str]


def measure_workspaces(
    guests: Guests,
    ours: Server,
    daemon: Server,
    appliance: Gitmirror,
    places: Places,
    env: Mapping[str, str],
    runs: int,
    many: int,
) -> Workspaces:
    """Measures every method in turns, then `many` guests at once with the kit. Raises BenchError."""
    name = appliance.name
    base = ours.urls["http"].removesuffix(f"/{name}.git")
    kit = places.scratch / "guest.sh"
    with urlopen(f"{base}/guest.sh") as answer:
        kit.write_bytes(answer.read())
    # The upstream is unreachable on purpose, because a fallback to it would be another measurement.
    # The kit would also find the drives by itself.
    environment = {**env, "GITMIRROR_UPSTREAM": "http://127.0.0.1:9/none", "GITMIRROR_DRIVES": ""}
    place = Place(base, name, guests.tip, kit, places.fast, environment)
    wait_until(lambda: _snapshot(place) == place.tip, "the snapshot is built", SNAPSHOT)
    found = Workspaces(no_disk=why_no_disks() or "")
    with contextlib.ExitStack() as stack:
        ready = stack.enter_context(_folder(places.fast))
        _tar(place, ready / "workspace")
        drives = None
        if not found.no_disk:
            found.disk = DiskFigures()
            drives = stack.enter_context(leased(appliance, guests.tip, kit, places.fast, place.env, found.disk))
        ways: dict[str, Callable[[Path], object]] = {
            KIT: lambda path: _kit(place, path),
            TAR: lambda path: _tar(place, path),
            COPY: lambda path: _run(place, "cp", "-a", str(ready / "workspace"), str(path)),
        }
        for turn in range(runs + 1):
            for way in (*WAYS[turn % len(WAYS) :], *WAYS[: turn % len(WAYS)]):
                if way == DAEMON:
                    seconds = guests.sample(daemon, "git", HYDRATIONS[-1]).seconds
                elif way != DISK:
                    seconds = _timed(place, ways[way])
                elif drives is None or found.disk is None:
                    continue
                else:
                    drives.hydrate(found.disk)
                    seconds = found.disk.kit[-1]
                # The first turn warms up.
                if turn:
                    found.seconds[way].append(seconds)
    _burst(place, many, found)
    return found


def _snapshot(place: Place) -> str:
    with urlopen(f"{place.base}/{place.name}/freshness") as answer:
        return str(json.loads(answer.read())["snapshot"])


def _kit(place: Place, path: Path) -> None:
    output = _run(place, "sh", str(place.kit), "hydrate", place.name, str(path))
    if not output.startswith("hydrated via=snapshot "):
        raise BenchError(f"the kit did not use the snapshot: {output}")


def _tar(place: Place, path: Path) -> None:
    path.mkdir()
    url = f"{place.base}/{place.name}/workspace.tar"
    _run(place, "sh", "-c", 'curl -sf "$0" | tar -xf - -C "$1"', url, str(path))


def _timed(place: Place, make: Callable[[Path], object]) -> float:
    with _folder(place.fast) as folder:
        start = time.perf_counter()
        make(folder / "workspace")
        seconds = time.perf_counter() - start
        if run_git("rev-parse", "HEAD", cwd=folder / "workspace", env=place.env) != place.tip:
            raise BenchError("a workspace is not at the tip")
        return seconds


def _burst(place: Place, many: int, found: Workspaces) -> None:
    with _folder(place.fast) as folder:
        start = time.perf_counter()
        paths = [folder / str(number) for number in range(many)]
        guests = [
            subprocess.Popen(
                ["sh", str(place.kit), "hydrate", place.name, str(path)],
                env=dict(place.env),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for path in paths
        ]
        codes = [guest.wait(BURST) for guest in guests]
        found.guests, found.burst_seconds = many, time.perf_counter() - start
        for code, path in zip(codes, paths, strict=True):
            right = code == 0 and run_git("rev-parse", "HEAD", cwd=path, env=place.env) == place.tip
            found.served += right and not run_git("status", "--porcelain", cwd=path, env=place.env)


def _run(place: Place, *argv: str) -> str:
    done = subprocess.run(
        argv, env=dict(place.env), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"{argv[0]} failed: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _folder(fast: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=fast))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
