"""The attacker at the port: nothing that a guest does leaks, starves the others or leaves something behind."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import (
    SETTLED,
    Node,
    assert_log_is_true,
    assert_mirror_is_clean,
    audit,
    clients,
    make_turn,
    want_v0,
    want_v2,
)
from tests.support.gitutil import git, git_result, refs, remote_refs, wait_until
from tests.support.pkt import CAPABILITIES, FLUSH, ZERO, PushConnection, daemon_request, pkt, push_bytes, read_pkts
from tests.support.processes import cpu_seconds
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


def descriptors(serve: Serve) -> int:
    """Files that `serve` has open."""
    return len(os.listdir(f"/proc/{serve.pid}/fd"))


def field_of(serve: Serve, name: str) -> int:
    """A number of `/proc/PID/status`: `VmRSS` in KiB, `Threads`."""
    lines = Path(f"/proc/{serve.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def zombies(serve: Serve) -> list[str]:
    """Children of `serve` that ended and were not reaped."""
    done = subprocess.run(["ps", "-o", "stat=", "--ppid", str(serve.pid)], capture_output=True, text=True)
    return [line for line in done.stdout.split() if line.startswith("Z")]


def wait_quiet(serve: Serve) -> None:
    """Wait until nobody is connected and no child runs."""
    wait_until(lambda: clients(serve) == 0, timeout=60, message="no connection is left")
    wait_until(lambda: serve.processes() == [serve.pid], timeout=60, message="no child is left")


@pytest.mark.slow
def test_three_hundred_aborted_connections_leave_nothing(own_node: Node) -> None:
    """Cut at any byte, by close or reset, fetch or push, git:// or HTTP: no descriptor, child or zombie stays."""
    node, dice, serve = own_node, random.Random(5), own_node.serve
    turn = make_turn(node.mirror, "aborted", size=2_000)
    upload, receive = f"git-upload-pack /{WIDGETS}\0host=x\0", pkt(f"git-receive-pack /{WIDGETS}\0host=x\0")
    http = f"/{WIDGETS}/info/refs?service=git-receive-pack HTTP/1.1\r\nHost: x\r\n\r\n"
    posted = f"/{WIDGETS}/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n"
    posted += "Content-Type: application/x-git-receive-pack-request\r\n\r\n"
    conversations = [
        (serve.git_address, pkt(upload) + want_v0(node.tip)),
        (serve.git_address, pkt(f"{upload}\0version=2\0") + want_v2(node.tip)),
        (serve.git_address, receive + push_bytes([(ZERO, turn.commit, "refs/agents/aborted")], turn.pack)),
        (serve.git_address, receive + push_bytes([(ZERO, node.tip, "refs/heads/aborted")])),
        (serve.git_address, dice.randbytes(500)),
        (address_of(serve.http_url), f"GET {http}".encode()),
        (address_of(serve.http_url), f"POST {posted}".encode() + push_bytes([(ZERO, turn.commit, "refs/agents/h")])),
    ]

    def abort_some(count: int) -> None:
        for number in range(count):
            address, data = conversations[number % len(conversations)]
            with socket.create_connection(address, timeout=60) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(data[: dice.randrange(len(data) + 1)])
                    if dice.random() < 0.3:
                        sock.settimeout(0.05)
                        sock.recv(100)
                if dice.random() < 0.5:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    abort_some(35)
    wait_quiet(serve)
    files, threads, memory = descriptors(serve), field_of(serve, "Threads"), field_of(serve, "VmRSS")
    abort_some(300)
    wait_quiet(serve)
    wait_until(lambda: descriptors(serve) <= files + 2, message="no descriptor is left")
    # The database's threads come one by one, up to a handful.
    assert field_of(serve, "Threads") <= threads + 8
    assert field_of(serve, "VmRSS") - memory < 20 * 1024
    wait_until(lambda: zombies(serve) == [], message="all are reaped")
    wait_until(lambda: not list((serve.state / "run" / "children").iterdir()), message="no record of one is left")
    assert list((serve.state / "run" / "pushes").iterdir()) == []
    assert_log_is_true(node)
    assert_mirror_is_clean(node.mirror)
    assert "Traceback" not in serve.log()


