"""The first packet: whatever is not a request for a mirror of the registry gets one ERR packet and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import SETTLED, Node, audit, clients, connect, read_all
from tests.support.gitutil import git_result, remote_refs, wait_until
from tests.support.pkt import pkt
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node with repositories that are not to be served: disabled, removed, never cloned."""
    base = tmp_path_factory.mktemp("first")
    with HttpUpstream(base / "upstream") as upstream:
        names = [WIDGETS, "acme/disabled", "acme/removed", "acme/private"]
        for name in names:
            upstream.add(name, generated_bare)
        upstream.on("acme/private").not_found = True
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            for name in names[1:]:
                serve.cli("add-repo", upstream.url(name), check=False)
            serve.cli("disable", "acme/disabled")
            serve.cli("remove-repo", "acme/removed")
            assert serve.mirror("acme/disabled").exists() and serve.mirror("acme/removed").exists()
            yield Node(serve, upstream)


def answer_to(node: Node, first: bytes) -> str:
    """What a guest that sends `first` is told: the text of the one ERR packet. The end is no reset."""
    with connect(node.serve, first) as sock:
        answer = read_all(sock)
    assert answer[4:8] == b"ERR ", answer
    assert int(answer[:4], 16) == len(answer), "one packet and nothing else"
    return answer[8:].decode("ascii")


UNSERVED = {
    "unknown": "/acme/nothing",
    "unknown host": "/example.com/acme/widgets",
    "unknown port of a known host": "/127.0.0.1:1/acme/widgets",
    "disabled": "/acme/disabled",
    "disabled, host first": "/127.0.0.1/acme/disabled",
    "removed, its mirror still on disk": "/acme/removed",
    "private upstream, never cloned": "/acme/private",
    "root": "/",
    "owner alone": "/acme",
    "dot dot": "/acme/../acme/widgets",
    "dot dot out": "/../../../../etc",
    "dot": "/./acme/widgets",
    "empty part": "//acme/widgets",
    "a user's": "/~root/acme/widgets",
    "below the repository": "/acme/widgets/objects",
    "bare name on disk": "/acme/widgets.git.git",
    "percent": "/acme/%77idgets",
    "other case": "/acme/Widgets",
    "trailing space": "/acme/widgets ",
    "backslash": "/acme\\widgets",
    "shell": "/acme/$(touch x)",
}


@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack"])
@pytest.mark.parametrize("path", UNSERVED.values(), ids=UNSERVED.keys())
def test_what_is_not_mirrored_is_answered_alike(node: Node, path: str, service: str) -> None:
    """Unknown, disabled, removed and private repositories cannot be told apart, nor be found by tricks."""
    said = answer_to(node, pkt(f"{service} {path}\0host=127.0.0.1\0"))
    assert said == f"gitmirror: {path} is not mirrored here"


@pytest.mark.parametrize("version", [0, 1, 2])
def test_git_shows_what_the_node_says(node: Node, version: int) -> None:
    """The text reaches the agent's terminal in every protocol version, for fetch and for push."""
    url = f"{node.serve.git_url}/acme/disabled"
    code, _, said = git_result("-c", f"protocol.version={version}", "ls-remote", url)
    assert code == 128
    assert said.strip() == "fatal: remote error: gitmirror: /acme/disabled is not mirrored here"
    code, _, said = git_result("push", url, "HEAD:refs/agents/s1", cwd=node.mirror)
    assert code == 128
    assert "gitmirror: /acme/disabled is not mirrored here" in said


def test_the_path_of_a_mirror_on_disk_is_no_path_of_a_repository(node: Node) -> None:
    """An absolute path of this machine is not served, although the git daemon child serves by absolute path."""
    assert "is not mirrored here" in answer_to(node, pkt(f"git-upload-pack {node.mirror}\0host=x\0"))


@pytest.mark.parametrize("service", ["git-upload-archive", "git-shell", "git-daemon", "git-upload-packs"])
def test_other_services_are_refused(node: Node, service: str) -> None:
    """Only fetch and push are served."""
    assert answer_to(node, pkt(f"{service} /{WIDGETS}\0host=x\0")) == (
        f"gitmirror: {service} is not served here, only fetch and push are"
    )


