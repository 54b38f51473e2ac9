"""The "GitHub" of the tests: real bare repositories over HTTP and git:// that hang, fail and die on demand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType

from tests.support.cgi_server import CgiServer
from tests.support.generate import copy_repository, create_repository
from tests.support.gitutil import clean_env, kill_group, wait_until
from tests.support.ports import hold_port, port_of
from tests.support.traffic import Request, Switches, Traffic

__all__ = ["GitDaemonUpstream", "HttpUpstream", "Request", "Switches"]


class _Upstream:
    """Bare repositories below a directory: `acme/widgets` is `root/acme/widgets.git`. A context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, source: Path | None = None) -> Path:
        """Serve a copy of the bare repository `source` (None: an empty one) as `name`; return its path."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return create_repository(path) if source is None else copy_repository(source, path)

    def path(self, name: str) -> Path:
        """Return the path of the bare repository behind `name`, which need not exist."""
        return self.root / f"{name}.git"

    def close(self) -> None:
        """Stop without leaving a process or a thread behind."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HttpUpstream(_Upstream):
    """Repositories served by `git http-backend` on a free port of 127.0.0.1. The constructor starts the server.

    They answer with and without `.git`, as on GitHub, in protocol v0 to v2. `everywhere` has the faults of all
    repositories, `on(name)` those of one; a fault in either applies.
    """

    def __init__(self, root: Path, *, push: bool = True) -> None:
        super().__init__(root)
        self._traffic = Traffic(root, push)
        # Its port for as long as this lives, also while it refuses.
        self._holder = hold_port()
        self.port = port_of(self._holder)
        self._server: CgiServer | None = None
        self._acceptor = threading.Thread()
        self.restore()

    def __enter__(self) -> HttpUpstream:
        return self

    def url(self, name: str) -> str:
        """Return the URL of `name` without `.git`, as on GitHub."""
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def everywhere(self) -> Switches:
        """The faults of every repository."""
        return self._traffic.everywhere

    def on(self, name: str) -> Switches:
        """Return the faults of one repository."""
        return self._traffic.switches(name)

    def reset(self) -> None:
        """Turn every fault off, let hung requests continue, and listen again if `refuse` was called."""
        self._traffic.reset()
        self.restore()

    def refuse(self) -> None:
        """Act like a killed server: cut open connections and refuse new ones. The port stays reserved."""
        if self._server is None:
            return
        # A child that is just being started holds a copy of the socket until it execs. Without the shutdown, the port
        # could not be bound again.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._server.server_close()
        self._server = None
        self._traffic.drop()

    def restore(self) -> None:
        """Listen again, on the same port."""
        if self._server is not None:
            return
        listening = hold_port(port=self.port)
        listening.listen(256)
        self._server = CgiServer(listening, self._traffic)
        self._acceptor = threading.Thread(target=self._server.accept_all, daemon=True)
        self._acceptor.start()

    @property
    def requests(self) -> list[Request]:
        """The requests so far, oldest first."""
        return self._traffic.requests()

    def count(self, name: str | None = None, service: str | None = None) -> int:
        """Return the number of requests so far, only those of one repository and one service when these are given."""
        return sum(
            (name is None or each.repo == name) and (service is None or each.service == service)
            for each in self.requests
        )

    def forget(self) -> None:
        """Empty the request log."""
        self._traffic.forget()

    @property
    def hanging(self) -> int:
        """How many requests hang right now."""
        return self._traffic.hanging()

    def close(self) -> None:
        """Stop: drop hung requests, kill children, join threads."""
        self.refuse()
        self._holder.close()
        self._traffic.end()


class GitDaemonUpstream(_Upstream):
    """Repositories served by a real `git daemon` on a free port of `host`. The constructor starts the daemon."""

    def __init__(self, root: Path, *, push: bool = False, host: str = "127.0.0.1") -> None:
        super().__init__(root)
        self._host = host
        self._holder = hold_port(host)  # As that of HttpUpstream.
        self.port = port_of(self._holder)
        self._push = push
        self._log = root / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> GitDaemonUpstream:
        return self

    def url(self, name: str) -> str:
        """Return the git:// URL of `name`."""
        return f"git://{self._host}:{self.port}/{name}"

    def start(self) -> None:
        """Listen, always on the same port."""
        if self._process is not None:
            return
        argv = [
            "git",
            "daemon",
            "--verbose",
            "--log-destination=stderr",
            "--informative-errors",
            "--reuseaddr",
        ]
        argv += [f"--listen={self._host}", f"--port={self.port}", f"--base-path={self.root}", "--export-all"]
        argv += ["--enable=receive-pack"] if self._push else []
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*argv, str(self.root)],
                env=clean_env(self.root),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        # The daemon logs when it listens.
        wait_until(
            lambda: process.poll() is not None or b"Ready to rumble" in self._log.read_bytes()[before:],
            message="git daemon starts",
        )
        if process.poll() is not None:
            self.stop()
            raise AssertionError(f"git daemon does not start: {self._log.read_text()}")

    def stop(self) -> None:
        """Kill the daemon and its children, even while it hangs."""
        if self._process is not None:
            kill_group(self._process)
            self._process = None

    def hang(self) -> None:
        """Suspend the daemon and its children: the kernel still accepts connections, but nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the suspended daemon and its children continue."""
        self._signal(signal.SIGCONT)

    def count(self, name: str | None = None) -> int:
        """Return how many requests the daemon has begun to answer, only those of one repository when it is given."""
        end = "" if name is None else f"'/{name}"
        lines = self._log.read_text(errors="replace").splitlines()
        return sum("] Request " in line and end in line for line in lines)

    def close(self) -> None:
        """Stop the daemon."""
        self.stop()
        self._holder.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the daemon is stopped"
        os.killpg(self._process.pid, number)
