"""Fetching over git://: every kind of clone, every form of path, with no word to the upstream."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import (
    DEEP,
    Node,
    commit_turn,
    connect,
    is_whole_pack,
    read_all,
    read_pack_v2,
    want_v0,
    want_v2,
)
from tests.support.generate import ODD_NAMES
from tests.support.gitutil import fsck, git, git_result, remote_refs
from tests.support.pkt import daemon_request, pkt, read_pkt, read_pkts

CLONES = {
    "full": (),
    "bare": ("--bare",),
    "mirror": ("--mirror",),
    "shallow": ("--depth=1",),
    "shallow, three deep": ("--depth=3", "--no-single-branch"),
    "single branch": ("--single-branch", "--branch=develop"),
    "a tag": ("--branch=v0.2", "--depth=1"),
    "without blobs": ("--filter=blob:none",),
    "shallow without blobs": ("--depth=1", "--filter=blob:none"),
    "without trees": ("--filter=tree:0",),
    "without large blobs": ("--filter=blob:limit=1k",),
}


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("options", CLONES.values(), ids=CLONES.keys())
def test_every_kind_of_clone_gives_the_files_of_the_mirror(
    node: Node, tmp_path: Path, options: tuple[str, ...], version: int
) -> None:
    """Full, shallow, single-branch and partial clones work in every protocol version, and are whole."""
    clone = tmp_path / "clone"
    git("-c", f"protocol.version={version}", "clone", "--quiet", *options, node.url, str(clone))
    branch = next((each.partition("=")[2] for each in options if each.startswith("--branch")), "main")
    assert git("rev-parse", "HEAD", cwd=clone) == git("rev-parse", f"{branch}^{{commit}}", cwd=node.mirror)
    if "--bare" in options or "--mirror" in options:
        assert git("cat-file", "-t", "refs/tags/v0.0", cwd=clone) == "tag"
    else:
        assert git("status", "--porcelain", cwd=clone) == ""
        assert all((clone / name).exists() for name in ODD_NAMES)
    fsck(clone)
    # The checkout of a depth of 1 fetches every blob there is.
    lacks = "?" in git("rev-list", "--objects", "--all", "--missing=print", cwd=clone)
    filtered = any(each.startswith("--filter") for each in options)
    assert lacks == (filtered and "--depth=1" not in options), "a filter is honoured, and only a filter"
    is_shallow = git("rev-parse", "--is-shallow-repository", cwd=clone) == "true"
    assert is_shallow == any(each.startswith("--depth") for each in options)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_guest_is_answered_in_the_protocol_it_asks_for(node: Node, version: int) -> None:
    """The version in the first packet reaches upload-pack: v1 and v2 say so in their first line, v0 says nothing."""
    extra = [f"version={version}"] if version else []
    with daemon_request(*node.serve.git_address, "git-upload-pack", f"/{WIDGETS}", extra) as sock:
        first = read_pkt(sock) or b""
    assert first.startswith(b"version %d" % version if version else node.tip.encode())


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("what", ["an old commit", "a tree", "a blob", "a tag", "an agent's commit"])
def test_any_object_is_fetched_by_its_id(node: Node, tmp_path: Path, what: str, version: int) -> None:
    """`git fetch <oid>` gets objects that no ref points at, whatever their kind."""
    revision = {
        "an old commit": "main~7",
        "a tree": "main~3^{tree}",
        "a blob": "main:README.md",
        "a tag": "v0.0",
        "an agent's commit": "main",
    }[what]
    oid = git("rev-parse", revision, cwd=node.mirror)
    if what == "an agent's commit":
        tree = git("rev-parse", "main^{tree}", cwd=node.mirror)
        oid = git("commit-tree", "-m", f"unreachable {version}", tree, cwd=node.mirror)
    work = tmp_path / "work"
    git("init", "--quiet", str(work))
    git("-c", f"protocol.version={version}", "fetch", "--quiet", "--depth=1", node.url, oid, cwd=work)
    assert git("rev-parse", "FETCH_HEAD", cwd=work) == oid
    assert git("cat-file", "-t", oid, cwd=work) == git("cat-file", "-t", oid, cwd=node.mirror)


def test_an_object_that_is_not_there_is_a_clear_error(node: Node, tmp_path: Path) -> None:
    """A guest that asks for an id that the mirror lacks is told which."""
    git("init", "--quiet", str(tmp_path / "work"))
    code, _, said = git_result("fetch", node.url, "1" * 40, cwd=tmp_path / "work")
    assert code == 128
    assert f"not our ref {'1' * 40}" in said


def test_a_lazy_guest_gets_its_blobs_when_it_looks_at_them(node: Node, tmp_path: Path) -> None:
    """A clone without blobs and without checkout fetches them one by one and in bulk."""
    clone = node.guest(tmp_path / "clone", "--filter=blob:none", "--no-checkout")
    assert git("show", "HEAD:README.md", cwd=clone) == git("show", "main:README.md", cwd=node.mirror)
    git("checkout", "--quiet", "HEAD~2", cwd=clone)
    assert git("status", "--porcelain", cwd=clone) == ""


def test_a_shallow_guest_can_deepen_and_unshallow(node: Node, tmp_path: Path) -> None:
    """Deepening, shallow-since and unshallowing are passed on as they are."""
    clone = node.guest(tmp_path / "clone", "--depth=1")
    git("fetch", "--quiet", "--deepen=2", cwd=clone)
    assert git("rev-list", "--count", "--first-parent", "HEAD", cwd=clone) == "3"
    git("fetch", "--quiet", "--unshallow", cwd=clone)
    assert git("rev-list", "--count", "HEAD", cwd=clone) == git("rev-list", "--count", "main", cwd=node.mirror)
    fsck(clone)


def test_ls_remote_shows_what_the_upstream_has(node: Node) -> None:
    """HEAD, branches, tags and peeled tags, but nothing of the appliance's own refs."""
    for kind in ("anchors", "tips", "turns"):
        git("update-ref", f"refs/gitmirror/{kind}/{node.tip}", node.tip, cwd=node.mirror)
    for version in (0, 2):
        listing = git("-c", f"protocol.version={version}", "ls-remote", node.url).splitlines()
        found = {name: oid for oid, name in (line.split("\t") for line in listing)}
        found = {name: oid for name, oid in found.items() if not name.startswith("refs/agents/")}
        assert found == remote_refs(node.upstream.url(WIDGETS))


