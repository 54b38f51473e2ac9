"""A workspace of drives with `--only` and `--submodules`: the drive has the whole tree, the mirror the submodules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED, Node
from tests.workspace.disk.drives_lab import Machine, make_drives, plant_data_header
from tests.workspace.module_lab import MIRRORED, Family, hydrate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def disk_family(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that mirrors the family."""
    base = tmp_path_factory.mktemp("family")
    with HttpUpstream(base / "upstream") as upstream:
        Family(upstream).build(generated_bare)
        plant_data_header(upstream.path(WIDGETS))
        urls = [upstream.url(name) for name in MIRRORED]
        with Serve(base / "state", repos=urls, refresh=SETTLED).start() as serve:
            for name in MIRRORED:
                serve.wait_for_repo(name)
            yield Node(serve, upstream)


@pytest.mark.parametrize(("form", "shell"), [("erofs", "dash"), ("erofs", "busybox"), ("ext4", "bash")])
def test_a_part_of_a_drive(machine: Machine, disk_family: Node, tmp_path: Path, form: str, shell: str) -> None:
    """It is mounted and cut in the overlay, where the rest can be had again without the mirror, with submodules."""
    bare = disk_family.upstream.path(WIDGETS)
    drives = make_drives(bare, tmp_path / "made", repository=WIDGETS, url=disk_family.upstream.url(WIDGETS), form=form)
    guest = disk_family.guest(tmp_path / "home", shell=shell)
    guest = machine.guest(guest, GITMIRROR_DRIVES=machine.drives(drives))
    for name, options in (("part", ["--only", "libs"]), ("whole", [])):
        place = guest.home / name
        done = hydrate(guest, place, "", "--submodules", *options)
        assert done.hydrated(via="disk") == git("rev-parse", "main", cwd=bare)
        assert machine.run("git", "status", "--porcelain", "--ignore-submodules=none", cwd=place) == ""
        said = machine.run("git", "submodule", "status", "--recursive", cwd=place).splitlines()
        assert [line[0] for line in said] == ["-", " ", " "], said
        assert [line.split()[1] for line in said] == ["far", "libs/lib", "libs/lib/deps/deep"]
        tree = git("ls-tree", "--name-only", "main", cwd=bare).splitlines()
        blobs = [line.split("\t")[1] for line in git("ls-tree", "main", cwd=bare).splitlines() if " blob " in line]
        there = {path.name for path in machine.path(place).iterdir()} - {".git", "lost+found"}
        if not options:
            assert there == set(tree)
            continue
        # git leaves the empty directories of submodules.
        assert there == {*blobs, "libs", "far"}
        assert machine.run("git", "sparse-checkout", "list", cwd=place) == "libs"
        machine.run("git", "-c", "protocol.allow=never", "sparse-checkout", "disable", cwd=place)
        assert {path.name for path in machine.path(place).iterdir()} - {".git", "lost+found"} == set(tree)
        assert machine.run("git", "status", "--porcelain", cwd=place) == ""
