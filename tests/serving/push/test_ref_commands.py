"""The list of refs of a push: too long, malformed, broken off. Refused with words, in bounded time and memory."""

from __future__ import annotations

import contextlib
import gzip
import time
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import Node, audit, own_refs, push, seconds_of, send_raw
from tests.serving.fetch.wire import HttpGuest, post_headers
from tests.support.gitutil import git, git_result, refs
from tests.support.pkt import CAPABILITIES, EMPTY_PACK, FLUSH, ZERO, PushConnection, pkt
from tests.support.serve import Serve

ALLOWED = "gitmirror: allowed here: git push MIRROR HEAD:refs/agents/SESSION (SESSION is 1 to 128 of"


def test_seventeen_refs_are_too_many(node: Node) -> None:
    """One more than sixteen, and none is written."""
    before = own_refs(node)
    answer = push(node.serve, *((ZERO, node.tip, f"refs/agents/of17-{number}") for number in range(17)))
    assert set(answer.report.values()) == {"17 refs in one push, at most 16 are allowed"}
    assert "gitmirror: refused refs/agents/of17-0: 17 refs in one push, at most 16 are allowed\n" in answer.messages
    assert own_refs(node) == before


@pytest.mark.slow
def test_fifty_thousand_refs_are_refused_in_seconds(own_node: Node, tmp_path: Path) -> None:
    """git's own push of 50,000 refs: refused with words, in bounded time and memory, while others are served."""
    node, tip = own_node, own_node.tip
    guest = node.guest(tmp_path / "guest", "--bare")
    names = "".join(f"create refs/many/s{number} {tip}\n" for number in range(50_000))
    git("update-ref", "--stdin", cwd=guest, input=names)
    before, memory = refs(node.mirror), memory_of(node.serve)
    start = time.monotonic()
    code, _, said = git_result("push", "origin", "refs/many/*:refs/agents/*", cwd=guest)
    assert time.monotonic() - start < 15
    assert code == 1
    assert "remote: gitmirror: refused refs/agents/s0: 50000 refs in one push, at most 16 are allowed" in said
    assert f"remote: {ALLOWED}" in said
    assert said.count("remote: ") < 30, "the words are not lost in a flood"
    assert memory_of(node.serve) - memory < 100 * 2**20
    assert refs(node.mirror) == before
    assert node.serve.terminate() == 0
    rows = audit(node.serve)
    assert {row["verdict"] for row in rows} == {"rejected"}
    assert len(rows) == 17
    assert rows[0]["reason"].startswith("49984 more refused refs from this address")


def test_a_list_of_refs_without_end_is_cut_off(node: Node) -> None:
    """Past 8 MiB of ref commands nothing more is read, and the guest is still told."""
    before, tip = own_refs(node), node.tip
    commands = [(ZERO, tip, f"refs/agents/endless-{number:08}") for number in range(100_000)]
    answer = push(node.serve, *commands)
    assert "more than 8388608 bytes of ref commands" in answer.messages
    assert own_refs(node) == before


def test_a_refused_guest_that_sends_much_reads_why(node: Node) -> None:
    """git looks at the answer only when its whole pack is sent: a long report and a large pack do not block."""
    names = [f"refs/heads/{'long' * 900}{number}" for number in range(1000)]
    tip = node.tip
    commands = [(ZERO, tip, name) for name in names]
    took = seconds_of(lambda: push(node.serve, *commands, pack=b"x" * 30_000_000))
    assert took < 10


TIP = "{tip}"
RAW = {
    "one id": f"{ZERO} refs/agents/raw",
    "ids that are short": "123 456 refs/agents/raw",
    "ids in upper case": f"{ZERO} {'A' * 40} refs/agents/raw",
    "no ref": f"{ZERO} {TIP} ",
    "tabs": f"{ZERO}\t{TIP}\trefs/agents/raw",
    "empty line": "",
    "a certificate": "push-cert",
    "a command of 60 KB": f"{ZERO} {TIP} refs/agents/" + "x" * 60_000,
    "the largest packet": f"{ZERO} {TIP} refs/heads/".ljust(65516 - 16 - 35, "y"),
}