@pytest.mark.parametrize(
    "path",
    [
        "/acme/widgets",
        "/acme/widgets.git",
        "/acme/widgets/",
        "/acme/widgets.git/",
        "/{host}:{port}/acme/widgets",
        "/{host}:{port}/acme/widgets.git",
        "/{host}:{port}/acme/widgets/",
        "/{host}/acme/widgets",
        "/{host}/acme/widgets.git",
        "/sub/tools",
        "/sub/tools.git",
        "/{host}:{port}/group/sub/tools",
        "/{host}:{port}/group/sub/tools.git",
        "/{host}:{port}/group/sub/tools/",
        "/{host}:{port}/sub/tools",
    ],
)
def test_a_repository_answers_at_every_form_of_its_path(node: Node, path: str) -> None:
    """OWNER/REPO, with `.git` or a slash behind, with the upstream's host in front, as deep as the URL is."""
    url = node.serve.git_url + path.format(host="127.0.0.1", port=node.upstream.port)
    assert remote_refs(url)["HEAD"] == node.tip


def test_one_insteadof_redirects_a_whole_host(node: Node, tmp_path: Path) -> None:
    """`url.<mirror>/.insteadOf https://HOST/` sends clones by upstream URL to the mirror."""
    rule = f"url.{node.serve.git_url}/.insteadOf={node.upstream.url('')}"
    node.upstream.refuse()
    try:
        git("-c", rule, "clone", "--quiet", node.upstream.url(WIDGETS), str(tmp_path / "one"))
        git("-c", rule, "clone", "--quiet", f"{node.upstream.url(WIDGETS)}.git", str(tmp_path / "two"))
        # With the host in the path, upstreams of several hosts need one rule, and deep paths work too.
        rule = f"url.{node.serve.git_url}/.insteadOf=http://"
        git("-c", rule, "clone", "--quiet", node.upstream.url(DEEP), str(tmp_path / "three"))
    finally:
        node.upstream.restore()
    assert {git("rev-parse", "HEAD", cwd=tmp_path / each) for each in ("one", "two", "three")} == {node.tip}


