"""Parts of a tree as a node serves them: over HTTP, and how many it keeps."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from appliance.core.workspace.history import History
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_registry import MOST_PARTS
from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, wait_until
from tests.workspace.conftest import Node
from tests.workspace.web import Reply, get, unpack

pytestmark = pytest.mark.slow
ODD = 'c++ & "d\\e/*[x]?'
"""A directory whose name means something in a URL, a pattern and a config."""


@pytest.fixture(scope="module")
def with_parts(node: Node) -> Node:
    """The node, whose upstream has some directories more."""
    bare = node.upstream.path(WIDGETS)
    add_commit(bare, "main", {f"{ODD}/file": "odd\n", "services/api/a": "a\n", "services/web/b": "b\n"})
    node.refresh()
    node.wait_for_snapshot()
    return node


def part(node: Node, *directories: str, more: str = "") -> Reply:
    """Ask for directories."""
    fields = "&".join(f"only={quote(directory, safe='')}" for directory in directories)
    return get(f"{node.tar_url()}?{fields}{more}")


def files_of(workspace: Path) -> set[str]:
    """The files outside of `.git`."""
    found = (path.relative_to(workspace) for path in workspace.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != ".git"}


def test_a_part_is_served(with_parts: Node, tmp_path: Path) -> None:
    """In proportion: only its files, old contents on demand, a tag of its own; the same in other words is the same."""
    node = with_parts
    reply = part(node, "services/api", ODD)
    guest = unpack(reply, tmp_path / "guest")
    top = {name for name in files_of(unpack(get(node.tar_url()), tmp_path / "whole")) if "/" not in name}
    assert files_of(guest) == {*top, "services/api/a", f"{ODD}/file"}
    assert reply.headers["x-gitmirror-history"] == "trees"
    assert git("status", "--porcelain", cwd=guest) == ""
    assert git("sparse-checkout", "list", cwd=guest).splitlines()[1] == "services/api"
    fsck(guest)
    same = part(node, f"./{ODD}//", "services/api/", "services/api")
    assert same.headers["etag"] == reply.headers["etag"]
    assert reply.headers["etag"] != get(node.tar_url()).headers["etag"]
    tip = part(node, "services/api", more="&history=tip")
    assert tip.headers["x-gitmirror-history"] == "tip"
    assert git("rev-list", "--count", "HEAD", cwd=unpack(tip, tmp_path / "tip")) == "1"


@pytest.mark.parametrize(
    ("directory", "status", "words"),
    [
        ("../x", 400, "'..'"),
        ("/services", 400, "absolute"),
        ("", 400, "names no directory"),
        ("a\0b", 400, "control characters"),
        ("nowhere", 404, "no directory nowhere in main"),
        ("services/api/a", 404, "is a file"),
    ],
)
def test_what_is_no_directory_is_named(with_parts: Node, directory: str, status: int, words: str) -> None:
    """With a reason that helps, instead of an empty workspace."""
    reply = part(with_parts, "services/web", directory)
    assert reply.status == status and words in reply.text


def test_a_guest_that_asks_for_many_parts_replaces_its_own(make_node: Callable[..., Node]) -> None:
    """What another guest and several guests use stays, few are kept, and the branch's own snapshot is not held up."""
    node = make_node()
    bare = node.upstream.path(WIDGETS)
    count = 4 * MOST_PARTS
    add_commit(bare, "main", {f"many/d{number}/file": f"{number}\n" for number in range(count)})
    node.refresh()
    node.wait_for_snapshot()
    node.serve.here("guest", "add", "other", "--session", "s", "--address", "127.0.0.2")
    whole = get(node.tar_url()).headers["etag"]
    theirs = get_from("127.0.0.2", node, "many/d0")
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda number: part(node, f"many/d{number}"), range(1, count)))
    assert {reply.status for reply in replies} <= {200, 404}
    assert all(reply.status == 200 or "try again" in reply.text for reply in replies)
    places = node.serve.state / "workspaces" / WIDGETS
    wait_until(lambda: len(list(places.glob("b-main-*/trees-only-*"))) <= MOST_PARTS, message="only few are kept")
    assert get_from("127.0.0.2", node, "many/d0") == theirs
    built = re.findall(r"snapshot of main \((\S+)\)", node.serve.log())
    assert built.count(Shape(History.TREES, ("many/d0",)).key) == 1
    assert built.count("full") <= 2
    assert get(node.tar_url()).headers["etag"] == whole


def get_from(address: str, node: Node, directory: str) -> str:
    """The tag of a part that a guest at another address gets."""
    parts = urlsplit(node.tar_url())
    connection = http.client.HTTPConnection(parts.netloc, timeout=60, source_address=(address, 0))
    connection.request("HEAD", f"{parts.path}?only={directory}")
    answer = connection.getresponse()
    assert answer.status == 200
    return str(answer.headers["etag"])


def test_a_part_follows_its_branch_until_its_directory_goes(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """It is rebuilt when the branch moves, also on a branch that nobody follows; then the 404 names it."""
    node = make_node()
    bare = node.upstream.path(WIDGETS)
    git("branch", "side", "main", cwd=bare)
    add_commit(bare, "side", {"services/api/a": "1\n"})
    node.refresh()
    node.wait_for_snapshot()
    url = f"{node.tar_url('side')}&only=services/api"
    assert get(url).status == 200
    assert "snapshot of side (full)" not in node.serve.log()
    tip = add_commit(bare, "side", {"services/api/a": "2\n"})
    node.refresh()
    wait_until(lambda: get(url, method="HEAD").headers.get("x-gitmirror-commit") == tip, message="the new tip")
    assert (unpack(get(url), tmp_path / "guest") / "services" / "api" / "a").read_text() == "2\n"
    add_commit(bare, "side", {"services/api/a": None})
    node.refresh()
    wait_until(lambda: get(url).status == 404, message="the directory is gone")
    assert "no directory services/api in side" in get(url).text
