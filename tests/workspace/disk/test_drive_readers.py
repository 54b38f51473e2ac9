"""Who may read the drives."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from appliance.core.config.settings import WorkspaceConfig
from tests.workspace.disk.leasing import (
    Bench,
)

GIB = 2**30


def modes(bench: Bench, document: dict[str, object]) -> dict[int, set[int]]:
    """The modes of the drives, and of the directories from `disks` down to them, each with the groups that have it."""
    drives = [Path(drive["path"]) for drive in document["drives"]]  # type: ignore[attr-defined]
    top = bench.lab.layout.disks
    directories = {parent for drive in drives for parent in drive.parents if parent == top or top in parent.parents}
    found: dict[int, set[int]] = {}
    for path in (*drives, *directories):
        found.setdefault(path.stat().st_mode & 0o7777, set()).add(path.stat().st_gid)
    return found


def test_without_a_group_only_the_services_own_may_read(bench: Bench) -> None:
    """Whatever the umask is."""
    before = os.umask(0o077)
    try:

        async def test(bench: Bench) -> None:
            repo = bench.add()
            await bench.sync(repo)
            assert modes(bench, await bench.lease(repo)) == {0o640: {os.getegid()}, 0o750: {os.getegid()}}

        bench.run(test)
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
def test_members_of_the_group_may_read_the_drives(bench: Bench) -> None:
    """Others can only pass. Another group, or none, holds at once, also for what is leased."""
    first, second = [entry for entry in grp.getgrall() if entry.gr_gid != os.getegid()][:2]

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.settings = WorkspaceConfig(disk_group=first.gr_name)
        held = await bench.lease(repo)
        assert modes(bench, held) == {0o640: {first.gr_gid}, 0o751: {os.getegid()}}
        bench.settings = WorkspaceConfig(disk_group=second.gr_name)
        await bench.disks.tidy()
        assert modes(bench, held)[0o640] == {second.gr_gid}
        bench.settings = WorkspaceConfig()
        await bench.disks.tidy()
        assert modes(bench, held) == {0o640: {os.getegid()}, 0o750: {os.getegid()}}

    bench.run(test)


def test_a_group_that_is_not_there_is_said(bench: Bench) -> None:
    """A drive that the VMM cannot read would only fail later."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.settings = WorkspaceConfig(disk_group="no-such-group")
        with pytest.raises(Exception, match="there is no group no-such-group on this node"):
            await bench.lease(repo)
        assert bench.leases.live() == []

    bench.run(test)
