"""Hydrations of drives that are ended at the worst moments, and several at once."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git, kill_group, wait_until
from tests.support.processes import processes_of
from tests.workspace.conftest import EVERY_SHELL, ROUNDS, Guest
from tests.workspace.disk.drives_lab import Machine, make_ext4
from tests.workspace.disk.guest.conftest import MakeDrives
from tests.workspace.disk.guest.test_kit_disk import assert_whole, tip_of

MOUNTS = {1: "tmpfs", 2: "drives", 3: "overlay", 4: "target"}
"""What the kit mounts, in this order."""


def pausing_mount(guest: Guest, number: int, when: str) -> Path:
    """Put a `mount` first on the guest's PATH that stops before or after its nth call; return the file it makes."""
    tools = guest.home / "bin"
    tools.mkdir(exist_ok=True)
    stopped, count = guest.home / "stopped", guest.home / "count"
    pause = f': >"{stopped}"; exec sleep 300'
    (tools / "mount").write_text(
        f"""#!/bin/sh
echo >>"{count}"
number=$(wc -l <"{count}")
[ "$number" != {number} ] || [ {when} != before ] || {{ {pause}; }}
{shutil.which("mount")} "$@" || exit
[ "$number" != {number} ] || [ {when} != after ] || {{ {pause}; }}
"""
    )
    (tools / "mount").chmod(0o755)
    guest.env["PATH"] = f"{tools}:{guest.environment()['PATH']}"
    return stopped


def pause(guest: Guest, machine: Machine, number: int, when: str) -> subprocess.Popen[bytes]:
    """Start a hydration of `place/ws` and wait until it stops at a mount."""
    stopped = pausing_mount(guest, number, when)
    process = guest.start("hydrate", WIDGETS, str(guest.home / "place" / "ws"))
    wait_until(lambda: process.poll() is not None or stopped.exists(), timeout=30, message="the kit mounts")
    assert process.poll() is None, process.communicate()
    # From now on, mounts are made as usual.
    (guest.home / "bin" / "mount").unlink()
    return process


def end(process: subprocess.Popen[bytes], number: signal.Signals, guest: Guest, *, last: bool = False) -> bytes:
    """Send the signal to the kit alone; everything that it started ends. Returns stderr."""
    try:
        process.send_signal(number)
        if last:
            # The kit waits for the last mount itself, which takes no time but for the pause of this test.
            process.wait(timeout=60)
            kill_group(process)
        _, said = process.communicate(timeout=60)
        wait_until(lambda: not processes_of(guest.home), timeout=60, message="nothing of the guest runs on")
    finally:
        kill_group(process)
    return said


def holds(machine: Machine, kit: int) -> list[Path]:
    """What a kit left in the directory for its mounts."""
    return list(machine.path(Path("/run")).glob(f"gitmirror.disk.{kit}.*"))


def upper_of(machine: Machine, tmp_path: Path) -> str:
    """A device with an ext4 for what is changed."""
    make_ext4(tmp_path / "upper", 32 << 20)
    return machine.attach(tmp_path / "upper", writable=True)


