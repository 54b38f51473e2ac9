"""LFS files in workspaces of the kit: git-lfs asks the mirror, and by git contents follow where the node says so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git_result, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED, SHELLS, Guest, Node
from tests.workspace.module_lab import hydrate, link, section
from tests.workspace.web import get

pytestmark = pytest.mark.slow
needs_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="there is no git-lfs")
BIG, SMALL = os.urandom(50_000), b"small\n"


def pointer(data: bytes) -> str:
    """The pointer of an LFS file."""
    oid = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"


@dataclass
class Contents:
    """An HTTP address of a mirror that answers the LFS API of its repositories, and nothing else."""

    has: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def contents() -> Iterator[Contents]:
    """One that has both files."""
    made = Contents({hashlib.sha256(data).hexdigest(): data for data in (BIG, SMALL)})

    class Handler(BaseHTTPRequestHandler):
        """The batch API, downloads only."""

        def do_GET(self) -> None:
            """An object."""
            made.asked.append(self.path)
            data = made.has.get(self.path.rpartition("/")[2]) if "/lfs/" in self.path else None
            self._answer(404 if data is None else 200, data or b"")

        def do_POST(self) -> None:
            """Where objects are."""
            made.asked.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.path.endswith("/objects/batch"):
                return self._answer(501, b"")
            objects = []
            for entry in body["objects"]:
                here = entry["oid"] in made.has
                href = f"{made.url}{self.path.removesuffix('/batch')}/{entry['oid']}"
                more = (
                    {"actions": {"download": {"href": href}}} if here else {"error": {"code": 404, "message": "none"}}
                )
                objects.append(entry | more)
            self._answer(200, json.dumps({"transfer": "basic", "objects": objects}).encode())

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/vnd.git-lfs+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def lfs_content_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with `lfs = "content"`, whose `acme/widgets` has LFS files, and so has its submodule."""
    base = tmp_path_factory.mktemp("contents")
    with HttpUpstream(base / "upstream") as upstream:
        rules = {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"}
        inner = add_commit(upstream.add("acme/lib"), "main", {**rules, "inner.bin": pointer(SMALL)})
        bare = upstream.add(WIDGETS)
        files = {**rules, "big.bin": pointer(BIG), "dir/a b.bin": pointer(SMALL), "other/text.txt": "text\n"}
        add_commit(bare, "main", files)
        link(bare, section("lib", "lib", "../lib"), {"lib": inner})
        urls = [upstream.url(WIDGETS), upstream.url("acme/lib")]
        with Serve(base / "state", repos=urls, refresh=SETTLED, workspace={"lfs": "content"}).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.wait_for_repo("acme/lib")
            # The node itself asks the upstream for the objects before it has a tar, in vain.
            wait_until(lambda: all(served(serve, name) for name in (WIDGETS, "acme/lib")), message="both snapshots")
            yield Node(serve, upstream)


def served(serve: Serve, name: str) -> bool:
    """Whether the tar of a repository is there."""
    return get(f"{serve.http_url}/{name}/workspace.tar").status == 200


def by_git_with(node: Node, contents: Contents, guest: Guest) -> Guest:
    """The same guest, for which the mirror has no snapshots."""
    return guest.with_(GITMIRROR_HTTP=contents.url, GITMIRROR_GIT=node.serve.git_url)


def fetches(node: Node) -> int:
    """How often the upstream was asked by git. The node itself asks it for LFS files, which it does not have."""
    return sum(bool(request.service) for request in node.upstream.requests)


@needs_lfs
@pytest.mark.parametrize("shell", SHELLS)
def test_contents_follow_by_git(lfs_content_node: Node, contents: Contents, tmp_path: Path, shell: str) -> None:
    """Also in submodules, and where git-lfs has no filters yet; the upstream is asked for nothing."""
    guest = by_git_with(lfs_content_node, contents, lfs_content_node.guest(tmp_path / "home", shell=shell))
    place = guest.home / "ws"
    before = fetches(lfs_content_node)
    hydrate(guest, place, "", "--submodules").hydrated(via="mirror")
    assert (place / "big.bin").read_bytes() == BIG
    assert (place / "dir/a b.bin").read_bytes() == (place / "lib/inner.bin").read_bytes() == SMALL
    assert guest.git("status", "--porcelain", "--ignore-submodules=none", cwd=place) == ""
    assert fetches(lfs_content_node) == before
    assert guest.git("config", "lfs.url", cwd=place) == f"{contents.url}/{WIDGETS}/info/lfs"
    upstream = lfs_content_node.upstream.url(WIDGETS)
    assert guest.git("config", "lfs.pushurl", cwd=place) == f"{upstream}.git/info/lfs"


@needs_lfs
@pytest.mark.parametrize("shell", SHELLS)
def test_contents_of_a_part(lfs_content_node: Node, contents: Contents, tmp_path: Path, shell: str) -> None:
    """Although git-lfs itself fails where files of HEAD are missing; what the mirror lacks costs only itself."""
    del contents.has[hashlib.sha256(BIG).hexdigest()]
    guest = by_git_with(lfs_content_node, contents, lfs_content_node.guest(tmp_path / "home", shell=shell))
    place = guest.home / "ws"
    done = hydrate(guest, place, "", "--only", "dir")
    done.hydrated(via="mirror")
    assert f"files of {place} that are LFS pointers: 1; the mirror did not send" in done.err
    assert (place / "dir/a b.bin").read_bytes() == SMALL
    assert (place / "big.bin").read_text() == pointer(BIG)
    assert not (place / "other").exists()
    assert guest.git("status", "--porcelain", cwd=place) == ""


@needs_lfs
def test_what_the_mirror_lacks_is_named(lfs_content_node: Node, contents: Contents, tmp_path: Path) -> None:
    """The workspace is there, with a pointer in that place."""
    del contents.has[hashlib.sha256(BIG).hexdigest()]
    guest = by_git_with(lfs_content_node, contents, lfs_content_node.guest(tmp_path / "home"))
    done = hydrate(guest, guest.home / "ws")
    done.hydrated(via="mirror")
    assert "that are LFS pointers: 1; the mirror did not send" in done.err
    assert (guest.home / "ws/big.bin").read_text() == pointer(BIG)
    assert (guest.home / "ws/dir/a b.bin").read_bytes() == SMALL


def test_without_git_lfs_pointers_are_counted(lfs_content_node: Node, contents: Contents, tmp_path: Path) -> None:
    """And nothing is asked."""
    guest = by_git_with(lfs_content_node, contents, lfs_content_node.guest(tmp_path / "home"))
    script = f'git() {{ [ "$1" != lfs ] && command git "$@"; }}; gitmirror_hydrate {WIDGETS} \'{guest.home}/ws\''
    done = guest.run(script)
    done.hydrated(via="mirror")
    assert "that are LFS pointers: 2; git-lfs" in done.err
    assert [path for path in contents.asked if "lfs" in path] == []


def test_lfsconfig_decides_where_uploads_go(lfs_content_node: Node, contents: Contents, tmp_path: Path) -> None:
    """Its URL is where they went without the mirror; one that would write settings of its own is not taken."""
    bare = lfs_content_node.upstream.path(WIDGETS)
    guest = by_git_with(lfs_content_node, contents, lfs_content_node.guest(tmp_path / "home"))
    for name, url, expected in (
        ("elsewhere", "https://lfs.example/store", "https://lfs.example/store"),
        (
            "hostile",
            '"x\\n[core]\\n\\tfsmonitor = touch proof"',
            f"{lfs_content_node.upstream.url(WIDGETS)}.git/info/lfs",
        ),
    ):
        add_commit(bare, name, {".lfsconfig": f"[lfs]\n\turl = {url}\n"})
        lfs_content_node.serve.here("refresh", WIDGETS)
        place = guest.home / name
        hydrate(guest, place, name).hydrated(via="mirror")
        assert guest.git("config", "lfs.pushurl", cwd=place) == expected
        assert git_result("config", "--local", "core.fsmonitor", cwd=place)[0] == 1


def test_upstreams_of_any_kind(tmp_path: Path, lfs_content_node: Node) -> None:
    """Over ssh, git-lfs asks the server where uploads go, so it gets the URL as it is."""
    guest = lfs_content_node.guest(tmp_path / "home")
    for url, expected in (
        ("git@host.example:acme/widgets", "git@host.example:acme/widgets.git"),
        ("ssh://git@host.example/acme/widgets.git", "ssh://git@host.example/acme/widgets.git"),
        ("https://host.example/acme/widgets/", "https://host.example/acme/widgets.git/info/lfs"),
    ):
        place = tmp_path / str(len(url))
        hydrate(guest.with_(GITMIRROR_UPSTREAM=url), place).hydrated(via="snapshot")
        assert guest.git("config", "lfs.pushurl", cwd=place) == expected


@needs_lfs
def test_a_large_file_without_a_line_break(make_node: Callable[..., Node], contents: Contents, tmp_path: Path) -> None:
    """Whether it is a pointer is seen at its beginning: a shell would read all of it, byte by byte, for minutes."""
    node, zeros = make_node(), bytes(150 * 2**20)
    contents.has[hashlib.sha256(zeros).hexdigest()] = zeros
    add_commit(node.upstream.path(WIDGETS), "zeros", {".gitattributes": "*.bin filter=lfs\n", "z.bin": pointer(zeros)})
    node.refresh()
    guest = by_git_with(node, contents, node.guest(tmp_path / "home"))
    guest.kit.write_text(guest.kit.read_text().replace("gitmirror__lfs='pointers'", "gitmirror__lfs='content'"))
    place = guest.home / "ws"
    done = guest.run(f"gitmirror_hydrate {WIDGETS} {place} zeros", timeout=45)
    done.hydrated(via="mirror")
    assert (place / "z.bin").stat().st_size == len(zeros) and "pointers" not in done.err
