"""Filling a disk with anything that can be made again stops neither serving nor recording: the budget makes room."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.budget.small_disk import BRANCHES, MIB, REPO, small_node
from tests.support.gitutil import git
from tests.workspace.web import get

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_cached_responses(tmp_path: Path) -> None:
    """Each branch and shape is a response of its own; the longest unused go, and the cache goes on within the rest."""
    # The mirror has 7 MiB. Below 1 GiB of free space no responses are cached.
    with small_node(tmp_path, disk="3G", size=MIB, budget="15MiB", snapshots=False) as node:
        url = f"{node.serve.http_url}/{REPO}"
        for branch in BRANCHES:
            for number, shape in enumerate((["--depth=1"], ["--single-branch"], ["--single-branch", "--no-tags"])):
                place = tmp_path / f"{branch}-{number}"
                git("clone", "--quiet", "--branch", branch, *shape, url, str(place))
        found = node.keeps_budget()
        assert found["removed"]["count"] and found["by"]["answers"] <= 15 * MIB - found["by"]["mirrors"]
        assert node.removals("")[0].count("of its budget of 15.0 MiB") == 1, node.serve.log()
        assert any("cached response" in line for line in node.removals(""))
        [row] = [repo for repo in found["repos"] if repo["name"] == REPO]
        assert row["by"]["mirrors"] > 6.75 * MIB


def test_tars_of_many_branches_and_shapes(tmp_path: Path) -> None:
    """All are served. What goes is built again once somebody asks, and not before."""
    with small_node(tmp_path, disk="1G", size=MIB, budget="30MiB") as node:
        for branch in BRANCHES:
            for shape in ("full", "tip"):
                url = f"{node.serve.http_url}/{REPO}/workspace.tar?ref={branch}&history={shape}"
                assert get(url).status == 200
        found = node.keeps_budget()
        lines = node.removals("the snapshot of")
        assert lines and all(REPO in line for line in lines), node.serve.log()
        assert found["by"]["workspaces"] > 0


def test_disks(tmp_path: Path) -> None:
    """Those that are leased stay, whatever else must go."""
    with small_node(tmp_path, disk="1G", size=MIB, budget="60MiB", snapshots=False) as node:

        def lease(branch: str, *form: str) -> dict[str, Any]:
            return dict(json.loads(node.serve.here("disk", REPO, "--branch", branch, *form, "--json")))

        held = lease(BRANCHES[0], "--single")
        for branch in BRANCHES:
            for form in (["--single"], ["--format", "ext4"], []):
                found = lease(branch, *form)
                if found["id"] != held["id"]:
                    node.serve.here("disk", "release", found["id"])
        node.keeps_budget()
        assert any("disk of" in line for line in node.removals("the ")), node.serve.log()
        assert all(Path(drive["path"]).exists() for drive in held["drives"])


def test_lfs_objects(tmp_path: Path) -> None:
    """The longest unused go first."""
    paths: list[Path] = []

    def prepare(state: Path) -> None:
        for number in range(20):
            data = os.urandom(MIB)
            oid = hashlib.sha256(data).hexdigest()
            path = state / "lfs" / REPO / oid[:2] / oid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            paths.append(path)
            used = time.time() - 3600 * (20 - number)
            os.utime(path, (used, used))

    # The store knows what it finds at its start.
    with small_node(tmp_path, disk="1G", size=MIB // 4, budget="20MiB", snapshots=False, prepare=prepare) as node:
        found = node.keeps_budget()
        there = [path.exists() for path in paths]
        assert there == sorted(there) and any(there) and not all(there)
        assert found["by"]["lfs"] == sum(there) * MIB
        assert any("LFS objects" in line for line in node.removals("")), node.serve.log()


def test_pushes(tmp_path: Path) -> None:
    """What agents record never goes. What else there is does, and then it is said that the budget cannot be kept."""
    with small_node(tmp_path, disk="1G", size=MIB, budget="16MiB") as node:
        guest = node.serve.clone(tmp_path / "pusher", REPO, "--depth=1", "--config=core.compression=0")
        for number in range(10):
            (guest / "work.bin").write_bytes(os.urandom(MIB))
            git("add", "--all", cwd=guest)
            git("commit", "--quiet", "--message=work", cwd=guest)
            git("push", "--quiet", "origin", f"HEAD:refs/agents/push-{number}", cwd=guest)
        found = node.settled(lambda found: found["over"] > 0 and not found["next"], "nothing is left to go")
        assert found["by"]["recordings"] >= 10 * MIB
        assert any("over [storage] budget (16.0 MiB)" in words for words in node.serve.status()["warnings"])
        node.serve.configure([node.upstream.url(REPO)], refresh={"interval": "1h"}, storage={"budget": "1GiB"})
        node.serve.reload()
        node.settled(lambda found: found["over"] == 0 and found["budget"] == 2**30, "the new budget counts")


def test_a_disk_that_gets_full_without_a_budget(tmp_path: Path) -> None:
    """Others fill it; what can be made again goes, so that guests are served and may push."""
    with small_node(tmp_path, disk="1G", size=MIB, budget="") as node:
        for branch in BRANCHES:
            assert get(f"{node.serve.http_url}/{REPO}/workspace.tar?ref={branch}").status == 200
        before = node.storage()
        assert not before["has_budget"] and before["by"]["workspaces"] > 25 * MIB
        room = os.statvfs(node.serve.state)
        filler = node.serve.state.parent / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 20 * MIB)
        node.settled(lambda found: found["by"]["workspaces"] < before["by"]["workspaces"], "something went")
        assert any("were free on the disk of" in line for line in node.removals("the snapshot of")), node.serve.log()