@pytest.mark.parametrize(
    ("service", "extra", "filler"),
    [
        ("git-receive-pack", [], b"0005x" * 800_000),
        ("git-receive-pack", [], pkt("shallow " + "1" * 40) * 150_000),
        ("git-receive-pack", [], pkt(f"{ZERO} {'1' * 40} refs/agents/x") * 80_000),
        ("git-upload-pack", ["version=2"], b"0005x" * 800_000),
        ("git-upload-pack", ["version=2"], pkt("command=fetch") + b"0001" + pkt("want " + "1" * 40) * 150_000),
    ],
    ids=["tiny commands", "shallow lines", "refs", "tiny v2 lines", "v2 wants"],
)
def test_others_are_served_while_one_floods(node: Node, service: str, extra: list[str], filler: bytes) -> None:
    """A guest that sends as fast as it can does not hold up the loop for the others, nor fill the memory."""
    memory = field_of(node.serve, "VmRSS")
    with daemon_request(*node.serve.git_address, service, f"/{WIDGETS}", extra) as sock:
        read_pkts(sock)
        sock.settimeout(None)
        flood = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sock.fileno(), stderr=subprocess.DEVNULL)
        try:
            assert flood.stdin is not None
            os.set_blocking(flood.stdin.fileno(), False)
            slowest, at = 0.0, 0
            while at < len(filler) and flood.poll() is None:
                with contextlib.suppress(BlockingIOError):
                    at += os.write(flood.stdin.fileno(), filler[at : at + 2**20])
                start = cpu_seconds(node.serve.pid)
                urlopen(f"{node.serve.http_url}/healthz", timeout=60).read()
                slowest = max(slowest, cpu_seconds(node.serve.pid) - start)
        finally:
            flood.kill()
            flood.communicate()
    assert slowest < 1.0, "serve takes so much processor time before it answers"
    assert field_of(node.serve, "VmRSS") - memory < 150 * 1024
    wait_quiet(node.serve)


