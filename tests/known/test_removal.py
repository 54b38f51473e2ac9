"""What a guest had begun when it was removed."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.known.conftest import KnownNode, by_unix
from tests.serving.conftest import audit
from tests.support.gitutil import wait_until
from tests.support.pkt import EMPTY_PACK, ZERO, daemon_request, pkt, push_bytes
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


def whole_push(protocol: str, session: str, new: str) -> bytes:
    """All bytes of a push, for who sends them without a look at what the mirror says."""
    body = push_bytes([(ZERO, new, f"refs/agents/{session}")], EMPTY_PACK)
    if protocol == "git":
        return pkt(f"git-receive-pack /{WIDGETS}\0host=mirror\0") + body
    head = f"POST /{WIDGETS}/git-receive-pack HTTP/1.1\r\nHost: mirror\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/x-git-receive-pack-request\r\n\r\n" + body


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_push_that_waits_ends_with_its_guest(tmp_path: Path, generated_bare: Path, protocol: str) -> None:
    """It was sent while the guest was known, and its turn comes when it is not: nothing is written."""
    with HttpUpstream(tmp_path / "upstream") as upstream, tempfile.TemporaryDirectory(prefix="gm") as sockets:
        upstream.add(WIDGETS, generated_bare)
        with Serve(tmp_path / "state", repos=[upstream.url(WIDGETS)], serve={"max_clients": 1}).start() as serve:
            serve.wait_for_repo(WIDGETS)
            with KnownNode(serve, upstream, Path(sockets)) as node:
                node.add("vm-7", sessions=["fix"])
                node.add("vm-8", sessions=["other"])
                port = "9418" if protocol == "git" else "9419"
                with (
                    # Who pushes holds the only slot until it has sent its commands.
                    daemon_request(*serve.git_address, "git-receive-pack", f"/{WIDGETS}") as first,
                    by_unix(f"{node.path('vm-7')}_{port}")() as own,
                    by_unix(f"{node.path('vm-8')}_{port}")() as known,
                ):
                    assert first.recv(4)
                    own.sendall(whole_push(protocol, "fix", node.tip))
                    known.sendall(whole_push(protocol, "other", node.tip))
                    # Both are looked up, and wait for the slot.
                    assert len(serve.cli_json("guests")) == 2
                    node.remove("vm-7")
                    first.shutdown(socket.SHUT_RDWR)
                    wait_until(lambda: len(audit(serve)) == 2, timeout=30, message="both were ruled")
                rows = {row["guest"]: (row["verdict"], row["reason"]) for row in audit(serve)}
                assert rows["vm-8"][0] == "accepted"
                assert rows["vm-7"] == ("rejected", "this guest is no longer known")
                wait_until(node.refs_of_agents, timeout=30, message="what was accepted is written")
                assert node.refs_of_agents() == {"refs/agents/other": node.tip}
