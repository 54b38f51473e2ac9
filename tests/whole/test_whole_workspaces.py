"""A repository with three levels of submodules and LFS files hydrates whole, by every way, without its upstreams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.whole_lab import APP, INNERMOST, SECRET, SUBMODULE_TOOLS, Platform, Seen, listing, seen
from tests.workspace.conftest import Guest, skip_where_the_shell_has_tools
from tests.workspace.disk.drives_lab import Machine
from tests.workspace.disk.guest.test_leased_drives import devices

BIG = 24 * 2**20
"""Bytes of the largest LFS file."""
BY_GIT = ("git-lfs", "timeout", *SUBMODULE_TOOLS)
"""The tools of a guest that cannot download but by git."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The node has all that it needs, and no upstream is there any more."""
    made = Platform(tmp_path_factory.mktemp("whole"), BIG)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def person(platform: Platform) -> Seen:
    """What a clone by somebody with the credential has."""
    return platform.person


def assert_like(guest: Guest, person: Seen) -> None:
    """The workspace of a guest is that of the person."""
    top = guest.home / "ws"
    assert seen(listing(top), top, lambda place, *words: guest.git(*words, cwd=top / place)) == person


@pytest.mark.parametrize("has_lfs", [True, False], ids=["git-lfs", "no git-lfs"])
def test_by_tar(platform: Platform, person: Seen, tmp_path: Path, has_lfs: bool) -> None:
    """The one connection has everything."""
    guest = platform.guest(tmp_path / "home", has_lfs=has_lfs)
    done = guest.run(f"gitmirror_hydrate {APP} ws", timeout=120)
    assert done.hydrated(via="snapshot") == platform.tip
    assert "submodule" not in done.err and "pointer" not in done.err, done.err
    assert_like(guest, person)


def test_by_git(platform: Platform, person: Seen, tmp_path: Path) -> None:
    """A guest without curl and tar."""
    skip_where_the_shell_has_tools("dash")
    guest = platform.guest(tmp_path / "home", has_lfs=True, tools=BY_GIT)
    done = guest.run(f"gitmirror_hydrate {APP} ws", timeout=120)
    assert done.hydrated(via="mirror") == platform.tip
    assert_like(guest, person)


def test_by_disk(platform: Platform, person: Seen, tmp_path: Path) -> None:
    """Drives that the platform leased for this guest."""
    lease = platform.serve.cli_json("disk", APP, "--guest", "agent", timeout=300)
    assert lease["missing"] == []
    machine = Machine()
    try:
        guest = machine.guest(platform.guest(tmp_path / "home", has_lfs=True), GITMIRROR_DRIVES=devices(machine, lease))
        done = guest.run(f"gitmirror_hydrate {APP} ws", timeout=120)
        assert done.hydrated(via="disk") == platform.tip
        top, env = guest.home / "ws", guest.environment()
        found = seen(
            listing(machine.path(top)), top, lambda place, *words: machine.run("git", *words, cwd=top / place, env=env)
        )
        assert found == person
    finally:
        machine.close()


def test_who_may_not_read_the_private_one_gets_the_rest(platform: Platform, person: Seen, tmp_path: Path) -> None:
    """By tar and by git: the private submodule is an empty directory, and nothing of it is anywhere."""
    for number, tools in enumerate([None, BY_GIT]):
        guest = platform.guest(tmp_path / f"home{number}", has_lfs=True, is_known=False, tools=tools)
        done = guest.run(f"gitmirror_hydrate {APP} ws", timeout=120)
        assert done.hydrated(via="mirror" if tools else "snapshot") == platform.tip
        top = guest.home / "ws"
        assert list((top / INNERMOST).iterdir()) == []
        expected = {path: what for path, what in person.files.items() if not path.startswith(f"{INNERMOST}/")}
        assert listing(top) == expected
        secret = platform.objects[SECRET, "keys.bin"]
        assert not any(secret in path.read_bytes() for path in (top / ".git").rglob("*") if path.is_file())
