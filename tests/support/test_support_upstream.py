"""Tests of the upstreams and the raw client of the tests: each fault must be the one that it claims to be."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support import generate, pkt
from tests.support.gitutil import GitFailed, clean_env, commit_files, fsck, git, refs, remote_refs, wait_until
from tests.support.processes import processes_of
from tests.support.upstream import GitDaemonUpstream, HttpUpstream

# Upstream over HTTP


@pytest.mark.parametrize("version", ["0", "1", "2"])
@pytest.mark.parametrize("suffix", ["", ".git", "/"])
def test_clone_over_http(upstream: HttpUpstream, tmp_path: Path, version: str, suffix: str) -> None:
    url = upstream.url(WIDGETS) + suffix
    git("-c", f"protocol.version={version}", "clone", "--quiet", "--mirror", url, str(tmp_path / "made"))
    assert refs(tmp_path / "made") == refs(upstream.path(WIDGETS))
    fsck(tmp_path / "made")
    assert upstream.count(WIDGETS, "git-upload-pack") == upstream.count() >= 2
    assert {each.protocol for each in upstream.requests} == {"" if version == "0" else f"version={version}"}


def test_partial_and_shallow_clones_over_http(upstream: HttpUpstream, tmp_path: Path) -> None:
    git("clone", "--quiet", "--depth=1", "--filter=blob:none", upstream.url(WIDGETS), str(tmp_path / "made"))
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "made") == "1"
    assert git("status", "--porcelain", cwd=tmp_path / "made") == ""


@pytest.mark.slow
def test_a_long_negotiation_is_sent_compressed(upstream: HttpUpstream, tmp_path: Path) -> None:
    git("clone", "--quiet", upstream.url(WIDGETS), str(tmp_path / "made"))
    for number in range(40):
        commit_files(tmp_path / "made", {"mine.txt": f"{number}\n"}, f"Mine {number}")
    tip = generate.add_commit(upstream.path(WIDGETS), "main", {"new": "1\n"})
    trace = tmp_path / "trace"
    git("fetch", "--quiet", cwd=tmp_path / "made", env=clean_env(tmp_path, GIT_TRACE_CURL=str(trace)))
    assert "Content-Encoding: gzip" in trace.read_text()
    assert git("rev-parse", "origin/main", cwd=tmp_path / "made") == tip


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_push_over_http_whole_and_in_chunks(upstream: HttpUpstream, tmp_path: Path, size: int) -> None:
    work = tmp_path / "made"
    git("clone", "--quiet", upstream.url(WIDGETS), str(work))
    upstream.forget()
    oid = commit_files(work, {"large": os.urandom(size)}, "Large")
    git("push", "--quiet", "origin", "HEAD:refs/heads/large", cwd=work)
    assert refs(upstream.path(WIDGETS))["refs/heads/large"] == oid
    assert upstream.count(service="git-receive-pack") >= 2
    fsck(upstream.path(WIDGETS))


def test_an_upstream_that_takes_no_pushes(generated_bare: Path, tmp_path: Path) -> None:
    with HttpUpstream(tmp_path / "up", push=False) as upstream:
        upstream.add(WIDGETS, generated_bare)
        git("clone", "--quiet", upstream.url(WIDGETS), str(tmp_path / "made"))
        with pytest.raises(GitFailed, match="403"):
            git("push", "--quiet", "origin", "HEAD:refs/heads/x", cwd=tmp_path / "made")


@pytest.mark.parametrize("path", ["acme/other", "nothing", "acme/../acme/widgets", ""])
def test_what_is_not_there_is_404(upstream: HttpUpstream, path: str) -> None:
    status, _ = _get(f"http://127.0.0.1:{upstream.port}/{path}/info/refs?service=git-upload-pack")
    assert status == 404


def test_capabilities_are_those_of_the_repository(upstream: HttpUpstream) -> None:
    """They are asked for once for each config: one that is changed is another."""

    def told() -> bytes:
        url = f"{upstream.url(WIDGETS)}/info/refs?service=git-upload-pack"
        request = urllib.request.Request(url, headers={"Git-Protocol": "version=2"})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Content-Type"] == "application/x-git-upload-pack-advertisement"
            return bytes(answer.read())

    first = told()
    assert b"version 2" in first and b"fetch=shallow wait-for-done filter\n" in first and told() == first
    git("config", "uploadpack.allowFilter", "false", cwd=upstream.path(WIDGETS))
    assert b"fetch=shallow wait-for-done\n" in told()
    git("config", "uploadpack.allowFilter", "true", cwd=upstream.path(WIDGETS))
    assert told() == first


def test_an_empty_repository(upstream: HttpUpstream) -> None:
    upstream.add("acme/empty")
    assert remote_refs(upstream.url("acme/empty")) == {}


def test_fail_status_and_not_found(upstream: HttpUpstream) -> None:
    upstream.add("acme/other", upstream.path(WIDGETS))
    own = upstream.on(WIDGETS)
    for name, value, said in (
        ("fail", True, "500"),
        ("status", 429, "429"),
        ("not_found", True, "not found"),
    ):
        setattr(own, name, value)
        with pytest.raises(GitFailed, match=said):
            remote_refs(upstream.url(WIDGETS))
        assert remote_refs(upstream.url("acme/other"))
        own.reset()
        assert remote_refs(upstream.url(WIDGETS))
        setattr(upstream.everywhere, name, value)
        with pytest.raises(GitFailed, match=said):
            remote_refs(upstream.url("acme/other"))
        upstream.reset()


def test_retry_after(upstream: HttpUpstream) -> None:
    upstream.everywhere.status, upstream.everywhere.retry_after = 429, 7
    status, headers = _get(upstream.url(WIDGETS) + "/info/refs?service=git-upload-pack")
    assert (status, headers["Retry-After"]) == (429, "7")


def test_password(upstream: HttpUpstream) -> None:
    own = upstream.on(WIDGETS)
    own.require_password, own.user, own.password = True, "bot", "s3cret"
    with pytest.raises(GitFailed, match="could not read Username"):
        remote_refs(upstream.url(WIDGETS))
    with pytest.raises(GitFailed, match="Authentication failed"):
        remote_refs(upstream.url(WIDGETS).replace("//", "//bot:wrong@"))
    assert remote_refs(upstream.url(WIDGETS).replace("//", "//bot:s3cret@"))
    assert upstream.requests[-1].user == "bot"


@pytest.mark.slow
def test_hang_and_release(upstream: HttpUpstream) -> None:
    upstream.add("acme/other", upstream.path(WIDGETS))
    upstream.on(WIDGETS).hang = True
    with _ls_remote(upstream.url(WIDGETS)) as waiting:
        wait_until(lambda: upstream.hanging == 1)
        assert remote_refs(upstream.url("acme/other"))
        assert waiting.poll() is None
        assert upstream.count(WIDGETS) == 1
        upstream.reset()
        out, _ = waiting.communicate(timeout=60)
        assert b"refs/heads/main" in out


@pytest.mark.slow
def test_a_hung_request_ends_with_its_client(upstream: HttpUpstream) -> None:
    upstream.everywhere.hang = True
    with _ls_remote(upstream.url(WIDGETS)) as waiting:
        wait_until(lambda: upstream.hanging == 1)
        os.killpg(waiting.pid, signal.SIGKILL)
    wait_until(lambda: upstream.hanging == 0)


def test_close_releases_what_hangs_and_leaves_no_process(generated_bare: Path, tmp_path: Path) -> None:
    upstream = HttpUpstream(tmp_path / "up")
    upstream.add(WIDGETS, generated_bare)
    upstream.everywhere.hang = True
    with _ls_remote(upstream.url(WIDGETS)) as waiting:
        wait_until(lambda: upstream.hanging == 1)
        upstream.close()
        assert waiting.wait(60) != 0
    upstream.close()
    assert not processes_of(tmp_path / "up")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", upstream.port))


@pytest.mark.slow
def test_hang_within_a_body(upstream: HttpUpstream, tmp_path: Path) -> None:
    upstream.on(WIDGETS).hang_after = 5000
    command = ["git", "clone", "--quiet", upstream.url(WIDGETS), str(tmp_path / "made")]
    cloning = subprocess.Popen(command, env=clean_env(tmp_path))
    wait_until(lambda: upstream.hanging == 1)
    assert cloning.poll() is None
    upstream.on(WIDGETS).hang_after = None
    assert cloning.wait(60) == 0
    fsck(tmp_path / "made")


def test_cut_within_a_body(upstream: HttpUpstream, tmp_path: Path) -> None:
    upstream.on(WIDGETS).cut_after = 5000
    assert remote_refs(upstream.url(WIDGETS)), "an answer shorter than the cut is whole"
    with pytest.raises(GitFailed, match=r"early EOF|transfer closed|unexpected disconnect"):
        git("clone", "--quiet", upstream.url(WIDGETS), str(tmp_path / "made"))


def test_slow(upstream: HttpUpstream) -> None:
    size = len(git("ls-remote", upstream.url(WIDGETS)))
    upstream.everywhere.slow = size * 2
    started = time.monotonic()
    assert remote_refs(upstream.url(WIDGETS))
    assert time.monotonic() - started > 0.4


def test_refuse_and_restore(upstream: HttpUpstream) -> None:
    upstream.everywhere.hang = True
    with _ls_remote(upstream.url(WIDGETS)) as waiting:
        wait_until(lambda: upstream.hanging == 1)
        upstream.refuse()
        assert waiting.wait(60) != 0
    upstream.refuse()
    with pytest.raises(GitFailed, match=r"Failed to connect|refused"):
        remote_refs(upstream.url(WIDGETS))
    upstream.reset()
    assert remote_refs(upstream.url(WIDGETS))


def test_one_connection_carries_several_requests(upstream: HttpUpstream, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    env = clean_env(tmp_path, GIT_TRACE_CURL=str(trace))
    git("clone", "--quiet", upstream.url(WIDGETS), str(tmp_path / "made"), env=env)
    # As curl has put it so far: "Re-using existing connection", "Re-using existing http: connection", "Reusing ...".
    assert re.search(r"Re-?using existing (\S+ )?connection", trace.read_text())


def test_many_clones_at_once(upstream: HttpUpstream, tmp_path: Path) -> None:
    clones = [
        subprocess.Popen(
            ["git", "clone", "--quiet", "--bare", upstream.url(WIDGETS), str(tmp_path / f"{number}")],
            env=clean_env(tmp_path),
        )
        for number in range(10)
    ]
    assert [clone.wait(60) for clone in clones] == [0] * 10
    upstream.close()
    assert not processes_of(upstream.root)


# Upstream over git://


@pytest.fixture
def daemon(generated_bare: Path, tmp_path: Path) -> Iterator[GitDaemonUpstream]:
    with GitDaemonUpstream(tmp_path / "daemon") as server:
        server.add(WIDGETS, generated_bare)
        yield server


def test_clone_over_git(daemon: GitDaemonUpstream, tmp_path: Path) -> None:
    git("clone", "--quiet", "--mirror", daemon.url(WIDGETS), str(tmp_path / "made"))
    assert refs(tmp_path / "made") == refs(daemon.path(WIDGETS))
    assert daemon.count() == daemon.count(WIDGETS) == 1
    assert daemon.count("acme/other") == 0


def test_the_daemon_hangs_and_goes_on(daemon: GitDaemonUpstream) -> None:
    daemon.hang()
    with _ls_remote(daemon.url(WIDGETS)) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
        daemon.resume()
        out, _ = waiting.communicate(timeout=60)
        assert b"refs/heads/main" in out


def test_the_daemon_stops_and_starts_on_its_port(daemon: GitDaemonUpstream) -> None:
    url = daemon.url(WIDGETS)
    daemon.hang()
    daemon.stop()
    # A child that was killed with it may be there a moment longer.
    wait_until(lambda: not processes_of(daemon.root), message="nothing of it runs on")
    with pytest.raises(GitFailed, match="unable to connect"):
        remote_refs(url)
    daemon.start()
    assert daemon.url(WIDGETS) == url
    assert remote_refs(url)


def test_the_daemon_takes_pushes_only_when_asked(daemon: GitDaemonUpstream, tmp_path: Path) -> None:
    tip = refs(daemon.path(WIDGETS))["refs/heads/main"]
    command = (pkt.ZERO, tip, "refs/heads/copy")
    assert "not enabled" in pkt.raw_push("127.0.0.1", daemon.port, f"/{WIDGETS}", [command]).error
    with GitDaemonUpstream(tmp_path / "open", push=True) as open_daemon:
        open_daemon.add(WIDGETS, daemon.path(WIDGETS))
        assert pkt.raw_push("127.0.0.1", open_daemon.port, f"/{WIDGETS}", [command]).accepted


# The raw client


@pytest.fixture
def writable(generated_bare: Path, tmp_path: Path) -> Iterator[GitDaemonUpstream]:
    with GitDaemonUpstream(tmp_path / "writable", push=True) as server:
        server.add(WIDGETS, generated_bare)
        yield server


def test_pkt_lines(tmp_path: Path) -> None:
    assert pkt.pkt("hello\n") == b"000ahello\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(pkt.pkt("one") + pkt.pkt(b"") + pkt.FLUSH + pkt.pkt("two") + b"0009ab")
        ours.shutdown(socket.SHUT_WR)
        assert pkt.read_pkts(theirs) == [b"one", b""]
        assert pkt.read_pkt(theirs) == b"two"
        with pytest.raises(pkt.ProtocolError):
            pkt.read_pkt(theirs)
        assert pkt.read_pkt(theirs) is None


def test_a_request_by_hand(writable: GitDaemonUpstream) -> None:
    with pkt.daemon_request("127.0.0.1", writable.port, "git-upload-pack", f"/{WIDGETS}", ["version=2"]) as sock:
        assert pkt.read_pkts(sock)[0] == b"version 2\n"
        sock.sendall(pkt.pkt("command=ls-refs\n") + pkt.DELIM + pkt.FLUSH)
        assert len(pkt.read_pkts(sock)) == 1 + len(refs(writable.path(WIDGETS)))


def test_a_push_by_hand(writable: GitDaemonUpstream, tmp_path: Path) -> None:
    bare = writable.path(WIDGETS)
    work = tmp_path / "work"
    git("clone", "--quiet", str(bare), str(work))
    base = git("rev-parse", "HEAD", cwd=work)
    oid = commit_files(work, {"mine": "1\n"}, "Mine")
    commands = [(pkt.ZERO, oid, "refs/heads/mine"), (pkt.ZERO, "1" * 40, "refs/heads/bad")]
    answer = pkt.raw_push("127.0.0.1", writable.port, f"/{WIDGETS}", commands, pkt.make_pack(work, [oid], [base]))
    assert (answer.unpack, answer.report["refs/heads/mine"], answer.accepted) == ("ok", "ok", False)
    assert answer.report["refs/heads/bad"] != "ok"
    assert refs(bare)["refs/heads/mine"] == oid
    assert answer.refs["refs/heads/main"] == base
    assert "report-status" in answer.capabilities
    gone = pkt.raw_push("127.0.0.1", writable.port, f"/{WIDGETS}", [(oid, pkt.ZERO, "refs/heads/mine")], b"")
    assert gone.accepted
    assert "refs/heads/mine" not in refs(bare)
    fsck(bare)


def test_what_a_hook_says_is_heard(writable: GitDaemonUpstream) -> None:
    hook = writable.path(WIDGETS) / "hooks" / "pre-receive"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\necho not here >&2\nexit 1\n")
    hook.chmod(0o755)
    tip = refs(writable.path(WIDGETS))["refs/heads/main"]
    answer = pkt.raw_push("127.0.0.1", writable.port, f"/{WIDGETS}", [(pkt.ZERO, tip, "refs/heads/copy")])
    assert answer.messages == "not here\n"
    assert answer.report == {"refs/heads/copy": "pre-receive hook declined"}


def test_a_push_that_stops_anywhere_moves_nothing(writable: GitDaemonUpstream) -> None:
    before = refs(writable.path(WIDGETS))
    commands = [(pkt.ZERO, before["refs/heads/main"], "refs/heads/copy")]
    whole = len(pkt.push_bytes(commands))
    for stop in (0, 3, 60, whole - len(pkt.EMPTY_PACK), whole - 1):
        answer = pkt.raw_push("127.0.0.1", writable.port, f"/{WIDGETS}", commands, stop_after=stop)
        assert not answer.report
    assert refs(writable.path(WIDGETS)) == before


def test_many_commands_in_one_push(writable: GitDaemonUpstream) -> None:
    tip = refs(writable.path(WIDGETS))["refs/heads/main"]
    commands = [(pkt.ZERO, tip, f"refs/heads/many/{number}") for number in range(2000)]
    answer = pkt.raw_push("127.0.0.1", writable.port, f"/{WIDGETS}", commands)
    assert answer.accepted
    assert len(answer.report) == 2000


def _get(url: str) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers)


def _ls_remote(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["git", "ls-remote", url],
        env=clean_env(Path("/nonexistent")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
