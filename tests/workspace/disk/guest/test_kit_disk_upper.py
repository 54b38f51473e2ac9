"""A disk for changes that outlives the machine: no workspace gets another's changes, and old ones do not fill it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import kill_group, wait_until
from tests.workspace.conftest import EVERY_SHELL, ROUNDS, Guest
from tests.workspace.disk.drives_lab import Machine
from tests.workspace.disk.guest.conftest import MakeDrives
from tests.workspace.disk.guest.test_kit_disk import assert_whole, tip_of
from tests.workspace.disk.guest.test_kit_disk_ended import end, pause, upper_of

SECRET = "secret.txt"
"""What the agent of the first workspace wrote."""


@pytest.fixture
def upper(machine: Machine, tmp_path: Path) -> str:
    """The device for changes."""
    return upper_of(machine, tmp_path)


@pytest.fixture
def guest(machine: Machine, lone_guest: Guest, made: MakeDrives, upper: str) -> Guest:
    """A guest with drives and a disk for changes."""
    return lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs")), GITMIRROR_UPPER=upper)


def left_on(machine: Machine, upper: str, tmp_path: Path) -> list[str]:
    """The directories for changes that are on the device."""
    look = tmp_path / "look"
    look.mkdir(exist_ok=True)
    machine.run("mount", "-t", "ext4", upper, str(look))
    names = machine.run("ls", str(look)).split()
    machine.run("umount", str(look))
    return [name for name in names if name.startswith("gitmirror.disk.")]


def repeat_name(guest: Guest, tmp_path: Path, name: str, *, stop: bool = False) -> Path:
    """Rename the directory `name` on the device to what the next kit will use, when it begins to mount.

    So it is on a machine whose process ids and start times repeat. With `stop`, that kit stops before the overlay, and
    the file that is returned appears.
    """
    tools, aside, stopped = guest.home / "bin", tmp_path / "aside", tmp_path / "stopped"
    tools.mkdir()
    aside.mkdir()
    mount = shutil.which("mount")
    (tools / "mount").write_text(
        f"""#!/bin/sh
for last; do :; done
case "$*" in
'-t tmpfs '*)
    {mount} -t ext4 "$GITMIRROR_UPPER" {aside} && mv {aside}/{name} "{aside}/${{last##*/}}" && umount {aside} || exit
    ;;
