"""Runs `python -m appliance` from a process that has imported it, in a fraction of the time; see `fork_server`.

So it does `python -m tests.ROOM.MODULE`, which changes something and then goes on as `appliance`, or uses its parts.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.gitutil import kill_group

ROOT = Path(__file__).resolve().parents[2]
"""The checkout under test."""
_BY_EXEC = bool(os.environ.get("SERVE_BY_EXEC"))
_starting = threading.Lock()

Ids = tuple[int, int, Sequence[int]]
"""The user, the group and the other groups that a process has, where they are not those of the tests."""


class ForkedProcess:
    """A process with what the tests use of `subprocess.Popen`; `args` are the words after `python -m MODULE`."""

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None
    stderr: IO[bytes] | None = None

    def __init__(
        self,
        args: Sequence[str],
        *,
        module: str = "appliance",
        env: Mapping[str, str],
        cwd: Path,
        files: tuple[IO[bytes], IO[bytes], IO[bytes]],
        python: Sequence[str] = (sys.executable,),
        ids: Ids | None = None,
    ) -> None:
        """`files` are stdin, stdout and stderr; `python` is what the server is started by."""
        self.args = list(args)
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        umask = os.umask(0o022)
        os.umask(umask)
        request = {
            "module": module,
            "argv": self.args,
            "env": dict(env),
            "cwd": str(cwd),
            "umask": umask,
            "ids": ids,
        }
        with theirs:
            self._own.send(json.dumps(request).encode())
            with _starting:
                server = _server(tuple(python), env["PYTHONPATH"])
            socket.send_fds(server, [b"x"], [theirs.fileno(), *(file.fileno() for file in files)])
        self.pid = int(self._own.recv(64))

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None:
                poll = select.poll()
                poll.register(self._own, select.POLLIN)
                if poll.poll(None if timeout is None else timeout * 1000):
                    self.returncode = int(self._own.recv(64) or -signal.SIGKILL)
                    self._own.close()
            return self.returncode


def can_fork(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a command with this environment is one that the server can become.

    Not if something must be there when Python starts. $SERVE_BY_EXEC has all of them started anew.
    """
    variables = {name for name in env if name.startswith("PYTHON")} - {"PYTHONPATH"}
    return (
        list(command[1:2]) == ["-m"]
        and len(command) == 3
        and (command[2] == "appliance" or command[2].startswith("tests."))
        and env.get("PYTHONPATH", "").split(os.pathsep)[0] == str(ROOT)
        and env.get("LC_ALL") == "C"
        and not variables
        and not _BY_EXEC
    )


@functools.cache
def _server(python: tuple[str, ...], path: str) -> socket.socket:
    """The socket of the server of this process, which ends when the socket is closed. What it forks has what it has."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [*python, "-m", "tests.support.fork_server", str(theirs.fileno())],
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": path, "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours


def run_forked(
    args: Sequence[str],
    *,
    module: str = "appliance",
    env: Mapping[str, str],
    cwd: Path,
    input: bytes | None,
    timeout: float,
    python: Sequence[str] = (sys.executable,),
    ids: Ids | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """`gitutil.run_process` for a command that `can_fork`."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        given.write(input or b"")
        given.seek(0)
        files = (given, stdout, stderr)
        process = ForkedProcess(args, module=module, env=env, cwd=cwd, files=files, python=python, ids=ids)
        try:
            code = process.wait(timeout)
        except BaseException:
            kill_group(process)
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(process.args, code, stdout.read(), stderr.read())