ENDINGS = ("half-closes", "never half-closes")
STARTS = ("reads before it asks", "says all at once", "says it byte by byte")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("start", STARTS)
def test_a_v0_guest_gets_the_whole_answer_however_it_ends_its_side(node: Node, start: str, ending: str) -> None:
    """An answer neither waits for the guest's end of stream nor is cut by it, and the server closes after it."""
    with connect(node.serve) as sock:
        _say(sock, pkt(f"git-upload-pack /{WIDGETS}\0host=mirror\0"), want_v0(node.tip), start)
        if ending == "half-closes":
            sock.shutdown(socket.SHUT_WR)
        if start != STARTS[0]:
            read_pkts(sock)
        assert read_pkt(sock) == b"NAK\n"
        assert is_whole_pack(read_all(sock))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("start", STARTS)
def test_a_v2_guest_gets_the_whole_answer_however_it_ends_its_side(node: Node, start: str, ending: str) -> None:
    """The same for v2, where the server waits for more commands after the answer."""
    with connect(node.serve) as sock:
        _say(sock, pkt(f"git-upload-pack /{WIDGETS}\0host=mirror\0\0version=2\0"), want_v2(node.tip), start)
        if ending == "half-closes":
            sock.shutdown(socket.SHUT_WR)
        if start != STARTS[0]:
            assert read_pkts(sock)[0] == b"version 2\n"
        assert is_whole_pack(read_pack_v2(sock))
        if ending != "half-closes":
            sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


def test_clones_work_with_the_upstream_gone(node: Node, tmp_path: Path) -> None:
    """With the upstream killed, guests notice nothing."""
    node.upstream.refuse()
    try:
        guest = node.guest(tmp_path / "guest")
        node.guest(tmp_path / "full", "--mirror")
        assert git("log", "-p", "-1", "--format=%H", cwd=guest).startswith(node.tip)
    finally:
        node.upstream.restore()
    assert git("rev-parse", "HEAD", cwd=tmp_path / "full") == node.tip


def test_the_upstream_is_never_asked_while_a_guest_is_served(node: Node, tmp_path: Path) -> None:
    """Clones, lazy fetches, pushes and requests for what is not there cause no request to the upstream."""
    node.upstream.forget()
    guest = node.guest(tmp_path / "guest")
    git("log", "-p", "-2", cwd=guest)
    node.guest(tmp_path / "full", "--mirror")
    git("ls-remote", f"{node.serve.git_url}/127.0.0.1:{node.upstream.port}/{DEEP}")
    commit_turn(guest, "asked nobody")
    git("push", "--quiet", "origin", "HEAD:refs/agents/asked-nobody", cwd=guest)
    assert git_result("fetch", "origin", "2" * 40, cwd=guest)[0] != 0
    assert git_result("ls-remote", f"{node.serve.git_url}/acme/unheard-of")[0] != 0
    assert node.upstream.requests == []


def test_many_guests_at_once_are_all_served(node: Node, tmp_path: Path) -> None:
    """A start of forty guests in the same second leaves nobody out: git daemon alone refuses past 32."""
    clones = [tmp_path / f"clone{number}" for number in range(40)]
    started = [
        subprocess.Popen(["git", "clone", "--quiet", "--bare", "--depth=1", node.url, str(clone)], stderr=PIPE)
        for clone in clones
    ]
    assert [(each.communicate(timeout=60)[1], each.returncode) for each in started] == [(b"", 0)] * 40
    assert {git("rev-parse", "HEAD", cwd=clone) for clone in clones} == {node.tip}


def _say(sock: socket.socket, request: bytes, wants: bytes, start: str) -> None:
    if start == STARTS[0]:
        sock.sendall(request)
        read_pkts(sock)
        sock.sendall(wants)
    else:
        step = len(request + wants) if start == STARTS[1] else 1
        for at in range(0, len(request + wants), step):
            sock.sendall((request + wants)[at : at + step])