*'-t overlay '*) {f": >{stopped}; exec sleep 300" if stop else ":"} ;;
esac
exec {mount} "$@"
"""
    )
    (tools / "mount").chmod(0o755)
    guest.env["PATH"] = f"{tools}:{guest.environment()['PATH']}"
    return stopped


def work_in(machine: Machine, workspace: Path) -> None:
    """What an agent does: a commit, and a file that is not committed."""
    (machine.path(workspace) / "README.md").write_text("the agent's\n")
    words = ("-c", "user.name=agent", "-c", "user.email=agent@example.com", "commit", "-qam", "the agent's")
    machine.run("git", *words, cwd=workspace)
    (machine.path(workspace) / SECRET).write_text("the agent's\n")


def assert_worked_in(machine: Machine, workspace: Path) -> None:
    """The workspace still is as the agent left it."""
    assert machine.run("git", "log", "-1", "--format=%s", cwd=workspace) == "the agent's"
    assert machine.run("git", "status", "--porcelain", cwd=workspace) == f"?? {SECRET}"
    assert (machine.path(workspace) / SECRET).read_text() == "the agent's\n"


def assert_new(machine: Machine, workspace: Path, commit: str) -> None:
    """The workspace is what the drives hold, and nothing else."""
    assert machine.run("git", "rev-parse", "HEAD", cwd=workspace) == commit
    assert machine.run("git", "status", "--porcelain", "--ignored", cwd=workspace) == ""


@pytest.mark.parametrize(
    "shell", [EVERY_SHELL[0], *(pytest.param(shell, marks=pytest.mark.slow) for shell in EVERY_SHELL[1:])]
)
def test_a_repeated_process_id_brings_no_changes_back(
    machine: Machine, guest: Guest, upper: str, planted_bare: Path, tmp_path: Path, shell: str
) -> None:
    """After a reboot, the next workspace is what the drives hold, and what was left is removed."""
    guest = machine.guest(Guest(guest.home, guest.kit, shell, None, guest.env))
    guest.hydrate("one").hydrated(via="disk")
    work_in(machine, guest.home / "one")
    machine.run("umount", str(guest.home / "one"))
    (left,) = left_on(machine, upper, tmp_path)
    repeat_name(guest, tmp_path, left)
    done = guest.hydrate("two")
    assert done.hydrated(via="disk") == tip_of(planted_bare)
    assert done.err == ""
    assert_whole(machine, guest.home / "two", tip_of(planted_bare))
    assert len(left_on(machine, upper, tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["complete", "failed", "killed"])
def test_the_name_of_a_living_workspace_is_not_taken(
    machine: Machine, guest: Guest, upper: str, planted_bare: Path, tmp_path: Path, how: str
) -> None:
    """Neither a second workspace nor what cleans up after a hydration touches the changes of the first."""
    guest.hydrate("one").hydrated(via="disk")
    work_in(machine, guest.home / "one")
    (name,) = left_on(machine, upper, tmp_path)
    stopped = repeat_name(guest, tmp_path, name, stop=how == "killed")
    if how == "failed":
        # The mirror cannot be reached, so there is no session.
        assert guest.hydrate("two", "session:none").code == 1
    elif how == "killed":
        process = guest.start("hydrate", WIDGETS, str(guest.home / "two"))
        wait_until(lambda: process.poll() is not None or stopped.exists(), timeout=30, message="the kit mounts")
        end(process, signal.SIGKILL, guest)
        assert len(left_on(machine, upper, tmp_path)) == 2
    if how != "failed":
        if how == "killed":
            (guest.home / "bin" / "mount").unlink()
        guest.hydrate("two").hydrated(via="disk")
        assert_new(machine, guest.home / "two", tip_of(planted_bare))
    assert_worked_in(machine, guest.home / "one")
    assert len(left_on(machine, upper, tmp_path)) == (1 if how == "failed" else 2)


@pytest.mark.parametrize("how", ["mounted", "detached", "elsewhere"])
def test_changes_that_are_in_use_are_kept(
    machine: Machine, guest: Guest, upper: str, planted_bare: Path, tmp_path: Path, how: str
) -> None:
    """As long as one workspace is there, also if no list of mounts has it, nothing is removed; afterwards all is."""
    guest.hydrate("one").hydrated(via="disk")
    guest.hydrate("two").hydrated(via="disk")
    work_in(machine, guest.home / "one")
    top, holder = str(guest.home / "one"), None
    if how != "mounted":
        apart = ["unshare", "--mount", "--propagation", "private"] if how == "elsewhere" else []
        words = [*machine.enter, *apart, "sh", "-c", 'cd "$1" && echo && exec cat', "sh", top]
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        if holder:
            assert holder.stdout and holder.stdout.read(1) == b"\n"
            machine.run("umount", "-l", top)
        machine.run("umount", str(guest.home / "two"))
        guest.hydrate("three").hydrated(via="disk")
        assert len(left_on(machine, upper, tmp_path)) == 3
        if holder:
            assert Path(f"/proc/{holder.pid}/cwd/{SECRET}").read_text() == "the agent's\n"
        else:
            assert_worked_in(machine, guest.home / "one")
            machine.run("umount", top)
    finally:
        if holder:
            kill_group(holder)
    machine.run("umount", str(guest.home / "three"))
    guest.hydrate("four").hydrated(via="disk")
    assert_whole(machine, guest.home / "four", tip_of(planted_bare))
    assert len(left_on(machine, upper, tmp_path)) == 1


@pytest.mark.slow
def test_a_kit_that_looks_at_the_disk_does_not_keep_others_from_it(
    machine: Machine, guest: Guest, upper: str, planted_bare: Path, tmp_path: Path
) -> None:
    """It has mounted the disk read-only then; another writes to it all the same, but removes nothing."""
    guest.hydrate("one").hydrated(via="disk")
    machine.run("umount", str(guest.home / "one"))
    (guest.home / "place").mkdir()
    # The third mount is that of the disk for changes.
    process = pause(guest, machine, 3, "after")
    guest.hydrate("two").hydrated(via="disk")
    work_in(machine, guest.home / "two")
    assert len(left_on(machine, upper, tmp_path)) == 2
    end(process, signal.SIGKILL, guest)
    guest.hydrate("three").hydrated(via="disk")
    assert_worked_in(machine, guest.home / "two")
    assert_new(machine, guest.home / "three", tip_of(planted_bare))
    assert len(left_on(machine, upper, tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_of_several_at_once_none_removes_what_another_uses(
    machine: Machine, guest: Guest, upper: str, planted_bare: Path, tmp_path: Path, shell: str
) -> None:
    """Two rounds after a workspace that is gone: each of four workspaces is whole, and can be worked in."""
    guest = machine.guest(Guest(guest.home, guest.kit, shell, None, guest.env))
    guest.hydrate("first").hydrated(via="disk")
    machine.run("umount", str(guest.home / "first"))
    for number in range(2 * ROUNDS):
        tops = [guest.home / f"round{number}-{index}" for index in range(4)]
        running = [guest.start("hydrate", WIDGETS, str(top)) for top in tops]
        for process in running:
            out, said = process.communicate(timeout=60)
            assert process.returncode == 0 and b"via=disk" in out, said
        for top in tops:
            assert_new(machine, top, tip_of(planted_bare))
            work_in(machine, top)
            assert_worked_in(machine, top)
        assert len(left_on(machine, upper, tmp_path)) >= len(tops)
        machine.run("umount", *map(str, tops))
    guest.hydrate("last").hydrated(via="disk")
    assert len(left_on(machine, upper, tmp_path)) == 1


def test_a_disk_that_cannot_be_written_is_named(machine: Machine, guest: Guest, tmp_path: Path) -> None:
    """Some programs mount it read-only, without a word in their exit code."""
    done = guest.with_(GITMIRROR_UPPER=machine.attach(tmp_path / "upper")).hydrate("ws")
    done.hydrated(via="upstream")
    assert "cannot be mounted and written: mount: " in done.err
    assert machine.mounts() == []


@pytest.mark.parametrize("content", ["blocks", "inodes"])
def test_a_disk_for_changes_without_room(
    machine: Machine, guest: Guest, upper: str, planted_bare: Path, tmp_path: Path, content: str
) -> None:
    """That is named, nothing stays mounted, and the workspace comes from the next source."""
    look = tmp_path / "look"
    look.mkdir()
    # Twice, because the kernel keeps a few blocks back until the file system is mounted again.
    for turn in range(2):
        machine.run("mount", "-t", "ext4", upper, str(look))
        with contextlib.suppress(OSError):
            for number in itertools.count():
                with (machine.path(look) / f"filler-{turn}-{number}").open("wb", buffering=0) as file:
                    while content == "blocks":
                        file.write(bytes(4096))
        machine.run("umount", str(look))
    workspace = guest.home / "ws"
    done = guest.hydrate(workspace)
    assert done.hydrated(via="upstream") == tip_of(planted_bare)
    assert f"{upper}" in done.err and "is full" in done.err, done.err
    assert machine.mounts() == []
