"""The shapes of a workspace as guests get them: over HTTP, by the kit, and by git."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, git_result
from tests.workspace.conftest import CURL, NOTHING, Guest, Node, Result
from tests.workspace.web import get, unpack


@pytest.fixture(scope="module")
def other(node: Node) -> str:
    """A branch beside `main`, a commit further."""
    bare = node.upstream.path(WIDGETS)
    git("branch", "other", "main~2", cwd=bare)
    git("tag", "-a", "-m", "a tag", "v1", "main~1", cwd=bare)
    commit = add_commit(bare, "other", {"other.txt": "of the other branch\n"})
    node.refresh()
    return commit


def hydrate(guest: Guest, *words: str) -> Result:
    """Run the kit's hydrate with options."""
    return guest.run("gitmirror_hydrate " + " ".join(words))


def test_each_shape_has_a_tar_and_a_tag_of_its_own(node: Node, other: str, tmp_path: Path) -> None:
    """The answer names its shape; without one it is the usual; an unknown one is a 400 that names those there are."""
    replies = {shape: get(f"{node.tar_url()}?history={shape}") for shape in ("full", "trees", "tip")}
    assert {shape: reply.headers["x-gitmirror-history"] for shape, reply in replies.items()} == {
        shape: shape for shape in replies
    }
    assert len({reply.headers["etag"] for reply in replies.values()}) == 3
    assert get(node.tar_url()).headers["etag"] == replies["full"].headers["etag"]
    for shape, reply in replies.items():
        guest = unpack(reply, tmp_path / shape)
        assert git("status", "--porcelain", cwd=guest) == ""
        fsck(guest)
    refused = get(f"{node.tar_url()}?history=all")
    assert refused.status == 400 and b"full, trees, tip" in refused.body


def test_a_part_of_the_tree_has_a_tar_of_its_own(node: Node, other: str) -> None:
    """It has the directory and the files at the top; what is no directory is named."""
    reply = get(f"{node.tar_url()}?only=src&only=./src/")
    assert reply.status == 200 and reply.headers["x-gitmirror-history"] == "trees"
    with reply.tar() as tar:
        tops = {name.partition("/")[0] for name in tar.getnames() if "/" in name}
    assert tops == {".git", "src"}
    assert get(f"{node.tar_url()}?only=src&only=nowhere").status == 404
    assert get(f"{node.tar_url()}?only=src&only=").status == 400


@pytest.mark.slow
def test_guests_that_ask_for_a_new_shape_wait_for_one_build(make_node: Callable[..., Node]) -> None:
    """All of them get the same tar."""
    node = make_node()
    node.wait_for_snapshot()
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: get(f"{node.tar_url()}?history=trees"), range(8)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.headers["etag"] for reply in replies}) == 1
    assert node.serve.log().count("snapshot of main (trees)") == 1


@pytest.mark.parametrize(
    ("options", "shape"), [((), "full"), (("--history",), "full"), (("--tip",), "tip")], ids=["usual", "history", "tip"]
)
@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["snapshot", "git"])
def test_the_kit_says_which_shape_it_made(
    node: Node, tmp_path: Path, tools: tuple[str, ...], options: tuple[str, ...], shape: str
) -> None:
    """From the snapshot and by git, and the workspace is what it says."""
    guest = node.guest(tmp_path / "home", tools=tools)
    done = hydrate(guest, *options, WIDGETS, "ws")
    done.hydrated(via="snapshot" if tools else "mirror")
    assert done.out.rstrip().endswith(f" history={shape}")
    workspace = guest.home / "ws"
    assert git("rev-parse", "--is-shallow-repository", cwd=workspace) == ("true" if shape == "tip" else "false")
    count = int(git("rev-list", "--count", "HEAD", cwd=workspace))
    assert count == (1 if shape == "tip" else int(git("rev-list", "--count", "main", cwd=node.upstream.path(WIDGETS))))
    assert git("status", "--porcelain", cwd=workspace) == ""
    fsck(workspace)


def test_two_shapes_at_once_are_a_mistake_in_usage(node: Node, tmp_path: Path) -> None:
    """And DIR is not touched."""
    guest = node.guest(tmp_path / "home")
    assert hydrate(guest, "--tip", "--history", WIDGETS, "ws").code == 2
    assert not (guest.home / "ws").exists()