MALFORMED = {
    "no length": b"zzzz",
    "signed length": b"+03a" + b"git-upload-pack /acme/widgets\0host=127.0.0.1:9418\0".ljust(54),
    "spaced length": b" 3a " + b"git-upload-pack /acme/widgets\0host=127.0.0.1:9418\0".ljust(54),
    "flush": b"0000",
    "delimiter": b"0001",
    "response end": b"0002",
    "length of 3": b"0003",
    "empty": b"0004",
    "a byte too large": b"1001" + b"x" * 4093,
    "largest": b"ffff" + b"x" * 65531,
    "HTTP": b"GET /acme/widgets/info/refs HTTP/1.1\r\nHost: mirror\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 200,
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": b"\0" * 64,
    "no path": pkt("git-upload-pack"),
    "empty path": pkt("git-upload-pack \0host=x\0"),
    "relative path": pkt("git-upload-pack acme/widgets\0host=x\0"),
    "a user's path": pkt("git-upload-pack ~root/acme\0host=x\0"),
    "option for a path": pkt("git-upload-pack --strict /acme/widgets\0host=x\0"),
    "two spaces": pkt("git-upload-pack  /acme/widgets\0host=x\0"),
    "upper case": pkt("GIT-UPLOAD-PACK /acme/widgets\0host=x\0"),
    "another command": pkt("git-upload-pack;id /acme/widgets\0host=x\0"),
    "line break in the path": pkt("git-upload-pack /acme/widgets\n/x\0host=x\0"),
    "control in the path": pkt("git-upload-pack /acme/\x1b[2Jwidgets\0host=x\0"),
    "not ASCII": pkt("git-upload-pack /acme/widgéts\0host=x\0"),
    "not UTF-8": pkt(b"git-upload-pack /acme/widgets\xff\0host=x\0"),
    "NUL, then another path": pkt("git-upload-pack /acme/nothing\0/acme/widgets\0host=x\0"),
    "two hosts": pkt("git-upload-pack /acme/widgets\0host=a\0host=b\0"),
    "extra without its NUL": pkt("git-upload-pack /acme/widgets\0host=a\0version=2\0"),
}


@pytest.mark.parametrize("first", MALFORMED.values(), ids=MALFORMED.keys())
def test_garbage_gets_an_err_packet_and_nothing_else(node: Node, first: bytes) -> None:
    """Bad lengths, other protocols, NUL tricks and odd paths start nothing; the guest is told, not reset."""
    assert answer_to(node, first) == "gitmirror: malformed request"


def test_garbage_of_megabytes_is_still_answered(node: Node) -> None:
    """A guest that goes on sending reads the error all the same: the close lingers."""
    assert answer_to(node, b"ffff" + b"x" * 500_000) == "gitmirror: malformed request"


LENIENT = {
    "no host": b"git-upload-pack /acme/widgets",
    "line end": b"git-upload-pack /acme/widgets\n",
    "path and NUL": b"git-upload-pack /acme/widgets\0",
    "host with a port": b"git-upload-pack /acme/widgets\0host=mirror:9418\0",
    "host of another": b"git-upload-pack /acme/widgets\0host=github.com\0",
    "NULs": b"git-upload-pack /acme/widgets" + b"\0" * 20,
    "dulwich": b"git-upload-pack /acme/widgets\0host=x\0\0version=2\0\0",
    "version unknown": b"git-upload-pack /acme/widgets\0host=x\0\0version=9\0",
    "version and more": b"git-upload-pack /acme/widgets\0host=x\0\0object-format=sha1\0version=1\0",
}


@pytest.mark.parametrize("payload", LENIENT.values(), ids=LENIENT.keys())
def test_what_clients_may_say_is_understood(node: Node, payload: bytes) -> None:
    """Requests of old, minimal and newer clients are served; parameters that nobody knows are passed over."""
    with connect(node.serve, pkt(payload)) as sock:
        assert sock.recv(4) not in (b"", b"ERR ")
        assert not sock.recv(8).startswith(b"ERR")


def test_nothing_of_it_left_a_trace_in_the_log_or_a_process(node: Node) -> None:
    """A request that is no push is no attempt, and starts no child."""
    for first in (b"zzzz", pkt("git-receive-pack /acme/disabled\0host=x\0"), pkt("git-upload-archive /acme/widgets\0")):
        answer_to(node, first)
    wait_until(lambda: clients(node.serve) == 0, message="no connection is left")
    wait_until(lambda: node.serve.processes() == [node.serve.pid], message="serve has no child")
    assert audit(node.serve) == []


def test_enabled_again_it_is_served_at_once(node: Node) -> None:
    """`enable` and `disable` hold for the next connection, with nothing lost."""
    url = f"{node.serve.git_url}/acme/disabled"
    node.serve.cli("enable", "acme/disabled")
    try:
        assert remote_refs(url)["HEAD"] == node.tip
    finally:
        node.serve.cli("disable", "acme/disabled")
    assert git_result("ls-remote", url)[0] == 128
