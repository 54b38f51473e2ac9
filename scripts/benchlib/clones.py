"""The clients: plain `git clone`, one at a time or many at once, timed, and checked afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchlib.processes import BenchError, run_git
from benchlib.servers import Server

ONE = 600.0
"""Seconds that one clone may take."""
BURST = 240.0
"""Seconds that a burst of clones may take; clones that are not done by then are killed and count as refused."""


@dataclass(frozen=True)
class Shape:
    """One way to get a workspace: a name, the arguments of `git clone`, and whether files are checked out."""

    key: str
    text: str
    arguments: tuple[str, ...]
    checkout: bool


TIP_ONLY = Shape("no-checkout-depth-1", "no checkout, depth 1", ("--no-checkout", "--depth=1"), False)
SHAPES = (
    TIP_ONLY,
    Shape("no-checkout-full", "no checkout, whole history", ("--no-checkout",), False),
    Shape("hydration-blob-none", "full, depth 1, blob:none", ("--depth=1", "--filter=blob:none"), True),
    Shape("hydration-depth-1", "full, depth 1", ("--depth=1",), True),
)
HYDRATIONS = tuple(shape for shape in SHAPES if shape.checkout)


@dataclass(frozen=True)
class Sample:
    """One clone: seconds until git was done, CPU seconds of the server, and git's error if it failed."""

    seconds: float
    cpu: float
    refused: str = ""


@dataclass(frozen=True)
class Burst:
    """Clones started at once. `served` of `guests` succeeded, the last after `seconds`; `cpu` is the server's."""

    guests: int
    served: int
    seconds: float
    cpu: float

    @property
    def refused(self) -> int:
        """The number of guests that got nothing."""
        return self.guests - self.served

    @property
    def rate(self) -> float:
        """Guests served per second."""
        return self.served / self.seconds if self.seconds else 0.0


class Guests:
    """Runs clients with workspaces below `fast`. Every clone must be at the commit `tip`."""

    def __init__(self, fast: Path, env: Mapping[str, str], tip: str) -> None:
        self._fast = fast
        self._env = dict(env)
        self.tip = tip
        self.faults: list[str] = []

    @contextlib.contextmanager
    def hydrated(self, server: Server, protocol: str, shape: Shape) -> Iterator[tuple[Sample, Path]]:
        """Makes one clone, times it and checks its tip; its workspace exists until the context ends."""
        with self._workspaces() as folder:
            path = folder / "workspace"
            before = server.cpu()
            start = time.perf_counter()
            try:
                done = subprocess.run(
                    self._command(server, protocol, shape, path),
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=ONE,
                )
            except subprocess.TimeoutExpired:
                raise BenchError(f"a clone from {server.name} took longer than {ONE:g} s") from None
            seconds = time.perf_counter() - start
            # A child of the server may still be ending; its CPU time counts for the parent only after that.
            time.sleep(0.01)
            cpu = server.cpu() - before
            refused = done.stderr.decode(errors="replace").strip() or "git failed" if done.returncode else ""
            if not refused:
                self._check_tip(path, f"{shape.text} by {protocol} from {server.name}")
            yield Sample(seconds, cpu, refused), path

    def sample(self, server: Server, protocol: str, shape: Shape) -> Sample:
        """Makes one clone like `hydrated`, and deletes its workspace."""
        with self.hydrated(server, protocol, shape) as (sample, _):
            return sample

    def inspect(self, server: Server, protocol: str, shape: Shape) -> str:
        """Makes one clone and checks it closely: fsck, no changed file. Returns a digest of its refs and objects.

        Returns the empty string when the clone was refused. Adds what is wrong to `faults`.
        """
        what = f"{shape.text} by {protocol} from {server.name}"
        with self.hydrated(server, protocol, shape) as (sample, path):
            if sample.refused:
                return ""
            try:
                # git must not fetch objects that the server failed to send.
                env = {**self._env, "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
                run_git("fsck", "--full", "--strict", "--no-dangling", "--no-progress", cwd=path, env=env)
                if shape.checkout and (changed := run_git("status", "--porcelain", cwd=path, env=env)):
                    self.faults.append(f"{what}: the files are not those of the tip: {changed[:200]}")
                refs = run_git("for-each-ref", "--format=%(objectname) %(refname)", cwd=path, env=env)
                objects = run_git("rev-list", "--all", "--objects", "--missing=print", cwd=path, env=env)
            except BenchError as error:
                self.faults.append(f"{what}: {error}")
                return ""
            shallow = path / ".git" / "shallow"
            digest = hashlib.sha256("\n".join([refs, *sorted(objects.splitlines())]).encode(errors="surrogateescape"))
            digest.update(shallow.read_bytes() if shallow.exists() else b"")
            return digest.hexdigest()

    def burst(self, server: Server, protocol: str, shape: Shape, guests: int) -> Burst:
        """Starts `guests` clones at once and waits for all of them."""
        with self._workspaces() as folder:
            paths = [folder / str(number) for number in range(guests)]
            before = server.cpu()
            start = time.perf_counter()
            clients = [
                subprocess.Popen(
                    self._command(server, protocol, shape, path),
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                for path in paths
            ]
            ended = _wait_for_all(clients, start)
            cpu = server.cpu() - before
            served = [number for number, client in enumerate(clients) if client.returncode == 0]
            for number in served:
                self._check_tip(paths[number], f"one of {guests} at once by {protocol} from {server.name}")
            return Burst(guests, len(served), max((ended[number] for number in served), default=0.0), cpu)

    def _command(self, server: Server, protocol: str, shape: Shape, path: Path) -> list[str]:
        return ["git", "clone", "--quiet", *shape.arguments, server.urls[protocol], str(path)]

    def _check_tip(self, path: Path, what: str) -> None:
        found = tip_of(path / ".git")
        if found != self.tip:
            self.faults.append(f"{what}: the tip is {found}, not {self.tip}")

    @contextlib.contextmanager
    def _workspaces(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="guests-", dir=self._fast))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def tip_of(git_dir: Path) -> str | None:
    """Returns the commit at HEAD, read without git, because two hundred git processes would disturb the next row."""
    head = (git_dir / "HEAD").read_text().strip()
    name = head.removeprefix("ref: ")
    if name == head:
        return head
    if (git_dir / name).exists():
        return (git_dir / name).read_text().strip()
    packed = git_dir / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split(" ")[0] for line in lines if line.endswith(f" {name}")), None)


def _wait_for_all(clients: list[subprocess.Popen[bytes]], start: float) -> list[float]:
    """Returns the seconds from `start` to the end of each client; kills those not done after BURST seconds."""
    ended = [0.0] * len(clients)
    with selectors.DefaultSelector() as poll:
        for number, client in enumerate(clients):
            poll.register(os.pidfd_open(client.pid), selectors.EVENT_READ, number)
        while poll.get_map():
            left = start + BURST - time.perf_counter()
            for key, _ in poll.select(max(0.0, left)):
                ended[key.data] = time.perf_counter() - start
                clients[key.data].wait()
                poll.unregister(key.fd)
                os.close(key.fd)
            if left <= 0:
                for key in list(poll.get_map().values()):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(clients[key.data].pid, signal.SIGKILL)
    return ended