@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["snapshot", "git"])
def test_a_guest_works_with_history(node: Node, other: str, tmp_path: Path, tools: tuple[str, ...]) -> None:
    """Log, blame and bisect are right, and a branch that is fetched is merged."""
    bare = node.upstream.path(WIDGETS)
    guest = node.guest(tmp_path / "home", tools=tools)
    hydrate(guest, WIDGETS, "ws").hydrated(via="snapshot" if tools else "mirror")
    workspace = guest.home / "ws"
    for command in (
        ("log", "-20", "--format=%H", "main", "--", "README.md"),
        ("blame", "-l", "main", "--", "README.md"),
    ):
        assert git(*command, cwd=workspace) == git(*command, cwd=bare)
    guest.git("bisect", "start", "HEAD", "HEAD~3", cwd=workspace)
    guest.git("bisect", "run", "true", cwd=workspace)
    guest.git("bisect", "reset", cwd=workspace)
    guest.git("fetch", "--quiet", "gitmirror", "other", cwd=workspace)
    run = ("-c", "user.name=me", "-c", "user.email=me@example.com")
    guest.git(*run, "merge", "--quiet", "-m", "merged", "FETCH_HEAD", cwd=workspace)
    assert (workspace / "other.txt").read_text() == "of the other branch\n"
    assert git_result("merge-base", "--is-ancestor", other, "HEAD", cwd=workspace)[0] == 0


@pytest.mark.slow
def test_trees_are_a_partial_clone_that_the_mirror_completes(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """All commits at once and no old file; what is old comes from the mirror, what is new is all that is fetched."""
    node = make_node(workspace={"history": "trees"})
    node.wait_for_snapshot()
    bare, tip = node.upstream.path(WIDGETS), node.tip
    guest = node.guest(tmp_path / "home")
    done = hydrate(guest, WIDGETS, "ws")
    assert done.hydrated(via="snapshot") == tip and done.out.rstrip().endswith("history=trees")
    workspace = guest.home / "ws"
    node.upstream.forget()
    fsck(workspace)
    assert git("log", "--format=%H", "--", "src", cwd=workspace) == git(
        "log", "--format=%H", "main", "--", "src", cwd=bare
    )
    missing = git("rev-list", "--objects", "--missing=print", "main", cwd=workspace).count("?")
    assert missing
    # A commit whose files are not there, by the kit and by hand.
    old = git("rev-parse", "main~5", cwd=bare)
    assert hydrate(guest, WIDGETS, "old", old).hydrated(via="snapshot") == old
    assert git("status", "--porcelain", cwd=guest.home / "old") == ""
    guest.git("checkout", "--quiet", "main~4", cwd=workspace)
    assert node.upstream.count(WIDGETS) == 0
    fsck(workspace)
    # By git alone, and a session on top.
    bare_guest = node.guest(tmp_path / "bare", tools=NOTHING)
    done = hydrate(bare_guest, WIDGETS, "ws")
    done.hydrated(via="mirror")
    assert done.out.rstrip().endswith("history=trees")
    again = hydrate(bare_guest, WIDGETS, "old", old)
    assert again.hydrated(via="mirror") == old and again.out.rstrip().endswith("history=trees")
    (bare_guest.home / "ws" / "new.txt").write_text("by an agent\n")
    turn = bare_guest.record("s1", bare_guest.home / "ws").recorded("s1")
    for each in (guest, bare_guest):
        session = hydrate(each, WIDGETS, "session", "session:s1")
        assert session.hydrated(via="mirror" if each is bare_guest else "snapshot") == turn
        place = each.home / "session"
        assert git("rev-list", "--count", "HEAD", cwd=place) == str(
            int(git("rev-list", "--count", "main", cwd=bare)) + 1
        )
        assert git("status", "--porcelain", cwd=place) == ""
        fsck(place)
    assert node.upstream.count(WIDGETS) == 0
    # A new tip: what the guest fetches is small, and it stays a clone that git finds right.
    add_commit(bare, "main", {"README.md": "newer\n"})
    node.refresh()
    guest.git("checkout", "--quiet", "main", cwd=workspace)
    guest.git("fetch", "--quiet", "gitmirror", "+main:refs/remotes/origin/main", cwd=workspace)
    guest.git("merge", "--quiet", "--ff-only", "origin/main", cwd=workspace)
    assert (workspace / "README.md").read_text() == "newer\n"
    fsck(workspace)


@pytest.mark.slow
def test_a_usual_shape_without_history_is_not_taken_for_one(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """`[workspace] history = "tip"`: plain is depth 1 as before, and --history is at least the trees."""
    node = make_node(workspace={"history": "tip"})
    node.wait_for_snapshot()
    guest = node.guest(tmp_path / "home")
    for options, shape in (((), "tip"), (("--history",), "trees")):
        done = hydrate(guest, *options, WIDGETS, f"ws-{shape}")
        done.hydrated(via="snapshot")
        assert done.out.rstrip().endswith(f"history={shape}")
