"""Snapshots whose tar somebody, or the disk, changes in place: no guest is sent one as right."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.models import Health, Repo
from appliance.core.workspace import tar_checks
from appliance.core.workspace.snapshots import Snapshots
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.serving.fetch.conftest import metric
from tests.support.generate import copy_repository
from tests.support.gitutil import fsck, git
from tests.support.in_place import change_in_place, touch_all_but_the_content
from tests.workspace.conftest import Node
from tests.workspace.test_serving import assert_whole, shape
from tests.workspace.web import Reply, get


def tar_of(node: Node) -> Path:
    """The tar of the followed branch."""
    [tar] = shape(node).glob("*.tar")
    return tar


def assert_right(node: Node, reply: Reply, to: Path) -> None:
    """Assert that a reply is a clean checkout of the tip, with the bytes that its ETag was made of."""
    assert_whole(reply, to, node.tip)
    assert reply.headers["etag"].strip('"').endswith(f"-{hashlib.sha256(reply.body).hexdigest()[:16]}")


def assert_thrown_away(node: Node, times: int) -> None:
    """Assert what the log and the metric say."""
    assert metric(node.serve, "gitmirror_damaged_snapshots") == times
    assert node.serve.log().count("was thrown away") == times


@pytest.mark.parametrize(
    "at", [pytest.param(0.05, marks=pytest.mark.slow), 0.5, pytest.param(0.97, marks=pytest.mark.slow)]
)
def test_a_tar_changed_in_place_is_built_again_before_it_is_sent(own_node: Node, tmp_path: Path, at: float) -> None:
    """Same inode, size and mtime, in the pack or in a file, while it serves."""
    change_in_place(tar_of(own_node), at=at)
    assert_right(own_node, get(own_node.tar_url()), tmp_path / "first")
    assert_right(own_node, get(own_node.tar_url()), tmp_path / "second")
    assert_thrown_away(own_node, 1)


@pytest.mark.slow
def test_a_guest_hydrates_from_what_was_built_again(own_node: Node, tmp_path: Path) -> None:
    """By the kit, as if nothing had been."""
    change_in_place(tar_of(own_node))
    guest = own_node.guest(tmp_path / "home")
    workspace = guest.home / "ws"
    assert guest.hydrate(workspace).hydrated(via="snapshot") == own_node.tip
    fsck(workspace)
    # Without its index, git reads every file.
    (workspace / ".git" / "index").unlink()
    git("reset", "--quiet", cwd=workspace)
    assert git("status", "--porcelain", cwd=workspace) == ""


def test_a_tar_that_was_only_touched_is_not_built_again(own_node: Node, tmp_path: Path) -> None:
    """A new inode or another mode with the same bytes: read once, and sent as it is."""
    before = get(own_node.tar_url())
    work = tar_of(own_node).parent.parent / "checkout"
    built = work.stat().st_mtime_ns
    touch_all_but_the_content(tar_of(own_node))
    assert get(own_node.tar_url()).body == before.body
    tar_of(own_node).chmod(0o600)
    assert get(own_node.tar_url()).body == before.body
    assert work.stat().st_mtime_ns == built
    assert_thrown_away(own_node, 0)


def test_guests_who_come_together_have_it_thrown_away_once(own_node: Node, tmp_path: Path) -> None:
    """All of them get the one that is right."""
    change_in_place(tar_of(own_node))
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda _: get(own_node.tar_url()), range(12)))
    for number, reply in enumerate(replies):
        assert_right(own_node, reply, tmp_path / f"guest{number}")
    assert_thrown_away(own_node, 1)


@pytest.mark.slow
def test_one_changed_between_two_starts_is_found_before_it_is_sent(own_node: Node, tmp_path: Path) -> None:
    """As before, and now the log and the metric say so."""
    own_node.serve.keep_ports()
    own_node.serve.terminate()
    change_in_place(tar_of(own_node))
    own_node.serve.start()
    assert_right(own_node, get(own_node.tar_url()), tmp_path / "guest")
    assert_thrown_away(own_node, 1)


@pytest.mark.slow
def test_a_description_with_no_digest_vouches_for_nothing(own_node: Node, tmp_path: Path) -> None:
    """An ETag that was cut off is that of no tar."""
    tar = tar_of(own_node)
    own_node.serve.keep_ports()
    own_node.serve.terminate()
    change_in_place(tar)
    description = tar.parent / "snapshot.json"
    stored = json.loads(description.read_text())
    description.write_text(json.dumps(stored | {"etag": f"{stored['commit']}-"}))
    own_node.serve.start()
    assert_right(own_node, get(own_node.tar_url()), tmp_path / "guest")


def test_it_is_built_from_nothing_because_the_disk_is_not_trusted(own_node: Node, tmp_path: Path) -> None:
    """What the last build left beside the tar lies on the same disk."""
    tar = tar_of(own_node)
    mark = tar.parent.parent / "checkout" / "mark"
    mark.touch()
    change_in_place(tar)
    assert_right(own_node, get(own_node.tar_url()), tmp_path / "guest")
    assert not mark.exists()


# In this process: the background


@dataclass
class Room:
    """The snapshots of one mirror."""

    lab: Lab
    repo: Repo
    snapshots: Snapshots

    @property
    def tar(self) -> Path:
        """The tar of `main`."""
        [tar] = self.lab.layout.workspaces.glob("*/*/b-main-*/full/*.tar")
        return tar


@pytest.fixture
def room(tmp_path: Path, generated_bare: Path) -> Iterator[Room]:
    """One repository, whose mirror is a copy of the generated one."""
    lab = Lab(tmp_path / "state")
    copy_repository(generated_bare, lab.layout.mirror(WIDGETS))
    health = Health(cloned=True, head="refs/heads/main")
    snapshots = Snapshots(lab.layout, lab.mirror, lambda _: health, settings=WorkspaceConfig)
    snapshots.look()
    yield Room(lab, lab.repo(generated_bare, name=WIDGETS), snapshots)
    lab.close()


def test_the_background_reads_tars_again_and_has_changed_ones_rebuilt(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is due for hours; then a change is found that no guest has met, and the next guest does not wait."""

    async def test() -> None:
        snapshots = room.snapshots
        snapshot, _ = await snapshots.get(room.repo, None)
        whole = room.tar.read_bytes()
        assert not await snapshots.check_next()
        monkeypatch.setattr(tar_checks, "CHECK_EVERY", 0.0)
        assert await snapshots.check_next()
        assert snapshots.checks.damaged == 0 and snapshots.current(room.repo) == snapshot
        change_in_place(room.tar)
        assert await snapshots.check_next()
        assert snapshots.checks.damaged == 1 and snapshots.current(room.repo) is None
        async with asyncio.timeout(60):
            while (again := snapshots.current(room.repo)) is None:
                await asyncio.sleep(0.01)
        assert again.commit == snapshot.commit
        assert hashlib.sha256(room.tar.read_bytes()).hexdigest()[:16] == again.etag[-16:]
        assert len(room.tar.read_bytes()) == len(whole)
        assert len([each for each in caplog.records if "thrown away" in each.getMessage()]) == 1
        await snapshots.stop()

    asyncio.run(test())


def test_the_background_leaves_alone_what_is_no_longer_served(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that is forgotten while its tar is read is not built again."""
    monkeypatch.setattr(tar_checks, "CHECK_EVERY", 0.0)

    async def test() -> None:
        snapshots = room.snapshots
        await snapshots.get(room.repo, None)
        change_in_place(room.tar)
        reading = asyncio.create_task(snapshots.check_next())
        await asyncio.sleep(0)
        snapshots.forget(room.repo)
        assert await reading
        assert snapshots.checks.damaged == 1
        assert not [task for task in asyncio.all_tasks() if task.get_name() == f"snapshot {WIDGETS}"]
        assert not await snapshots.check_next()
        await snapshots.delete(WIDGETS)
        assert not list(room.lab.layout.workspaces.glob("*/*/b-*"))
        await snapshots.stop()

    asyncio.run(test())
