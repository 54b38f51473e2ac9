"""A running `serve` under attack: who is served meanwhile, how its loop, its memory and its log look afterwards."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from appliance.core.process.control_socket import short_name
from tests.conftest import WIDGETS
from tests.serving.conftest import Node
from tests.serving.fetch.wire import ask, fetch_request, http_ask, post_headers
from tests.support.gitutil import wait_until
from tests.support.watchdog import Watchdog

WAIT = 60.0
"""Seconds that an answer may take: for hangs alone, since the machine may be busy."""
LONGEST_STOP = 0.15
"""Seconds of processor time between two beats of the loop. The longest turn takes 20 to 40 ms beside two busy loops on
two cores, where single beats took up to 63 ms for no cause that was found. Nothing can be tried again here as in
`budget.timed`."""
MOST_GROWTH = 96 * 1024
"""KiB that the memory of `serve` may grow, once what it keeps on purpose (memos, snapshots) is in place."""

Address = tuple[str, int] | Path


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    split = urlsplit(url)
    assert split.hostname and split.port
    return split.hostname, split.port


def say(address: Address, parts: list[bytes], *, ends: bool = True) -> bytes:
    """What a guest is answered that says this and, with `ends`, half-closes. Less when it is cut off."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    answer = bytearray()
    with socket.socket(family) as sock:
        sock.settimeout(WAIT)
        if isinstance(address, Path):
            with short_name(address) as name:
                sock.connect(name)
        else:
            sock.connect(address)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                sock.sendall(part)
            if ends:
                # The server may have hung up already.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                answer += data
    return bytes(answer)


@dataclass
class Besieged:
    """A node whose guests are attacked beside each other."""

    node: Node
    watchdog: Watchdog
    served: int = 0
    _failures: list[BaseException] = field(default_factory=list)

    def memory(self, kind: str = "VmRSS") -> int:
        """Of `serve`, in KiB."""
        status = Path(f"/proc/{self.node.serve.pid}/status").read_text()
        return int(re.search(rf"^{kind}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]

    @contextlib.contextmanager
    def attacked(self) -> Iterator[None]:
        """While the block attacks, a healthy guest is served all the time; afterwards nothing is wrong."""
        log, before = len(self.node.serve.log()), self.memory()
        self.watchdog.forget()
        done = threading.Event()
        healthy = threading.Thread(target=self._be_served, args=(done,))
        healthy.start()
        try:
            yield
        finally:
            done.set()
            healthy.join(2 * WAIT)
        assert not healthy.is_alive() and self.served, "a healthy guest waits"
        assert not self._failures, self._failures
        assert self.node.serve.running
        self.assert_log_is_clean(log)
        assert self.watchdog.longest() < LONGEST_STOP, "the loop stood still"
        wait_until(lambda: self.memory() - before < MOST_GROWTH, timeout=WAIT, message="the memory is given back")

    def _be_served(self, done: threading.Event) -> None:
        serve, tip = self.node.serve, self.node.tip
        request = fetch_request(tip, "deepen 1", "ofs-delta")
        expected = ask(serve, WIDGETS, request)
        try:
            while not done.is_set():
                assert http_ask(f"{serve.http_url}/healthz").status == 200
                assert http_ask(f"{serve.admin_url}/healthz").status == 200
                assert ask(serve, WIDGETS, request) == expected
                url = f"{serve.http_url}/{WIDGETS}/git-upload-pack"
                assert http_ask(url, "POST", post_headers(), request).body == expected
                self.served += 1
                done.wait(0.05)
        except BaseException as error:
            self._failures.append(error)

    def assert_log_is_clean(self, start: int = 0) -> None:
        """No error, no traceback, and nothing that a terminal would take for a command."""
        log = self.node.serve.log()[start:]
        lines = [line for line in log.splitlines() if " ERROR " in line or " CRITICAL " in line or "Traceback" in line]
        assert not lines, "\n".join(lines)[:4000]
        assert not (found := re.findall(r"[^\n]*[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e][^\n]*", log)), found[:3]
