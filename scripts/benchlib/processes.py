"""The processes that the benchmark starts, the CPU time they use, and the machine they run on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TICK = os.sysconf("SC_CLK_TCK")
END_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Places:
    """Directories: `scratch` for repositories and servers (on a disk, as on a node), `fast` for workspaces."""

    scratch: Path
    fast: Path
    on_tmpfs: bool


@contextlib.contextmanager
def temporary_places() -> Iterator[Places]:
    """Creates two directories and deletes them at the end. `fast` is on /dev/shm if writable, else in TMPDIR."""
    shared = Path("/dev/shm")
    on_tmpfs = shared.is_dir() and os.access(shared, os.W_OK)
    with (
        tempfile.TemporaryDirectory(prefix="gitmirror-bench-", ignore_cleanup_errors=True) as scratch,
        tempfile.TemporaryDirectory(
            prefix="gitmirror-bench-", dir=shared if on_tmpfs else None, ignore_cleanup_errors=True
        ) as fast,
    ):
        yield Places(Path(scratch), Path(fast), on_tmpfs)


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns an environment without git config, credentials and proxies of the user; creates `home`."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": tempfile.gettempdir(),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        **(extra or {}),
    }


def run_git(*arguments: str, cwd: Path, env: Mapping[str, str], stdin: bytes | None = None) -> str:
    """Runs a git command and returns its output. Raises BenchError with git's message when it fails."""
    command = ["git", "-c", "safe.directory=*", *arguments]
    done = subprocess.run(command, cwd=cwd, env=dict(env), input=stdin, capture_output=True)
    if done.returncode:
        raise BenchError(f"git {arguments[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="surrogateescape").strip()


def free_port() -> int:
    """Returns a port of the loopback on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(look: Callable[[], bool], what: str, timeout: float) -> None:
    """Calls `look` every 20 ms until it is true. Raises BenchError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not look():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether that port of the loopback accepts a connection."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Running:
    """A process in a session of its own, with its descendants. A context manager that ends all of it."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        cwd: Path | None = None,
        stdout: int | None = None,
    ) -> None:
        self._log = log
        self._name = Path(argv[0]).name
        with log.open("ab") as output:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def stdout(self) -> IO[bytes]:
        """The process's output, when it was started with a pipe."""
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self) -> None:
        """Sends TERM, waits up to END_GRACE seconds, and kills the process and everything left in its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(ChildProcessError):
            # Since `adopt_orphans`, the processes it left are our children, and not every init reaps them for us.
            while True:
                os.waitpid(-self.process.pid, 0)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def cpu(self) -> float:
        """CPU seconds used so far by the process and its descendants, including those that ended and were reaped."""
        return sum(_cpu_of(pid) for pid in _family(self.process.pid))

    def check(self) -> None:
        """Raises BenchError, with the end of the log, when the process has ended."""
        if self.process.poll() is not None:
            raise BenchError(f"{self._name} ended by itself:\n{self._log.read_text(errors='replace')[-2000:]}")


def _family(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    family = {root}
    # A loop is needed, because pids wrap around and a child may have a smaller one than its parent.
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family)


def _cpu_of(pid: int) -> float:
    """CPU seconds of one process: threads in nanoseconds where the kernel has them, dead children in clock ticks."""
    try:
        fields = _stat(pid)
        own = (int(fields[11]) + int(fields[12])) / TICK
        with contextlib.suppress(OSError, IndexError):
            threads = [Path(entry.path, "schedstat").read_text() for entry in os.scandir(f"/proc/{pid}/task")]
            # Threads that have ended are missing here, and a zombie has only its ticks.
            own = max(own - 1 / TICK, sum(int(text.split()[0]) for text in threads) / 1e9)
        return own + (int(fields[13]) + int(fields[14])) / TICK
    except OSError:
        return 0.0


def _stat(pid: int) -> list[bytes]:
    """Returns the fields of /proc/PID/stat from the state on. The name before it may contain any byte."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def adopt_orphans() -> None:
    """Makes this process the parent of processes that servers leave behind (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def find_program(name: str) -> str | None:
    """Returns the path of a program; also searches the directories of administrators' programs."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def describe_machine(places: Places, env: Mapping[str, str]) -> dict[str, str | int | list[float]]:
    """Describes this machine for the reader of the figures."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "git": run_git("version", cwd=places.scratch, env=env).removeprefix("git version "),
        "python": platform.python_version(),
        "workspaces": "tmpfs" if places.on_tmpfs else "TMPDIR (no /dev/shm here)",
        "load": [round(value, 2) for value in os.getloadavg()],
    }
