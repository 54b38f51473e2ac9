"""Real NATS servers with JetStream on loopback, one or a cluster, which can be killed and started again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import weakref
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import nats
from nats.js import JetStreamContext

from tests.support.gitutil import wait_until
from tests.support.ports import hold_port, port_of

Result = TypeVar("Result")

NATS_SERVER = shutil.which("nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
WHY_NOT = "" if NATS_SERVER else "nats-server is missing"
"""Why tests that need NATS are skipped; empty if they are not."""


class NatsServer:
    """One server, with a port that it keeps over restarts. `extra` goes into its configuration file.

    It stores no more than `store`, such as `1MB`; None is without JetStream.
    """

    def __init__(
        self,
        directory: Path,
        name: str = "n0",
        *,
        cluster_port: int | None = None,
        routes: Sequence[int] = (),
        extra: str = "",
        host: str = "127.0.0.1",
        store: str | None = "",
    ) -> None:
        self.directory = directory / name
        self.name = name
        self.host = host
        # Its port for as long as this lives, also while the server is stopped.
        holder = hold_port(host)
        weakref.finalize(self, holder.close)
        self.port = port_of(holder)
        self.process: subprocess.Popen[bytes] | None = None
        self.directory.mkdir(parents=True)
        cluster = (
            f"cluster {{ name: test, listen: {host}:{cluster_port}, "
            f"routes: [{', '.join(f'nats://{host}:{each}' for each in routes)}] }}\n"
            if cluster_port
            else ""
        )
        most = f", max_file_store: {store}" if store else ""
        jetstream = "" if store is None else f'jetstream {{ store_dir: "{self.directory / "store"}"{most} }}\n'
        self._config = self.directory / "nats.conf"
        self._config.write_text(f'server_name: {name}\nlisten: "{host}:{self.port}"\n{jetstream}{cluster}{extra}\n')

    @property
    def url(self) -> str:
        """Its URL for clients."""
        return f"nats://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What it printed so far."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Starts it; does not wait until it can be used."""
        assert NATS_SERVER is not None, WHY_NOT
        with (self.directory / "log").open("ab") as output:
            self.process = subprocess.Popen(
                [NATS_SERVER, "-c", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Ends it at once, or by another signal, and waits for that."""
        if self.process is not None:
            # One that is stopped would not see the signal.
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def lose_everything(self) -> None:
        """Kills it and deletes what it stored."""
        self.stop()
        shutil.rmtree(self.directory / "store", ignore_errors=True)

    def freeze(self) -> None:
        """Has it answer nobody until `thaw`, with its connections open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # What it has begun it may still answer.
        wait_until(self._is_stopped, timeout=10, message="the server is stopped")

    def _is_stopped(self) -> bool:
        assert self.process is not None
        states = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] in "TtZX" for stat in states)

    def thaw(self) -> None:
        """Ends `freeze`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class NatsCluster:
    """So many servers that replicate for each other; a context manager that ends them."""

    def __init__(
        self, directory: Path, size: int = 1, *, extra: str = "", store: str | None = "", host: str = "127.0.0.1"
    ) -> None:
        holders = [hold_port(host) for _ in range(size)] if size > 1 else []
        for holder in holders:
            weakref.finalize(self, holder.close)
        ports = [port_of(holder) for holder in holders] if holders else [None]
        self.servers = [
            NatsServer(
                directory,
                f"n{number}",
                cluster_port=port,
                routes=[each for each in ports if each is not None and each != port],
                extra=extra,
                store=store,
                host=host,
            )
            for number, port in enumerate(ports)
        ]
        self.replicas = size

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            server.stop()

    @property
    def urls(self) -> list[str]:
        """The URLs of all servers, for `[fleet] servers`."""
        return [server.url for server in self.servers]

    def wait(self, timeout: float = 30.0) -> None:
        """Waits until JetStream answers."""
        wait_until(self._answers, timeout=timeout, message="JetStream answers")

    def _answers(self) -> bool:
        try:
            # nats-py would wait for two seconds before it tries again.
            for server in self.servers:
                socket.create_connection((server.host, server.port), 1).close()
            self.ask(lambda context: context.account_info())
        except Exception:
            return False
        return True

    def ask(self, work: Callable[[JetStreamContext], Awaitable[Result]], **options: object) -> Result:
        """Does something with JetStream on a connection of its own. `options` are those of nats.connect."""

        async def connected() -> Result:
            client = await nats.connect(self.urls, allow_reconnect=False, connect_timeout=2, error_cb=_quiet, **options)
            try:
                return await work(client.jetstream(timeout=5))
            finally:
                await client.close()

        return asyncio.run(connected())


async def _quiet(error: Exception) -> None:
    """Takes the errors that nats-py would print."""
