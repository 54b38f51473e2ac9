"""docs/examples/platform.py does what it shows, on the admin port with a token and on the control socket."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import git
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

EXAMPLE = ROOT / "docs" / "examples" / "platform.py"


class Cutting(socketserver.StreamRequestHandler):
    """Passes one connection on, and cuts an event stream off after each event."""

    def handle(self) -> None:
        lines = list(iter(self.rfile.readline, b"\r\n"))
        length = sum(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:"))
        request = b"".join(lines) + b"\r\n" + self.rfile.read(length)
        self.server.requests.append(request)  # type: ignore[attr-defined]
        with socket.create_connection(self.server.target) as serve:  # type: ignore[attr-defined]
            serve.sendall(request)
            while data := serve.recv(65536):
                self.request.sendall(data)
                if b"data:" in data and request.startswith(b"GET /v1/events "):
                    return


class CuttingProxy(socketserver.ThreadingTCPServer):
    """In front of the admin port at `target`. `requests` are the requests that came, each with its head."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Cutting)
        self.target, self.requests = target, list[bytes]()


def run(serve: Serve, tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the example with a Python that knows the standard library alone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return subprocess.run(
        [sys.executable, "-I", str(EXAMPLE), *arguments],
        env={**serve.env, "TMPDIR": str(scratch), **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.slow
@pytest.mark.parametrize("face", ["admin port", "control socket"])
def test_the_platform_takes_an_agents_work_home(
    face: str, upstream: HttpUpstream, serve_factory: ServeFactory, tmp_path: Path
) -> None:
    """From an upstream that the node does not know to the agent's commit in a clone of it."""
    serve = serve_factory().start()
    if face == "admin port":
        token = serve.cli("api-token", "issue", "--scope", "operate").stdout.strip()
        env = {"GITMIRROR_API": serve.admin_url, "GITMIRROR_API_TOKEN": token}
    else:
        env = {"GITMIRROR_API": str(serve.state / "control.sock")}
    done = run(serve, tmp_path, upstream.url(WIDGETS), **env)
    assert done.returncode == 0, done.stderr
    [scratch] = (tmp_path / "scratch").iterdir()
    head = git("rev-parse", "HEAD", cwd=scratch / "guest")
    assert git("rev-parse", "fix-dns", cwd=scratch / "clone") == head
    assert git("rev-parse", "fix-dns^", cwd=scratch / "clone") == git("rev-parse", "HEAD", cwd=scratch / "clone")
    lines = done.stdout.splitlines()
    assert f"fix-dns is recorded at {head}" in lines and f"{head} Fix DNS" in lines
    assert "+An agent was here." in lines and lines[-1] == "fix-dns is dropped"
    assert serve.cli_json("sessions") == []


@pytest.mark.slow
def test_a_stream_that_is_cut_off_loses_no_event(
    upstream: HttpUpstream, serve_factory: ServeFactory, tmp_path: Path
) -> None:
    """The platform comes back with the id of the last event that it got."""
    serve = serve_factory().start()
    token = serve.cli("api-token", "issue", "--scope", "operate").stdout.strip()
    split = urlsplit(serve.admin_url)
    assert split.hostname and split.port
    with CuttingProxy((split.hostname, split.port)) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{proxy.server_address[1]}"
        done = run(serve, tmp_path, upstream.url(WIDGETS), GITMIRROR_API=here, GITMIRROR_API_TOKEN=token)
        proxy.shutdown()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "fix-dns is dropped"), done.stderr
    streams = [request for request in proxy.requests if request.startswith(b"GET /v1/events ")]
    assert len(streams) > 1 and all(b"Last-Event-ID: " in request for request in streams[1:])


@pytest.mark.slow
def test_the_platform_reports_what_went_wrong(serve_factory: ServeFactory, tmp_path: Path) -> None:
    """A token that does not suffice: the problem and its hint, in one line."""
    serve = serve_factory().start()
    token = serve.cli("api-token", "issue", "--scope", "read").stdout.strip()
    url = "https://127.0.0.1:1/acme/widgets"
    done = run(serve, tmp_path, url, GITMIRROR_API=serve.admin_url, GITMIRROR_API_TOKEN=token)
    assert done.returncode == 1
    assert done.stderr.startswith("POST /v1/repos: a token of scope read may not do this (")
