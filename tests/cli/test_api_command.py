"""`api`: one request on the control socket, from the shell."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.process.owner import claim
from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import git
from tests.support.serve import Serve, wait_until
from tests.support.upstream import HttpUpstream


@pytest.fixture
def node(serve_factory: ServeFactory) -> Serve:
    """A running node without repositories."""
    return serve_factory().start()


@pytest.fixture
def stream(node: Serve, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`api GET /v1/events`, once it has printed something; `stream.out` beside is what."""
    out = tmp_path / "stream.out"
    command = [*node.command, "--state", str(node.state), "api", "GET", "/v1/events"]
    with out.open("wb") as stdout, (tmp_path / "stream.err").open("wb") as stderr:
        process = subprocess.Popen(command, cwd=node.cwd, env=node.env, stdout=stdout, stderr=stderr)
    wait_until(lambda: out.stat().st_size, message="the stream begins")
    yield process
    process.kill()
    process.wait()


def test_a_document_is_printed_as_it_came(node: Serve) -> None:
    """On stdout alone, with exit code 0. HEAD has no body."""
    done = node.cli("api", "get", "/v1/repos?limit=1")
    assert (json.loads(done.stdout), done.stderr) == ({"items": [], "next": None}, "")
    assert node.cli("api", "HEAD", "/v1/repos").stdout == ""


def test_a_problem_is_printed_and_the_exit_code_is_1(node: Serve) -> None:
    """The document on stdout, the status on stderr."""
    done = node.cli("api", "GET", "/v1/repos/acme/none", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == 404
    assert done.stderr == "status 404\n"


def test_a_path_may_have_any_letters(node: Serve) -> None:
    """Spaces, quotes and umlauts are escaped; what is escaped already stays."""
    for text in ("a b", "Zoë", 'x"y', "a%20b"):
        assert json.loads(node.cli("api", "GET", f"/v1/repos?q={text}").stdout)["items"] == []
    assert "acme/no%20ne" not in node.cli("api", "GET", "/v1/repos/acme/no%20ne", check=False).stdout


def test_a_backup_to_a_relative_path_is_refused(node: Serve) -> None:
    """It would land in the working directory of serve, which the caller does not know."""
    done = node.cli("api", "POST", "/v1/backup", "--input", "-", input='{"to": "relative"}', check=False)
    assert done.returncode == 1
    assert "the directory relative of the backup is not an absolute path" in json.loads(done.stdout)["detail"]
    assert node.cwd is None or not (Path(node.cwd) / "relative").exists()


def test_a_body_comes_from_a_file_or_from_stdin(node: Serve, upstream: HttpUpstream, tmp_path: Path) -> None:
    """With `--accept`, progress is printed, too."""
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"url": upstream.url(WIDGETS)}))
    lines = node.cli("api", "POST", "/v1/repos", "--input", str(body), "--accept", "application/x-ndjson").stdout
    assert json.loads(lines.splitlines()[-1])["result"]["name"] == WIDGETS
    changed = node.cli("api", "PATCH", f"/v1/repos/{WIDGETS}", "--input", "-", input='{"interval": 30}')
    assert json.loads(changed.stdout)["interval"] == 30


def test_a_body_that_is_refused_unread_gets_the_reason(node: Serve) -> None:
    """`serve` hangs up on it, and its response is read all the same."""
    done = node.cli("api", "POST", "/v1/repos", "--input", "-", input="0" * 20_000_000, check=False)
    assert (done.returncode, done.stderr) == (1, "status 413\n")


@pytest.mark.parametrize(
    "words",
    [("FETCH", "/v1/repos"), ("GET", "/metrics"), ("GET", "v1/repos"), ("GET", "/v1/repos", "--input", "/nowhere")],
)
def test_wrong_usage_reaches_no_serve(serve_factory: ServeFactory, words: tuple[str, ...]) -> None:
    """None runs here."""
    assert serve_factory().cli("api", *words, check=False).returncode == 2


def test_without_a_serve_the_exit_code_is_4(serve_factory: ServeFactory) -> None:
    done = serve_factory().cli("api", "GET", "/v1/status", check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "serve is not running on" in done.stderr


def test_ctrl_c_ends_a_stream(stream: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Quietly, because a stream of events has no other end."""
    stream.send_signal(signal.SIGINT)
    assert stream.wait(20) == 0
    assert (tmp_path / "stream.err").read_text() == ""


def test_events_are_printed_as_they_happen(
    node: Serve, stream: subprocess.Popen[bytes], upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Not when a buffer is full."""
    node.cli("add-repo", upstream.url(WIDGETS))
    wait_until(lambda: b'"refs-moved"' in (tmp_path / "stream.out").read_bytes(), message="the event is printed")


def test_a_stream_ends_with_serve(node: Serve, stream: subprocess.Popen[bytes]) -> None:
    """Whatever ended it, no traceback, and an exit code that tells a script to come back."""
    node.kill()
    assert stream.wait(20) == 4


def test_a_file_that_was_cut_off_is_no_success(tmp_path: Path, serve_factory: ServeFactory) -> None:
    """`serve` dies with half a file sent. Python's `read1` ends there as if all had come."""
    node = serve_factory()
    control = tmp_path / "control.sock"
    owned = claim(Layout(node.state), "serve", control=control)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(control))
    listening.listen()

    def die() -> None:
        connection, _ = listening.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        connection.close()

    dying = threading.Thread(target=die, daemon=True)
    dying.start()
    try:
        done = node.cli("api", "GET", f"/v1/repos/{WIDGETS}/files/README.md", check=False)
    finally:
        listening.close()
        owned.release()
    assert (done.returncode, done.stdout) == (4, "half")
    assert "ended before" in done.stderr


def test_a_session_is_read_in_every_form(serve: Serve, tmp_path: Path) -> None:
    """A diff as text and as JSON, and a bundle byte for byte."""
    guest = serve.clone(tmp_path / "guest", WIDGETS)
    (guest / "NEWS.md").write_text("new\n")
    git("add", "NEWS.md", cwd=guest)
    git("commit", "--quiet", "-m", "News", cwd=guest)
    git("push", "--quiet", "origin", "HEAD:refs/agents/s-1", cwd=guest)
    path = f"/v1/repos/{WIDGETS}/sessions/s-1"
    assert "+new\n" in serve.cli("api", "GET", f"{path}/diff").stdout
    as_json = serve.cli("api", "GET", f"{path}/diff", "--accept", "application/json")
    assert [each["path"] for each in json.loads(as_json.stdout)["files"]] == ["NEWS.md"]
    argv = [*serve.command, "--state", str(serve.state), "api", "GET", f"{path}/bundle"]
    done = subprocess.run(argv, cwd=serve.cwd, env=serve.env, capture_output=True, check=True, timeout=60)
    (tmp_path / "s-1.bundle").write_bytes(done.stdout)
    assert "refs/agents/s-1" in git("bundle", "list-heads", str(tmp_path / "s-1.bundle"), cwd=guest)
