"""Upstreams that require a token: the token never leaks, and each error with it is reported and can be mended."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.access.conftest import NOWHERE, SECRET, SETTLED, TOKEN, Sampling, encodings, lock, raw_http, write_secret
from tests.conftest import WIDGETS, ServeFactory
from tests.refresh.node import repo_status
from tests.serving.fetch.wire import error_of, open_v2, v2_request
from tests.support.generate import add_commit
from tests.support.gitutil import refs
from tests.support.pkt import daemon_request, pkt, read_pkts
from tests.support.serve import Section, Serve, wait_until
from tests.support.upstream import HttpUpstream
from tests.workspace.web import get

pytestmark = pytest.mark.slow

QUICK = {"interval": "1s", "timeout": "60s"}
Start = Callable[..., Serve]


@pytest.fixture
def locked(upstream: HttpUpstream, generated_bare: Path) -> HttpUpstream:
    """The upstream of `WIDGETS`, and of `SECRET` that wants the token."""
    upstream.add(SECRET, generated_bare)
    lock(upstream, SECRET)
    return upstream


@pytest.fixture
def start(serve_factory: ServeFactory, locked: HttpUpstream) -> Start:
    """Starts an appliance that follows both; the keys of an entry for `SECRET` are given."""

    def make(refresh: Section = SETTLED, env: Mapping[str, str] | None = None, **entry: str) -> Serve:
        entries = [{"url": locked.url(SECRET), **entry}] if entry else []
        repos = [locked.url(SECRET), locked.url(WIDGETS)]
        return serve_factory(repos=repos, refresh=refresh, credentials=entries, env=env).start()

    return make


def holders(top: Path, secrets: list[bytes]) -> list[str]:
    """The files below a directory that a secret is in."""
    found = []
    for path in top.rglob("*"):
        # What is gone meanwhile was the record of a process.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
                found.append(str(path))
    return found


def test_it_is_mirrored_and_the_token_is_nowhere(start: Start, locked: HttpUpstream, tmp_path: Path) -> None:
    """It is in no process's arguments or environment while a refresh runs, in no file of the node and not in its log.

    It is not in a trace of git either, which the environment of `serve` may enable.
    """
    token_file = write_secret(tmp_path / "token", TOKEN + "\n")
    secrets = encodings(TOKEN)
    locked.on(SECRET).slow = 400_000
    with Sampling(secrets) as sampling:
        traces = {"GIT_TRACE", "GIT_TRACE2", "GIT_TRACE_CURL", "GIT_TRACE_PACKET"}
        env = {name: str(tmp_path / "state" / name) for name in traces} | {"GIT_TRACE_REDACT": "0"}
        serve = start(env=env, token_file=str(token_file))
        serve.wait_for_repo(SECRET)
        tip = add_commit(locked.path(SECRET), "main", {"x": "1\n"})
        assert serve.cli_json("refresh", SECRET)[0]["result"] == "moved"
    assert sampling.saw_git and not sampling.found
    assert refs(serve.mirror(SECRET))["refs/heads/main"] == tip
    assert holders(serve.state, secrets) == []
    assert all(secret.decode() not in serve.log() for secret in secrets)
    assert {request.user for request in locked.requests if request.repo == SECRET} == {"", "x-access-token"}
    # It is offered to no repository that does not ask.
    assert {request.user for request in locked.requests if request.repo == WIDGETS} == {""}


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda file: write_secret(file, "wrong\n"), r"the upstream refused the credential of [[credentials]] "),
        (lambda file: file, "cannot be read: No such file"),
        (lambda file: write_secret(file, "\n"), "is empty"),
        (lambda file: write_secret(file, f"{TOKEN}\nhost=elsewhere\n"), "is not one line of text"),
        (lambda file: write_secret(file, TOKEN).chmod(0o644), "is open to other users (mode 0644)"),
    ],
    ids=["wrong", "missing", "empty", "two lines", "open to others"],
)
def test_a_token_that_does_not_do_is_told_and_mended_by_its_file(
    start: Start, locked: HttpUpstream, tmp_path: Path, prepare: Callable[[Path], object], words: str
) -> None:
    """That repository fails with the reason, the other one stays fresh. With the right file, it recovers by itself."""
    token_file = tmp_path / "token"
    prepare(token_file)
    serve = start(refresh=QUICK, token_file=str(token_file))
    status = serve.wait_for_repo(SECRET, "failing")
    assert words in status["last_error"] and str(token_file) in status["last_error"]
    assert TOKEN not in status["last_error"]
    assert status["error"] == "auth" and status["hint"]
    serve.wait_for_repo(WIDGETS)
    write_secret(tmp_path / "new", TOKEN + "\n").rename(token_file)
    assert serve.wait_for_repo(SECRET)["last_error"] is None


@pytest.mark.slow
def test_an_expired_token_leaves_what_is_there(start: Start, locked: HttpUpstream, tmp_path: Path) -> None:
    """The mirror stays as it was, and the error says why. With a new token in the file, refreshes succeed again."""
    token_file = write_secret(tmp_path / "token", TOKEN)
    serve = start(refresh=QUICK, token_file=str(token_file))
    serve.wait_for_repo(SECRET)
    locked.on(SECRET).password = "the next one"
    tip = add_commit(locked.path(SECRET), "main", {"x": "1\n"})
    status = serve.wait_for_repo(SECRET, "failing")
    assert status["last_error"].startswith("the upstream refused the credential") and status["error"] == "auth"
    token_file.write_text("the next one\n")
    serve.wait_for_ref(SECRET, "refs/heads/main", tip)


def test_a_forbidden_repository(start: Start, locked: HttpUpstream, tmp_path: Path) -> None:
    """403 is reported as a refusal, and 404 as a repository that the credential may not see, as GitHub means it."""
    locked.on(SECRET).status = 403
    serve = start(refresh=QUICK, token_file=str(write_secret(tmp_path / "token", TOKEN)))
    assert "refused the credential" in serve.wait_for_repo(SECRET, "failing")["last_error"]
    locked.on(SECRET).status = 404
    wait_until(
        lambda: "may not see it" in (repo_status(serve, SECRET)["last_error"] or ""),
        message="404 is told",
        interval=0.2,
    )


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Writes a command that says how often it ran."""

    def write(body: str) -> Path:
        path = tmp_path / "print token"
        path.write_text(f"#!/bin/sh\necho run >>'{tmp_path}/runs'\n{body}\n")
        path.chmod(0o700)
        return path

    yield write