@pytest.mark.slow
def test_few_descriptors_are_made_more(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A soft limit of 128 open files, below what the places need, is raised: a hundred guests at once are served."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED)
    serve.starter = ["sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh"]
    serve.start()
    serve.wait_for_repo(WIDGETS)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            guest = stack.enter_context(PushConnection(*serve.git_address, f"/{WIDGETS}"))
            assert not guest.answer.error
        assert remote_refs(f"{serve.git_url}/{WIDGETS}")


@pytest.mark.slow
def test_a_node_out_of_descriptors_says_so_and_comes_back(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """With a hard limit there is a moment when no more can be served: words, no hang; and then all is as before."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED)
    serve.starter = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh"]
    serve.start()
    serve.wait_for_repo(WIDGETS)
    errors = []
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            guest = PushConnection(*serve.git_address, f"/{WIDGETS}", timeout=60)
            stack.enter_context(guest)
            if not guest.answer.capabilities:
                errors.append(guest.answer.error)
                break
    assert errors and "gitmirror: " in errors[0], errors
    wait_until(lambda: remote_refs_or_none(serve), timeout=60, message="it serves again")
    wait_quiet(serve)
    assert serve.running


def test_a_push_while_its_repository_is_purged(own_node: Node) -> None:
    """`remove-repo --purge` waits for the push that is under way; its outcome is true and stays in the log."""
    node = own_node
    turn = make_turn(node.mirror, "purged", size=300_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/purged")], turn.pack)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(data[:100_000])
        wait_until(lambda: audit(node.serve), message="the attempt is logged")
        # It is not of the config any more, so that it can be removed.
        node.serve.configure(refresh=SETTLED)
        node.serve.reload()
        argv = [*node.serve.command, "--state", str(node.serve.state), "remove-repo", WIDGETS, "--purge", "--yes"]
        removal = subprocess.Popen(argv, cwd=node.serve.cwd, env=node.serve.env, stderr=subprocess.PIPE)
        wait_until(lambda: git_result("ls-remote", node.url)[0] == 128, message="it is no longer served")
        guest.send(data[100_000:])
        accepted = guest.read_report().accepted
        assert removal.wait(60) == 0
    wait_until(lambda: audit(node.serve)[0]["outcome"] != "pending", message="the attempt has an outcome")
    assert audit(node.serve)[0]["outcome"] == ("applied" if accepted else "failed")
    assert accepted
    assert not node.mirror.exists()
    assert node.serve.cli_json("sessions") == [], "its turn went with the mirror"


def test_pushes_of_the_careless_change_nothing(own_node: Node, tmp_path: Path) -> None:
    """What agents do by habit: push, push --all, --tags, --mirror, --force to main; each is told, nothing moves."""
    node = own_node
    guest = node.guest(tmp_path / "guest", "--depth=2")
    git("commit", "--quiet", "--allow-empty", "-m", "mine", cwd=guest)
    git("tag", "v9", cwd=guest)
    before = refs(node.mirror)
    for arguments in ((), ("--force", "origin", "main"), ("--all", "origin"), ("--tags",), ("--follow-tags",)):
        code, _, said = git_result("push", *arguments, cwd=guest)
        assert code == 1, arguments
        assert "gitmirror: real branches and tags go to the upstream" in said
    for arguments in (("--mirror",), ("--prune", "origin", "refs/heads/*"), ("--delete", "origin", "main")):
        code, _, said = git_result("push", *arguments, node.url, cwd=guest)
        code = code or git_result("push", *arguments, cwd=guest)[0]
        assert code, arguments
    assert refs(node.mirror) == before


@pytest.mark.slow
def test_options_of_a_push_are_understood(own_node: Node, tmp_path: Path) -> None:
    """--atomic, --force-with-lease, --porcelain, options of a push, no thin pack and no side band work."""
    node = own_node
    guest = node.guest(tmp_path / "guest")
    for number, option in enumerate(("--atomic", "--porcelain", "--no-thin", "--quiet", "--force-with-lease")):
        git("commit", "--quiet", "--allow-empty", "-m", option, cwd=guest)
        git("push", option, "origin", f"HEAD:refs/agents/option-{number}", cwd=guest)
    git("push", "--push-option=x", "origin", "HEAD:refs/agents/option", cwd=guest)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as plain:
        command = pkt(f"{ZERO} {node.tip} refs/agents/plain\0 report-status\n")
        plain.send(command + push_bytes([(ZERO, node.tip, "refs/agents/plain")])[-36:])
        assert plain.read_report().accepted
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as silent:
        silent.send(pkt(f"{ZERO} {node.tip} refs/agents/silent") + push_bytes([(ZERO, ZERO, "x")])[-36:])
        silent.half_close()
        assert silent.read_report().report == {}
    assert {row["outcome"] for row in assert_log_is_true(node)} == {"applied"}
    assert {"refs/agents/plain", "refs/agents/silent"} < refs(node.mirror).keys()


def test_a_push_by_another_path_is_in_the_log_under_the_name(own_node: Node) -> None:
    """Whatever path a guest uses, it is one repository, and disabled under all of them."""
    node = own_node
    paths = [WIDGETS, f"{WIDGETS}.git", f"{WIDGETS}/", f"127.0.0.1:{node.upstream.port}/{WIDGETS}"]
    for number, path in enumerate(paths):
        git("push", "--quiet", f"{node.serve.git_url}/{path}", f"main:refs/agents/path-{number}", cwd=node.mirror)
    assert [row["repo"] for row in assert_log_is_true(node)] == [WIDGETS] * len(paths)
    node.serve.cli("disable", WIDGETS)
    for path in paths:
        code, _, said = git_result("push", f"{node.serve.git_url}/{path}", "main:refs/agents/s", cwd=node.mirror)
        assert (code, "is not mirrored here" in said) == (128, True)


@pytest.mark.slow
def test_capabilities_that_change_in_the_middle_do_not_fool_the_log(own_node: Node) -> None:
    """receive-pack reads capabilities on every line, the relay on the first: the outcome is true all the same."""
    node = own_node
    refs_wanted = ["refs/agents/one", "refs/agents/two"]
    for first, second in (("", CAPABILITIES), (CAPABILITIES, "report-status"), ("report-status", "side-band-64k")):
        with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
            old = [guest.answer.refs.get(ref, ZERO) for ref in refs_wanted]
            new = git("rev-parse", "main~1" if old[0] == node.tip else "main", cwd=node.mirror)
            lines = [f"{o} {new} {ref}\0 {c}" for o, ref, c in zip(old, refs_wanted, (first, second), strict=True)]
            guest.send(b"".join(map(pkt, lines)) + FLUSH + push_bytes([])[4:])
            guest.half_close()
            with contextlib.suppress(Exception):
                guest.read_report()
        rows = assert_log_is_true(node)
        assert [row["outcome"] for row in rows[:2]] == ["applied", "applied"]


def address_of(url: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = url.rpartition("/")[2].partition(":")
    return host, int(port)


def remote_refs_or_none(serve: Serve) -> dict[str, str] | None:
    """What is served, or None when it cannot be had."""
    code, listing, _ = git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")
    return {"": listing} if code == 0 else None
