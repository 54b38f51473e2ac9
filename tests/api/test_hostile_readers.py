"""Readers with a valid token who mean harm: they get nothing that is not theirs, and stop nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from appliance.core.api.declaration import JSON
from appliance.core.api.session_routes import DOCUMENTS
from appliance.core.api.slots import MOST, MOST_EACH
from tests.api.wire import Wire, request
from tests.support.generate import generate_repository
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.processes import mentions
from tests.support.serve import Serve

REPO = "acme/widgets"
IDLE = 3.0
SIZE = 12 * 2**20
"""Bytes of the large diff: more than sockets and pipes hold, so a reader that stops holds git up."""
LINES = SIZE // 64
"""Of the medium diff, a quarter of the large one."""


class Node:
    """A node with one session whose diff is large, and readers of it."""

    def __init__(self, place: Path) -> None:
        self.serve = Serve(
            place / "state",
            refresh={"interval": "1h", "stale_after": "1d", "allow_local": True},
            serve={"idle_timeout": f"{IDLE:g}s"},
        ).start()
        upstream = generate_repository(place / "upstream.git", files=20, commits=10, branches=3, tags=3)
        self.serve.cli("add-repo", f"file://{upstream}", "--name", REPO)
        work = self.serve.clone(place / "work", REPO)
        # Few lines, because git takes longer for many; those of the medium one are what a document is made of.
        files = {
            "large": "".join(f"{number:0255x}\n" for number in range(SIZE // 256)),
            "medium": "".join(f"{number:015x}\n" for number in range(LINES)),
            "small": "x\n",
        }
        for name, text in files.items():
            git("checkout", "-q", "--detach", "origin/main", cwd=work)
            commit_files(work, {f"{name}.txt": text}, f"A {name} file")
            git("push", "-q", "origin", f"HEAD:refs/agents/{name}", cwd=work)
        self.tokens = [self.issue() for _ in range(2)]
        self.address = urlsplit(self.serve.admin_url)

    def issue(self, scope: str = "read") -> tuple[int, str]:
        """The number of a new API token, and the token."""
        issued = self.serve.cli_json("api-token", "issue", "--scope", scope)
        return issued["id"], issued["token"]

    def get(self, path: str, token: int = 0, method: str = "GET", accept: str = "*/*") -> requests.Response:
        """The response to one request, with the first or the second token."""
        headers = {"Authorization": f"Bearer {self.tokens[token][1]}", "Accept": accept}
        return requests.request(method, self.serve.admin_url + path, headers=headers, timeout=60)

    def open(self, path: str, token: int = 0, accept: str = "*/*", scheme: str = "Bearer ") -> Wire:
        """A connection on which a request was sent."""
        assert self.address.hostname and self.address.port
        wire = Wire((self.address.hostname, self.address.port))
        return wire.say(request("GET", path, Authorization=f"{scheme}{self.tokens[token][1]}", Accept=accept))

    def readers(self) -> list[int]:
        """The pids of git that reads the mirror. Only of such is looked at more than the words: this is polled."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
                    words = file.read().split(b"\0")
                if words[0] == b"git" and {b"diff", b"cat-file", b"pack-objects", b"ls-tree"} & set(words):
                    found.append(int(pid))
        return [pid for pid in found if mentions(pid, self.serve.state)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that all tests of this module share."""
    made = Node(tmp_path_factory.mktemp("hostile"))
    yield made
    made.serve.close()


LARGE, MEDIUM, SMALL = (f"/v1/repos/{REPO}/sessions/{name}/diff" for name in ("large", "medium", "small"))


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/repos/{REPO}/files/{name}"
        for name in (
            "../HEAD", "..%2fHEAD", "%2e%2e/%2e%2e/gitmirror.db", "a/../../HEAD", "/etc/passwd", "%2fetc%2fpasswd",
            ".git/config", "--help", ":(top)README.md", ":/", "*", "a%0ab", "README.md%00", "%ff%fe",
        )
    ]
    + [
        f"/v1/repos/{REPO}/{what}?ref={ref}"
        for what in ("files/README.md", "commits")
        for ref in (
            "--output=/tmp/gitmirror-was-here", "-n1", "refs/gitmirror/pins/x", "refs/gitmirror/", "HEAD~1", "main@{1}",
            "main..develop", ":/Start", "main:README.md", "refs/../HEAD", "/etc/passwd", "%00", "^main", "@",
        )
    ]
    + [
        f"/v1/repos/{REPO}/refs?prefix={prefix}"
        for prefix in ("refs/gitmirror/", "--count=1", "*", "/", "refs/heads/../")
    ]
    + [
        f"/v1/repos/{REPO}/sessions/{name}{end}"
        for name in ("--output=x", "-", "%2e%2e", "large%00", "large%2f..", "*", "lar", "refs%2fagents%2flarge")
        for end in ("", "/diff", "/bundle")
    ]
    + [f"{SMALL}?against={other}" for other in ("--no-index", "large@0", "large@99", "HEAD", "../../x", "large@1@1")]
    + [f"/v1/repos/{name}/refs" for name in ("%2e%2e/state", "..%2f/x", "acme/widgets.git", "acme/.", "-x/-y")],
)  # fmt: skip
def test_what_names_nothing_gets_nothing(node: Node, path: str) -> None:
    """No path leads out of the tree that is asked for, and no name becomes an option or an expression of git."""
    response = node.get(path)
    if "/refs?" in path:
        assert response.json() == {"items": [], "next": None}
    else:
        assert response.status_code in (400, 404), response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert str(node.serve.state) not in response.text
    assert not Path("/tmp/gitmirror-was-here").exists()


def test_cursors_of_other_lists_are_refused(node: Node) -> None:
    """A cursor that means something else would skip or repeat items without a word."""
    below = f"/v1/repos/{REPO}"
    lists = ["/v1/sessions", "/v1/audit", f"{below}/refs", f"{below}/commits", f"{below}/refreshes", "/v1/activity"]
    cursors = {path: node.get(f"{path}?limit=1").json()["next"] for path in lists}
    assert all([cursors["/v1/sessions"], cursors["/v1/audit"], cursors[f"{below}/refs"], cursors[f"{below}/commits"]])
    for path in ("/v1/sessions", "/v1/audit", f"{below}/commits", f"{below}/refreshes", "/v1/activity"):
        for other, cursor in cursors.items():
            if cursor and other != path:
                response = requests.get(
                    node.serve.admin_url + path,
                    params={"after": cursor},
                    headers={"Authorization": f"Bearer {node.tokens[0][1]}"},
                    timeout=60,
                )
                assert response.status_code == 400, (path, other, response.text)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "99999999999999999999", "1e3", "0x10", "1 ", "", "\u0661"])
def test_a_limit_out_of_bounds_is_refused(node: Node, limit: str) -> None:
    """Nobody gets a page of a million."""
    for path in ("/v1/sessions", f"/v1/repos/{REPO}/commits"):
        assert node.get(f"{path}?limit={limit}").status_code == 400


def test_head_of_a_stream_has_its_headers_and_leaves_no_git(node: Node) -> None:
    """It ends at once, although the body would not."""
    paths = [LARGE, f"/v1/repos/{REPO}/sessions/large/bundle", f"/v1/repos/{REPO}/files/README.md", "/v1/events"]
    for path in paths:
        response = node.get(path, method="HEAD")
        assert (response.status_code, response.content) == (200, b"")
    wait_until(lambda: not node.readers(), message="no git is left")


@pytest.mark.slow
def test_many_requests_at_once_run_few_processes(node: Node) -> None:
    """Each gets its patch, or is told to come back."""
    # Large enough that git takes a while.
    count, most, ended = 3 * MOST_EACH, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, len(node.readers()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with ThreadPoolExecutor(count) as pool:
            responses = list(pool.map(lambda _: node.get(MEDIUM), range(count)))
    finally:
        ended.set()
        watching.join()
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) <= {200, 503} and statuses[200] >= MOST_EACH, statuses
    assert most <= MOST_EACH <= 16
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["type"] == "urn:gitmirror:problem:busy"


@pytest.mark.slow
def test_readers_that_stop_neither_hold_up_others_nor_git_for_ever(node: Node) -> None:
    """One token has its share of the slots, and a connection on which nothing moves is closed."""
    # However it writes its token, it is one caller.
    stopped = [node.open(LARGE, scheme=("Bearer ", "bearer ", "BEARER  ")[number % 3]) for number in range(MOST)]
    try:
        wait_until(lambda: len(node.readers()) >= MOST_EACH, message="they have all slots that they get")
        assert node.get(SMALL, token=1).status_code == 200
        assert len(node.readers()) <= MOST_EACH
        # Those that wait are next, and stop as well.
        wait_until(lambda: not node.readers(), timeout=60, message="git has ended")
        assert node.get(SMALL).status_code == 200
    finally:
        for wire in stopped:
            wire.close()


@pytest.mark.slow
def test_a_reader_that_hangs_up_leaves_no_git(node: Node) -> None:
    """Its slot is free at once."""
    for _ in range(MOST + 1):
        wire = node.open(LARGE)
        assert wire.head()[0] == 200
        wire.close()
    assert node.get(SMALL).status_code == 200
    wait_until(lambda: not node.readers(), timeout=IDLE * 10, message="git has ended")


@pytest.mark.slow
def test_a_slow_reader_gets_all_of_it(node: Node) -> None:
    """Only one on which nothing moves is cut off."""
    with node.open(LARGE) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        assert wire.head()[0] == 200
        size = 0
        while piece := wire.piece():
            size += len(piece)
            if size < 2**20:
                time.sleep(0.02)
    assert size > SIZE


@pytest.mark.slow
def test_a_revoked_token_ends_its_streams(node: Node) -> None:
    """Within about a second, while those of another token go on."""
    number, token = node.issue()
    node.tokens.append((number, token))
    with node.open("/v1/events", token=2) as mine, node.open("/v1/events", token=1) as other:
        for wire in (mine, other):
            assert wire.head()[0] == 200
            assert wire.piece()
        node.serve.cli("api-token", "revoke", str(number))
        began = time.monotonic()
        while mine.piece():
            pass
        # Without it they go on for as long as the node runs.
        assert time.monotonic() - began < 20
        node.serve.cli("refresh", REPO)
        assert other.piece()
    assert node.get("/v1/pulse", token=2).status_code == 401


def _rss(pid: int) -> int:
    """Bytes of memory that a process has had at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_a_large_patch_takes_little_memory(node: Node) -> None:
    """It passes through, at any size."""
    node.get(SMALL)
    before = _rss(node.serve.pid)
    assert len(node.get(LARGE).content) > SIZE
    assert _rss(node.serve.pid) - before < SIZE / 2


@pytest.mark.slow
def test_diffs_as_documents_take_bounded_memory(node: Node) -> None:
    """One that is too large is refused. Of those that are not, few are in memory, also when nobody takes them."""
    refused = node.get(LARGE, accept=JSON)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:gitmirror:problem:too-large")
    one = node.get(MEDIUM, accept=JSON)
    assert one.json()["insertions"] == LINES
    before = _rss(node.serve.pid)
    stopped = [node.open(MEDIUM, token=number % 2, accept=JSON) for number in range(4 * MOST)]
    try:
        for wire in stopped[:MOST]:
            assert wire.head()[0] in (200, 503)
        assert _rss(node.serve.pid) - before < DOCUMENTS * 23_000_000 + MOST * 2**20
    finally:
        for wire in stopped:
            wire.close()
