"""LFS files in place, through a running `serve`, from a real LFS server to guests with curl and tar alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit, create_repository
from tests.support.gitutil import clean_env, fsck, git, run_process, wait_until
from tests.support.lfs_server import LfsServer, pointer_of
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED, Node
from tests.workspace.lfs_room import ATTRIBUTES, BIG, SMALL, assert_clean, with_git_lfs

LOST = b"this one the upstream has lost\n"


@pytest.fixture(scope="module")
def lfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LfsServer]:
    """An upstream with LFS."""
    base = tmp_path_factory.mktemp("upstream")
    with HttpUpstream(base / "git") as upstream, LfsServer(base / "lfs", upstream) as made:
        create_repository(upstream.path(WIDGETS))
        files = {"a.bin": BIG, "d/b.bin": SMALL}
        add_commit(
            upstream.path(WIDGETS),
            "main",
            {".gitattributes": ATTRIBUTES, **{path: pointer_of(data) for path, data in files.items()}},
        )
        for data in files.values():
            made.add(WIDGETS, data)
        yield made


@pytest.fixture(scope="module")
def content_node(lfs: LfsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node whose workspaces have content."""
    state = tmp_path_factory.mktemp("node") / "state"
    assert lfs.upstream is not None
    with Serve(state, repos=[lfs.url(WIDGETS)], refresh=SETTLED, workspace={"lfs": "content"}).start() as serve:
        serve.wait_for_repo(WIDGETS)
        node = Node(serve, lfs.upstream)
        node.wait_for_snapshot()
        yield node


def hydrate(node: Node, to: Path, branch: str | None = None) -> Path:
    """Take a workspace as a guest with curl and tar does."""
    to.mkdir(parents=True)
    script = 'set -eu; curl -fsS "$1" | tar -x -C "$2"'
    done = run_process(["bash", "-o", "pipefail", "-c", script, "-", node.tar_url(branch), str(to)])
    assert done.returncode == 0, done.stderr
    return to


def warnings(node: Node) -> list[str]:
    """The warnings of `status --json` about LFS."""
    return [each for each in json.loads(node.serve.here("status", "--json"))["warnings"] if "LFS" in each]


def test_a_guest_with_curl_and_tar_has_the_content(content_node: Node, tmp_path: Path) -> None:
    """And git, with or without git-lfs, sees no change."""
    guest = hydrate(content_node, tmp_path / "guest")
    assert (guest / "a.bin").read_bytes() == BIG and (guest / "d" / "b.bin").read_bytes() == SMALL
    fsck(guest)
    assert_clean(guest)
    assert warnings(content_node) == []


@pytest.mark.slow
def test_git_lfs_fetches_from_the_mirror_what_it_needs(content_node: Node, lfs: LfsServer, tmp_path: Path) -> None:
    """checkout, stash, other branches and fsck work by `lfs.url`, and the upstream is not asked."""
    env = with_git_lfs(tmp_path / "home")
    guest = hydrate(content_node, tmp_path / "guest")
    git("config", "lfs.url", f"{content_node.serve.http_url}/{WIDGETS}/info/lfs", cwd=guest)
    assert_clean(guest, env)
    lfs.forget()
    for path, data in (("a.bin", BIG), ("d/b.bin", SMALL)):
        (guest / path).write_bytes(data[:-1])
        assert git("status", "--porcelain", cwd=guest, env=env) == f"M {path}"
        git(*(("checkout", "--", path) if path == "a.bin" else ("stash",)), cwd=guest, env=env)
        assert (guest / path).read_bytes() == data
    git("lfs", "fsck", cwd=guest, env=env)
    assert_clean(guest, env)
    assert lfs.requests == []


@pytest.mark.slow
def test_the_kit_brings_the_content(content_node: Node, tmp_path: Path) -> None:
    """With git-lfs and without."""
    for env in (clean_env(tmp_path / "none"), with_git_lfs(tmp_path / "some")):
        guest = content_node.guest(Path(env["HOME"]), tools=None, GIT_CONFIG_GLOBAL=env["GIT_CONFIG_GLOBAL"])
        guest.hydrate(guest.home / "ws").hydrated(via="snapshot")
        assert (guest.home / "ws" / "a.bin").read_bytes() == BIG
        assert_clean(guest.home / "ws", env)


@pytest.mark.slow
def test_a_branch_that_the_upstream_has_not_whole(content_node: Node, lfs: LfsServer, tmp_path: Path) -> None:
    """On first demand its objects are fetched; what is lost is a pointer, and said."""
    bare = content_node.upstream.path(WIDGETS)
    git("branch", "side", "main", cwd=bare)
    lfs.add(WIDGETS, b"of the side\n")
    add_commit(bare, "side", {"side.bin": pointer_of(b"of the side\n"), "lost.bin": pointer_of(LOST)})
    content_node.refresh()
    guest = hydrate(content_node, tmp_path / "guest", "side")
    assert (guest / "side.bin").read_bytes() == b"of the side\n"
    assert (guest / "lost.bin").read_bytes() == pointer_of(LOST)
    assert_clean(guest)
    [warning] = warnings(content_node)
    assert "acme/widgets: 1 of 4 LFS files of side are pointers" in warning
    assert warning in content_node.serve.log()


@pytest.mark.slow
def test_the_tip_before_is_served_while_the_lfs_server_hangs(
    content_node: Node, lfs: LfsServer, tmp_path: Path
) -> None:
    """Guests notice nothing, and once the server answers, they get the new tip."""
    before = content_node.tip
    lfs.faults.hang_objects = True
    lfs.forget()
    try:
        lfs.add(WIDGETS, b"the new one\n")
        bare = content_node.upstream.path(WIDGETS)
        after = add_commit(bare, "main", {"a.bin": pointer_of(b"the new one\n")})
        content_node.refresh()
        wait_until(lambda: lfs.count("object"), message="a request for the object")
        guest = hydrate(content_node, tmp_path / "before")
        assert git("rev-parse", "HEAD", cwd=guest) == before and (guest / "a.bin").read_bytes() == BIG
    finally:
        # A request that hangs looks at these faults.
        lfs.faults.hang_objects = False
    content_node.wait_for_snapshot(after)
    assert (hydrate(content_node, tmp_path / "after") / "a.bin").read_bytes() == b"the new one\n"


@pytest.mark.slow
def test_who_waits_for_objects_holds_no_slot(lfs: LfsServer, tmp_path: Path) -> None:
    """An LFS server that hangs keeps its own guests waiting, and nobody else."""
    assert lfs.upstream is not None
    other = "acme/other"
    create_repository(lfs.upstream.add(other))
    one_slot: dict[str, Value] = {"max_clients": 1, "queue_timeout": "2s"}
    lfs.faults.hang_batch = True
    try:
        urls = [lfs.url(WIDGETS), lfs.url(other)]
        with Serve(
            tmp_path / "state", repos=urls, refresh=SETTLED, serve=one_slot, workspace={"lfs": "content"}
        ).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.wait_for_repo(other)
            address = f"{serve.http_url}/{WIDGETS}/workspace.tar"
            waiting = subprocess.Popen(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", address], stdout=-1)
            try:
                wait_until(lambda: serve.status()["clients"] == 1, message="it waits")
                serve.clone(tmp_path / "other", other, "--depth=1", http=True)
                assert waiting.poll() is None
                lfs.reset()
                assert waiting.communicate(timeout=90)[0] == b"200"
            finally:
                waiting.kill()
    finally:
        lfs.reset()