@pytest.mark.parametrize("line", RAW.values(), ids=RAW.keys())
def test_malformed_ref_commands_are_refused(node: Node, line: str) -> None:
    """What is no `old new ref` never reaches receive-pack; the guest is told what is allowed."""
    before = own_refs(node)
    line = line.replace(TIP, node.tip)
    answer = send_raw(node, [pkt(f"{line}\0 side-band-64k\n"), FLUSH, EMPTY_PACK])
    assert "malformed" in answer.messages
    assert ALLOWED in answer.messages
    assert own_refs(node) == before


def test_a_push_certificate_is_refused(node: Node) -> None:
    """Signed pushes are not offered; one that comes all the same does not smuggle its commands in."""
    before = own_refs(node)
    lines = [f"push-cert\0{CAPABILITIES}", "certificate version 0.1\n", "pusher A\n", "nonce 1\n", "\n"]
    lines += [f"{ZERO} {node.tip} refs/agents/signed\n", "-----BEGIN PGP SIGNATURE-----\n", "push-cert-end\n"]
    answer = send_raw(node, [*map(pkt, lines), FLUSH, EMPTY_PACK])
    assert "malformed ref command" in answer.messages
    assert own_refs(node) == before


def test_a_push_without_its_flush_is_refused(node: Node) -> None:
    """A list of refs that breaks off is no push, be it a good one so far; it is told and logged."""
    command = f"{ZERO} {node.tip} refs/agents/no-flush\0 {CAPABILITIES}"
    answer = send_raw(node, [pkt(command)])
    assert answer.report == {"refs/agents/no-flush": "the push ended before its list of refs was complete"}
    answer = send_raw(node, [pkt(command), b"0003"])
    assert answer.report == {"refs/agents/no-flush": "a packet of length 3"}
    assert "refs/agents/no-flush" not in refs(node.mirror)


def test_garbage_in_place_of_a_push_gets_an_error(node: Node) -> None:
    """Bytes that are no packet at all get an ERR packet, as in the first packet."""
    for garbage in (b"zzzz", b"PACK" + EMPTY_PACK, b"0003"):
        answer = send_raw(node, [garbage])
        assert answer.error.startswith("gitmirror: "), answer


@pytest.mark.slow
@pytest.mark.parametrize("road", ["git", "http"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [("x", "malformed ref command"), (f"{ZERO} {ZERO} refs/agents/", "2001 refs in one push, at most 16 are allowed")],
    ids=["garbage", "long names"],
)
def test_heads_of_megabytes_are_not_held(node: Node, road: str, line: str, reason: str) -> None:
    """Twenty guests at once, each with 8 MB of ref commands that over HTTP are 10 KB sent: read, refused, not kept."""
    name = line.ljust(4000, "y")
    head = pkt(f"{ZERO} {node.tip} refs/heads/main\0 {CAPABILITIES}") + pkt(name) * 2000
    # Peak memory begins again from here (proc_pid_clear_refs).
    Path(f"/proc/{node.serve.pid}/clear_refs").write_text("5")
    before = memory_of(node.serve)
    with contextlib.ExitStack() as guests:
        if road == "git":
            pushes = [guests.enter_context(PushConnection(*node.serve.git_address, f"/{WIDGETS}")) for _ in range(20)]
            for push_ in pushes:
                push_.send(head)
            for push_ in pushes:
                push_.send(FLUSH + EMPTY_PACK)
            answers = [push_.read_report().messages.encode() for push_ in pushes]
        else:
            squeezed = gzip.compress(head + FLUSH + EMPTY_PACK)
            assert len(squeezed) < 30_000
            headers = post_headers("git-receive-pack", version=0, Content_Encoding="gzip")
            posts = [guests.enter_context(HttpGuest(node.serve.http_url)) for _ in range(20)]
            for post in posts:
                length = {"Content-Length": str(len(squeezed))}
                post.sock.sendall(post.head("POST", f"/{WIDGETS}/git-receive-pack", headers | length) + squeezed[:-8])
            for post in posts:
                post.sock.sendall(squeezed[-8:])
            answers = [post.read("POST").body for post in posts]
    assert all(f"refused refs/heads/main: {reason}".encode() in answer for answer in answers), answers[0][:500]
    assert memory_of(node.serve, "VmHWM") - before < 50 * 2**20


def memory_of(serve: Serve, field: str = "VmRSS") -> int:
    """Bytes that `serve` has in memory; `VmHWM` is the most that it had."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{serve.pid}/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024