@pytest.mark.slow
# Of DIR nothing is done before the last mount but to look at it, so it is there for every other moment.
@pytest.mark.parametrize(("when", "exists"), [("before", True), ("after", False)], ids=["before", "after"])
@pytest.mark.parametrize("number", MOUNTS, ids=MOUNTS.values())
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_a_hydration_that_is_ended_leaves_dir_as_it_was(
    machine: Machine,
    lone_guest: Guest,
    made: MakeDrives,
    planted_bare: Path,
    sent: signal.Signals,
    number: int,
    when: str,
    exists: bool,
) -> None:
    """After TERM nothing is mounted; after KILL the next hydration takes down what was, and uses DIR."""
    if MOUNTS[number] == "target" and sent == signal.SIGTERM:
        pytest.skip("the workspace is complete then, and the signal ignored")
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs")))
    workspace = guest.home / "place" / "ws"
    workspace.mkdir(parents=True) if exists else workspace.parent.mkdir()
    process = pause(guest, machine, number, when)
    said = end(process, sent, guest, last=MOUNTS[number] == "target")
    complete = MOUNTS[number] == "target" and when == "after"
    if sent == signal.SIGTERM:
        assert process.returncode == 1 and b"ended by a signal" in said
        assert machine.mounts() == [] and holds(machine, process.pid) == []
        assert workspace.exists() == exists and not list(workspace.parent.glob("ws/*"))
        assert not list(workspace.parent.glob("**/.gitmirror*"))
    if complete:
        assert machine.run("git", "status", "--porcelain", cwd=workspace) == ""
        refused = guest.hydrate(workspace)
        assert refused.code == 1 and "is not empty; nothing was changed" in refused.err
        assert holds(machine, process.pid) == []
        machine.run("umount", str(workspace))
    guest.hydrate(workspace).hydrated(via="disk")
    assert holds(machine, process.pid) == []
    assert_whole(machine, workspace, tip_of(planted_bare))
    machine.run("umount", str(workspace))
    assert machine.mounts() == [] and list(workspace.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_an_ended_hydration_leaves_nothing_on_the_disk_for_changes(
    machine: Machine, lone_guest: Guest, made: MakeDrives, tmp_path: Path, sent: signal.Signals
) -> None:
    """Nor does a dead one after the next hydration, which keeps its own changes and those of a living workspace."""
    device = upper_of(machine, tmp_path)
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs")), GITMIRROR_UPPER=device)
    guest.hydrate("other").hydrated(via="disk")
    # With an upper there are two mounts more, before the overlay.
    (guest.home / "place").mkdir()
    process = pause(guest, machine, 5, "after")
    end(process, sent, guest)
    guest.hydrate("ws").hydrated(via="disk")
    (tmp_path / "look").mkdir()
    machine.run("mount", "-t", "ext4", device, str(tmp_path / "look"))
    assert len(machine.run("ls", str(tmp_path / "look")).split()) == 3
    for name in ("other", "ws"):
        assert machine.run("git", "status", "--porcelain", cwd=guest.home / name) == ""


@pytest.mark.slow
def test_a_killed_one_that_had_mounted_dir_keeps_its_changes(
    machine: Machine, lone_guest: Guest, made: MakeDrives, tmp_path: Path
) -> None:
    """What takes down its mounts does not remove the changes that the mounted workspace needs."""
    guest = lone_guest.with_(
        GITMIRROR_DRIVES=machine.drives(made("erofs")), GITMIRROR_UPPER=upper_of(machine, tmp_path)
    )
    (guest.home / "place").mkdir()
    process = pause(guest, machine, 6, "after")
    end(process, signal.SIGKILL, guest, last=True)
    workspace = guest.home / "place" / "ws"
    (machine.path(workspace) / "kept.txt").write_text("kept\n")
    guest.hydrate("other").hydrated(via="disk")
    assert holds(machine, process.pid) == []
    assert (machine.path(workspace) / "kept.txt").read_text() == "kept\n"
    assert machine.run("git", "config", "gitmirror.repository", cwd=workspace) == WIDGETS


@pytest.mark.slow
@pytest.mark.parametrize("exists", [True, False], ids=["exists", "new"])
@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_of_several_at_once_one_fills_the_directory(
    machine: Machine, lone_guest: Guest, made: MakeDrives, planted_bare: Path, shell: str, exists: bool
) -> None:
    """Some rounds: one ends with 0 and a whole workspace, each other one with 1 and says why."""
    guest = machine.guest(
        Guest(lone_guest.home, lone_guest.kit, shell, None, lone_guest.env),
        GITMIRROR_DRIVES=machine.drives(made("erofs")),
    )
    for number in range(3 * ROUNDS):
        workspace = guest.home / f"round{number}" / "ws"
        workspace.mkdir(parents=True) if exists else workspace.parent.mkdir()
        running = [guest.start("hydrate", WIDGETS, str(workspace)) for _ in range(2 + number % 2)]
        ended = [(process, *process.communicate(timeout=60)) for process in running]
        codes = sorted(process.returncode for process, _, _ in ended)
        assert codes == [0] + [1] * (len(running) - 1), ended
        for process, _, said in ended:
            text = said.decode()
            assert (
                process.returncode == 0
                or "another hydration" in text
                or "is not empty" in text
                or ("another process" in text)
            ), text
            assert holds(machine, process.pid) == []
        assert_whole(machine, workspace, tip_of(planted_bare))
        machine.run("umount", str(workspace))


@pytest.mark.slow
def test_several_directories_at_once(machine: Machine, lone_guest: Guest, made: MakeDrives, planted_bare: Path) -> None:
    """The same drives serve any number of workspaces, each with its own changes."""
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs")))
    running = [guest.start("hydrate", WIDGETS, str(guest.home / f"ws{number}")) for number in range(6)]
    for process in running:
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0 and b"via=disk" in out, said
    (machine.path(guest.home) / "ws0" / "new.txt").write_text("new\n")
    for number in range(6):
        status = machine.run("git", "status", "--porcelain", cwd=guest.home / f"ws{number}")
        assert status == ("" if number else "?? new.txt")
    assert len(machine.mounts()) == 6 and git("rev-parse", "main", cwd=planted_bare) == tip_of(planted_bare)
