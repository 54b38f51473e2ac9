"""Processes that the bench starts, the machine they run on, and the CPU time that they take."""

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
    """The bench cannot go on; the text says why."""


@dataclass(frozen=True)
class Places:
    """Where things are: `scratch` for repositories and servers (as on a node: a disk), `fast` for workspaces."""

    scratch: Path
    fast: Path
    on_tmpfs: bool


@contextlib.contextmanager
def temporary_places() -> Iterator[Places]:
    """Two directories, gone at the end. Workspaces are on /dev/shm when it can be written, else where TMPDIR is."""
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
    """An environment without anybody's git config, credentials or proxies; `home` is made."""
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
    """The output of a git command. Raises BenchError with git's words when it fails."""
    command = ["git", "-c", "safe.directory=*", *arguments]
    done = subprocess.run(command, cwd=cwd, env=dict(env), input=stdin, capture_output=True)
    if done.returncode:
        raise BenchError(f"git {arguments[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="surrogateescape").strip()


def free_port() -> int:
    """A port of the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(look: Callable[[], bool], what: str, timeout: float) -> None:
    """Looks every 20 ms. Raises BenchError when it is not so within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not look():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether a connection to that port of the loopback is taken."""
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
        """Its output, when that was asked for as a pipe."""
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self) -> None:
        """TERM, a moment, KILL for the process and whatever it left in its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(ChildProcessError):
            # What it left is ours since `adopt_orphans`; not every init takes the dead away.
            while True:
                os.waitpid(-self.process.pid, 0)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def cpu(self) -> float:
        """CPU seconds that it and its descendants have taken so far, those that ended and were waited for included."""
        return sum(_cpu_of(pid) for pid in _family(self.process.pid))

    def check(self) -> None:
        """Raises BenchError, with the end of its log, when it is gone."""
        if self.process.poll() is not None:
            raise BenchError(f"{self._name} ended by itself:\n{self._log.read_text(errors='replace')[-2000:]}")


def _family(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    family = {root}
    # Process numbers wrap around: a child may have a smaller one than its parent.
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family)


def _cpu_of(pid: int) -> float:
    """Of one process: its threads to the nanosecond where the kernel tells, its dead children in clock ticks."""
    try:
        fields = _stat(pid)
        own = (int(fields[11]) + int(fields[12])) / TICK
        with contextlib.suppress(OSError, IndexError):
            threads = [Path(entry.path, "schedstat").read_text() for entry in os.scandir(f"/proc/{pid}/task")]
            # A thread that ended is no longer there, and a zombie has nothing but its ticks.
            own = max(own - 1 / TICK, sum(int(text.split()[0]) for text in threads) / 1e9)
        return own + (int(fields[13]) + int(fields[14])) / TICK
    except OSError:
        return 0.0


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on. The name before it may hold any byte."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def adopt_orphans() -> None:
    """From now on what a server leaves behind becomes a child of this process (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def find_program(name: str) -> str | None:
    """Its path, looked for where administrators' programs are too."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def describe_machine(places: Places, env: Mapping[str, str]) -> dict[str, str | int | list[float]]:
    """What kind of machine this is, for the reader of the figures."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "git": run_git("version", cwd=places.scratch, env=env).removeprefix("git version "),
        "python": platform.python_version(),
        "workspaces": "tmpfs" if places.on_tmpfs else "TMPDIR (no /dev/shm here)",
        "load": [round(value, 2) for value in os.getloadavg()],
    }