def test_a_command_prints_the_token(
    start: Start, locked: HttpUpstream, tmp_path: Path, script: Callable[[str], Path]
) -> None:
    """The token is cached for a while. If the command fails, its stderr is reported, but never its output."""
    command = script(f"echo {TOKEN}; echo 'vault is sealed' >&2; exit 3")
    serve = start(refresh=QUICK, command=f"'{command}'")
    status = serve.wait_for_repo(SECRET, "failing")
    assert "ended with code 3: vault is sealed" in status["last_error"] and TOKEN not in status["last_error"]
    command.write_text(command.read_text().replace("exit 3", "exit 0"))
    serve.wait_for_repo(SECRET)
    runs = (tmp_path / "runs").read_text().count("\n")
    for _ in range(3):
        serve.cli("refresh", SECRET)
    assert (tmp_path / "runs").read_text().count("\n") == runs
    assert holders(serve.state, encodings(TOKEN)) == []


def test_a_command_that_never_stops_complaining_costs_nothing(
    start: Start, locked: HttpUpstream, script: Callable[[str], Path]
) -> None:
    """Only the end of its stderr is stored. All of it took as much memory as half a minute of output."""
    command = script("head -c 200000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo 'vault is sealed' >&2; exit 3")
    serve = start(command=f"'{command}'")
    status = serve.wait_for_repo(SECRET, "failing")
    assert "ended with code 3: vault is sealed" in status["last_error"]
    memory = Path(f"/proc/{serve.pid}/status").read_text()
    assert int(memory.partition("VmHWM:")[2].split()[0]) < 150_000, memory


