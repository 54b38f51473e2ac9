"""A small service manager: what `serve` sees of systemd when it hands over sockets and gets them back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.support.gitutil import kill_group, wait_until
from tests.support.serve import ROOT, Serve

LAUNCH = """
import json, os, sys
sockets = json.loads(sys.argv[1])
for number, (name, descriptor) in enumerate(sockets):
    os.dup2(descriptor, number + 10000)
for number in range(len(sockets)):
    os.dup2(number + 10000, number + 3)
    os.close(number + 10000)
os.closerange(len(sockets) + 3, 10000)
if sockets:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in sockets)
os.execv(sys.executable, [sys.executable, "-m", "appliance", *sys.argv[2:]])
"""


class ServiceManager:
    """Runs `serve` on the state and config of `serve`, with `units` as inherited sockets. A context manager.

    It keeps the sockets that it is sent with FDSTORE=1, as systemd does, and passes them on at the next start.
    """

    def __init__(self, serve: Serve, units: Sequence[tuple[str, socket.socket]] = ()) -> None:
        self.serve = serve
        self.units = units
        self.kept: list[tuple[str, int]] = []
        self.ready = threading.Event()
        self._path = serve.state.with_name("notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServiceManager:
        self._notify.bind(str(self._path))
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            kill_group(self._process)
        self._notify.sendto(b"END=1", str(self._path))
        for _, descriptor in self.kept:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        """The process of `serve`."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start `serve` with all sockets, and wait until it is ready."""
        sockets = [*((name, each.fileno()) for name, each in self.units), *self.kept]
        self.ready.clear()
        argv = [sys.executable, "-c", LAUNCH, json.dumps(sockets), "--state", str(self.serve.state)]
        env = {**self.serve.env, "NOTIFY_SOCKET": str(self._path), "FDSTORE": "8192"}
        log = self.serve.state.with_name("managed.log")
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*argv, "--config", str(self.serve.config), "serve", *self.serve.options], cwd=ROOT, env=env,
                stdout=out, stderr=out, pass_fds=[descriptor for _, descriptor in sockets], start_new_session=True,
            )  # fmt: skip
        wait_until(lambda: self.ready.is_set() or self._ended(), timeout=60, message="READY=1")
        assert self.ready.is_set(), Path(log).read_text()

    def stop(self) -> None:
        """Stop `serve` as `systemctl restart` does."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0

    def kill(self) -> None:
        """Kill it."""
        assert self._process is not None
        kill_group(self._process)

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._notify, 4096, 4)
            values = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "END" in values:
                self._notify.close()
                return
            if "READY" in values:
                self.ready.set()
            name = values.get("FDNAME", "")
            if "FDSTORE" in values:
                self.kept = [*self.kept, *((name, each) for each in descriptors)]
            if "FDSTOREREMOVE" in values:
                gone = [each for each in self.kept if each[0] == name]
                self.kept = [each for each in self.kept if each[0] != name]
                for _, descriptor in gone:
                    os.close(descriptor)