def test_a_redirect_to_another_host_carries_no_token(
    serve_factory: ServeFactory, locked: HttpUpstream, tmp_path: Path
) -> None:
    """Neither at once nor after the first host received it. The error names the redirect's target."""
    seen: list[str | None] = []

    class Moved(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            asks = demand.is_set() and seen[-1] is None
            self.send_response(401 if asks else 302)
            self.send_header("WWW-Authenticate", 'Basic realm="x"') if asks else self.send_header("Location", goal)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    demand, goal = threading.Event(), locked.url(SECRET) + "/info/refs?service=git-upload-pack"
    with ThreadingHTTPServer(("127.0.0.1", 0), Moved) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        token_file = write_secret(tmp_path / "token", TOKEN)
        serve = serve_factory(refresh=SETTLED, credentials=[{"url": url, "token_file": str(token_file)}]).start()
        done = serve.cli("add-repo", f"{url}/{SECRET}", check=False)
        assert done.returncode == 1 and f"redirected to '{locked.url(SECRET)}'".replace("'", "") in done.stderr
        demand.set()
        assert serve.cli("refresh", SECRET, check=False).returncode == 1
        server.shutdown()
    assert any(seen) and locked.requests
    assert {request.user for request in locked.requests} == {""}


def test_open_readers_and_a_reload(start: Start, locked: HttpUpstream, tmp_path: Path) -> None:
    """`readers = "open"` serves to everybody; a reload without it stops that at once, a reload with it opens again."""
    token_file = str(write_secret(tmp_path / "token", TOKEN))
    serve = start(token_file=token_file, readers="open")
    serve.wait_for_repo(SECRET)
    serve.clone(tmp_path / "open", SECRET)
    serve.clone(tmp_path / "http", SECRET, http=True)
    connected = open_v2(serve, SECRET)
    assert (repo_status(serve, SECRET)["private"], repo_status(serve, SECRET)["readers"]) == (False, "open")
    assert SECRET in get(f"{serve.http_url}/guest.sh").text

    def reload(**entry: str) -> None:
        entries = [{"url": locked.url(SECRET), **entry}] if entry else []
        serve.configure([locked.url(SECRET), locked.url(WIDGETS)], refresh=SETTLED, credentials=entries)
        serve.reload()

    def status() -> int:
        return get(f"{serve.http_url}/{SECRET}/freshness").status

    reload(token_file=token_file)
    wait_until(lambda: status() == 404, message="it is private")
    with connected:
        connected.sendall(v2_request("ls-refs"))
        assert "is not mirrored here" in error_of(connected)
    assert SECRET not in get(f"{serve.http_url}/guest.sh").text
    # Taking the entry out is no way to publish what it has fetched.
    reload()
    wait_until(lambda: repo_status(serve, SECRET)["readers"] == "token", message="the entry is gone")
    assert serve.cli("refresh", SECRET, check=False).returncode == 1
    assert status() == 404
    # But when the upstream is open to everybody, so is the mirror.
    locked.on(SECRET).reset()
    serve.cli("refresh", SECRET)
    assert status() == 200 and repo_status(serve, SECRET)["readers"] is None


def test_who_was_connected_before_a_reload_gets_nothing_of_it_either(
    start: Start, locked: HttpUpstream, tmp_path: Path
) -> None:
    """Refs were shown before, and the wants arrive once it is private: over git:// in v0, and in a slow HTTP body."""
    token_file = str(write_secret(tmp_path / "token", TOKEN))
    serve = start(token_file=token_file, readers="open")
    serve.wait_for_repo(SECRET)
    tip = refs(locked.path(SECRET))["refs/heads/main"]
    wants = pkt(f"want {tip}\n") + b"0000" + pkt("done\n")
    address = urlsplit(serve.http_url)
    with (
        daemon_request(*serve.git_address, "git-upload-pack", f"/{SECRET}") as relayed,
        socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as posting,
    ):
        assert tip.encode() in read_pkts(relayed)[0]
        posting.sendall(
            f"POST /{SECRET}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {len(wants)}\r\n"
            "Content-Type: application/x-git-upload-pack-request\r\nConnection: close\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert posting.recv(65536).startswith(b"HTTP/1.1 100")
        entries = [{"url": locked.url(SECRET), "token_file": token_file}]
        serve.configure([locked.url(SECRET), locked.url(WIDGETS)], refresh=SETTLED, credentials=entries)
        serve.reload()
        wait_until(lambda: get(f"{serve.http_url}/{SECRET}/freshness").status == 404, message="it is private")
        relayed.sendall(wants)
        posting.sendall(wants)
        assert relayed.recv(65536) == b""
        assert posting.recv(65536).startswith(b"HTTP/1.1 404")


def test_a_first_clone_that_is_private_is_not_seen_while_it_runs(
    start: Start, locked: HttpUpstream, tmp_path: Path
) -> None:
    """Registered, cloning, disabled or enabled, no guest can see it at any time, also not through add-repo."""
    locked.on(SECRET).hang = True
    serve = start(url=locked.url("acme"), token_file=str(write_secret(tmp_path / "token", TOKEN)))
    serve.wait_for_repo(SECRET, "cloning")

    def told(name: str) -> bytes:
        request = f"GET /{name}/freshness HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"
        return raw_http(serve, request.encode()).replace(name.encode(), b"NAME")

    assert told(SECRET) == told(NOWHERE)
    locked.on(SECRET).hang = False
    serve.wait_for_repo(SECRET)
    assert told(SECRET) == told(NOWHERE)
    token = serve.cli_json("token", "issue", "--repo", SECRET)["token"]
    locked.add("acme/late", locked.path(WIDGETS))
    added = serve.cli_json("add-repo", locked.url("acme/late"))
    assert added["private"] is True
    assert get(f"{serve.http_url}/acme/late/freshness").status == 404
    serve.cli("disable", "acme/late")
    serve.cli("enable", "acme/late")
    assert get(f"{serve.http_url}/acme/late/freshness", authorization=f"Bearer {token}").status == 404
    assert get(f"{serve.http_url}/{SECRET}/freshness", authorization=f"Bearer {token}").status == 200


def test_an_entry_that_is_taken_out_during_the_first_clone_publishes_nothing(
    start: Start, locked: HttpUpstream, tmp_path: Path
) -> None:
    """The clone is aborted, because there was no mirror yet that could have been marked as private."""
    locked.on(SECRET).hang_after = 1000
    serve = start(token_file=str(write_secret(tmp_path / "token", TOKEN)))
    wait_until(lambda: locked.hanging, message="the clone is under way")
    serve.configure([locked.url(SECRET), locked.url(WIDGETS)], refresh=SETTLED)
    serve.reload()
    wait_until(lambda: repo_status(serve, SECRET)["readers"] is None, message="the entry is gone")
    locked.on(SECRET).hang_after = None
    serve.wait_for_repo(SECRET, "failing")

    def told() -> bool:
        # Not by its last error: the next try, without the token, has one of its own.
        history = serve.cli_json("refreshes", SECRET)
        return any("was removed during the first clone" in (row["error"] or "") for row in history)

    wait_until(told, message="the reason is told")
    assert get(f"{serve.http_url}/{SECRET}/freshness").status == 404 and not serve.mirror(SECRET).exists()


def test_an_entry_that_is_taken_out_before_its_command_answers_publishes_nothing(
    start: Start, locked: HttpUpstream, tmp_path: Path, script: Callable[[str], Path]
) -> None:
    """A mirror whose public upstream became private is marked before the refresh first waits."""
    locked.on(SECRET).reset()
    serve = start()
    serve.wait_for_repo(SECRET)
    lock(locked, SECRET)
    command = script(f"until test -e '{tmp_path}/go'; do sleep 0.05; done; echo {TOKEN}")
    repos = [locked.url(SECRET), locked.url(WIDGETS)]
    serve.configure(repos, refresh=SETTLED, credentials=[{"url": locked.url(SECRET), "command": f"'{command}'"}])
    serve.reload()
    wait_until(lambda: repo_status(serve, SECRET)["private"], message="it is private")
    new = add_commit(locked.path(SECRET), "main", {"a": "1"})
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(serve.cli, "refresh", SECRET)
        wait_until((tmp_path / "runs").exists, message="the command runs")
        serve.configure(repos, refresh=SETTLED)
        serve.reload()
        wait_until(lambda: "read again" in serve.log().rpartition("read again")[0], message="the second reload")
        (tmp_path / "go").touch()
        refreshed.result()
    assert refs(serve.mirror(SECRET))["refs/heads/main"] == new
    assert get(f"{serve.http_url}/{SECRET}/freshness").status == 404


def test_without_serve_add_repo_uses_the_token_too(
    serve_factory: ServeFactory, locked: HttpUpstream, tmp_path: Path
) -> None:
    """And what it has fetched is private from its first byte on."""
    token_file = write_secret(tmp_path / "token", TOKEN)
    entry = {"url": locked.url(SECRET), "token_file": str(token_file)}
    serve = serve_factory(refresh=SETTLED, credentials=[entry])
    assert serve.cli_json("add-repo", locked.url(SECRET))["private"] is True
    token = serve.cli_json("token", "issue", "--repo", SECRET)["token"]
    serve.start()
    assert get(f"{serve.http_url}/{SECRET}/freshness").status == 404
    assert get(f"{serve.http_url}/{SECRET}/freshness", authorization=f"Bearer {token}").status == 200
