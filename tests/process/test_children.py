"""Child processes: a group of their own, recorded, ended whole, and found again by the next owner."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.process import children as processes_module
from appliance.core.process.children import (
    Child,
    Children,
    LockHeld,
    end_survivors,
    start_time,
    take_lock,
)
from tests.support.gitutil import wait_until
from tests.support.processes import processes_of
from tests.support.serve import ROOT

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

FAMILY = """
import os, signal, subprocess, sys, time
stubborn, away = "stubborn" in sys.argv, "away" in sys.argv
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, close_fds=False, start_new_session=away)
child.stdout.readline()
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(0 if "leave" in sys.argv else 600)
"""
"""A child with a grandchild that ignores SIGTERM; their pids go to a file when both are there."""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory. Every process that works on it is killed at the end of the test."""
    yield tmp_path
    for pid in processes_of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return start_time(pid) is not None


def family(room: Path, children: Children, *how: str) -> tuple[Child, int]:
    """A child and its grandchild's pid."""
    pids = room / "pids"
    pids.unlink(missing_ok=True)
    child = children.start([sys.executable, "-c", FAMILY, str(pids), *how], env=dict(os.environ))
    wait_until(pids.exists, message="the grandchild runs")
    return child, int(pids.read_text().split()[1])


def with_children(room: Path, script: Callable[[Children], Coroutine[Any, Any, None]]) -> None:
    """Runs `script` with Children whose records and lock are in `room`."""

    async def bounded() -> None:
        lock = take_lock(room / "children.lock", inheritable=True)
        try:
            async with asyncio.timeout(60):
                await script(Children(room / "children", lock))
        finally:
            os.close(lock)

    asyncio.run(bounded())


def records(room: Path) -> list[str]:
    return sorted(path.name for path in (room / "children").iterdir())


def test_a_child_leads_a_group_is_recorded_and_holds_the_lock(room: Path) -> None:
    """Its record names the group and when it started; the lock is not free while it lives."""

    async def script(children: Children) -> None:
        child = children.start(SLEEP, env={"PATH": os.environ["PATH"]})
        assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid
        assert records(room) == [f"{child.pid}.{start_time(child.pid)}"]
        assert len(children) == 1
        held = {os.path.realpath(each) for each in Path(f"/proc/{child.pid}/fd").iterdir()}
        assert str(room / "children.lock") in held
        # Before its exec the child may still show the environment of this process, or none.
        expected, environment = b"PATH=" + os.fsencode(os.environ["PATH"]) + b"\0", Path(f"/proc/{child.pid}/environ")
        await asyncio.to_thread(wait_until, lambda: environment.read_bytes() == expected, message="only PATH is given")
        assert await child.end() == -signal.SIGTERM
        assert not records(room) and not len(children)

    with_children(room, script)


def test_the_exit_code_is_told_to_all_who_wait(room: Path) -> None:
    """Before and after the end, and repeatedly. Cancelling one waiter does not affect the others."""

    async def script(children: Children) -> None:
        child = children.start([sys.executable, "-c", "raise SystemExit(7)"], env={})
        impatient = asyncio.create_task(child.wait())
        await asyncio.sleep(0)
        impatient.cancel()
        assert list(await asyncio.gather(child.wait(), child.wait())) == [7, 7]
        assert await child.wait() == await child.end() == 7
        assert records(room) == []

    with_children(room, script)


def test_a_program_that_is_not_there_is_an_oserror_and_leaves_no_record(room: Path) -> None:
    """The caller says it in words."""

    async def script(children: Children) -> None:
        with pytest.raises(OSError):
            children.start(["/nonexistent/git"], env={})
        assert (records(room), len(children)) == ([], 0)

    with_children(room, script)


@pytest.mark.parametrize("how", ["", "stubborn"])
def test_ending_a_child_ends_its_whole_group(room: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TERM first, then KILL. A deadline that killed only fetch and left its index-pack running damaged mirrors."""
    monkeypatch.setattr(processes_module, "TERM_GRACE", 0.3)

    async def script(children: Children) -> None:
        child, grandchild = family(room, children, how)
        code = await child.end()
        assert code == (-signal.SIGKILL if how else -signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: not is_running(grandchild), message="the grandchild is gone")

    with_children(room, script)


def test_a_child_that_ends_by_itself_leaves_nothing_of_its_group(room: Path) -> None:
    """What it started in the background ends with it."""

    async def script(children: Children) -> None:
        child, grandchild = family(room, children, "leave")
        assert await child.wait() == 0
        await asyncio.to_thread(wait_until, lambda: not is_running(grandchild), message="the grandchild is gone")

    with_children(room, script)


@pytest.mark.slow
def test_all_children_are_ended_at_once(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping takes as long as the most stubborn of them: all are asked to end before the first is killed."""
    monkeypatch.setattr(processes_module, "TERM_GRACE", 1.0)
    sent, killpg = list[int](), os.killpg

    def note(group: int, number: int) -> None:
        sent.append(number)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", note)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"

    async def script(children: Children) -> None:
        made = [children.start([sys.executable, "-c", ignore], env={}, stdout=subprocess.PIPE) for _ in range(4)]
        for child in made:
            assert child.process.stdout
            await asyncio.to_thread(child.process.stdout.readline)
            child.process.stdout.close()
        await children.end_all()
        assert sent[:4] == [signal.SIGTERM] * 4 and sent.count(signal.SIGKILL) >= 4
        assert (records(room), len(children)) == ([], 0)

    with_children(room, script)


def test_a_signal_to_a_child_that_is_gone_does_nothing(room: Path) -> None:
    """Nor does ending it."""

    async def script(children: Children) -> None:
        child = children.start([sys.executable, "-c", ""], env={})
        await child.wait()
        child.signal(signal.SIGKILL)
        assert await child.end() == 0

    with_children(room, script)


def test_a_child_without_a_record_is_still_a_child(room: Path) -> None:
    """On a full disk, the child still runs, can be ended, and holds the lock."""

    async def script(children: Children) -> None:
        (room / "children").rmdir()
        child = children.start(SLEEP, env={})
        with pytest.raises(LockHeld):
            os.close(take_lock(room / "children.lock"))
        await child.end()

    with_children(room, script)


# A lock


def test_a_lock_is_held_once_and_free_when_its_holder_closes_it(tmp_path: Path) -> None:
    """Without waiting."""
    first = take_lock(tmp_path / "below" / "a.lock")
    with pytest.raises(LockHeld, match=r"a\.lock is locked by another process"):
        take_lock(tmp_path / "below" / "a.lock")
    os.close(first)
    os.close(take_lock(tmp_path / "below" / "a.lock"))


@pytest.mark.parametrize("inheritable", [True, False])
def test_only_an_inheritable_lock_outlives_its_taker_in_a_child(tmp_path: Path, inheritable: bool) -> None:
    """That is what tells the next owner that a child is left."""
    lock = take_lock(tmp_path / "a.lock", inheritable=inheritable)
    child = subprocess.Popen([*SLEEP[:2], f"print(1, flush=True); {SLEEP[2]}"], close_fds=False, stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.read(2) == b"1\n"
    child.stdout.close()
    os.close(lock)
    try:
        if inheritable:
            with pytest.raises(LockHeld):
                take_lock(tmp_path / "a.lock")
        else:
            os.close(take_lock(tmp_path / "a.lock"))
    finally:
        child.kill()
        child.wait()
    os.close(take_lock(tmp_path / "a.lock"))


def test_a_start_time_tells_a_process_from_another_with_its_number() -> None:
    """None for one that is gone or only a zombie; the command's own name may contain anything."""
    assert start_time(os.getpid()) == start_time(os.getpid()) != None  # noqa: E711
    assert start_time(2**22 + 1) is None
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    child.wait()


def test_a_command_name_with_parentheses_does_not_confuse(tmp_path: Path) -> None:
    """The kernel puts the name in parentheses and escapes nothing."""
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    child = subprocess.Popen([odd, "600"])
    try:
        comm = Path(f"/proc/{child.pid}/comm")
        # Popen returns once exec was done; under vfork the name may be a moment late.
        wait_until(lambda: comm.read_text() == "a) R 1 (b\n", message="the child has its name")
        assert abs((start_time(child.pid) or 0) - (start_time(os.getpid()) or 0)) < 10**7
        assert (start_time(child.pid) or 0) >= (start_time(os.getpid()) or 0)
    finally:
        child.kill()
        child.wait()


# The children of a killed owner

OWNER = """
import asyncio, os, sys
from pathlib import Path
from appliance.core.process.children import Children, take_lock
async def main():
    room = Path(sys.argv[1])
    children = Children(room / "children", take_lock(room / "children.lock", inheritable=True))
    for number in range(2):
        argv = [sys.executable, "-c", sys.argv[2], str(room / f"pids{number}"), *sys.argv[3:]]
        children.start(argv, env=dict(os.environ))
    await asyncio.sleep(600)
asyncio.run(main())
"""


def orphaned(room: Path, *how: str) -> list[int]:
    """Pids of two children and two grandchildren whose owner was killed."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(room), FAMILY, *how], cwd=ROOT)
    files = [room / "pids0", room / "pids1"]
    wait_until(lambda: all(file.exists() for file in files) and len(records(room)) == 2, message="all four run")
    owner.kill()
    owner.wait()
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(is_running(pid) for pid in pids)
    return pids


def ended(room: Path) -> int:
    return end_survivors(room / "children", room / "children.lock", deadline=60)


@pytest.mark.parametrize("how", ["", "away"], ids=["in its group", "in a session of its own"])
def test_the_orphans_of_a_killed_owner_are_ended(room: Path, how: str) -> None:
    """An orphaned receive-pack moved a ref three seconds later. After it, records and lock are as at a first start."""
    pids = orphaned(room, how)
    assert ended(room) >= 2
    assert [pid for pid in pids if is_running(pid)] == []
    assert records(room) == []
    os.close(take_lock(room / "children.lock"))
    assert ended(room) == 0


def test_orphans_without_a_record_are_found_by_the_lock(room: Path) -> None:
    """The owner was killed between starting a child and recording it."""
    pids = orphaned(room)
    for record in (room / "children").iterdir():
        record.unlink()
    assert ended(room) >= 2
    assert [pid for pid in pids if is_running(pid)] == []


def test_orphans_whose_leader_is_gone_are_ended(room: Path) -> None:
    """A group may outlive its leader. By then, another process may have the recorded number."""
    pids = orphaned(room)
    for leader in (pids[0], pids[2]):
        os.kill(leader, signal.SIGKILL)
    wait_until(lambda: not is_running(pids[0]) and not is_running(pids[2]))
    assert ended(room) >= 2
    assert [pid for pid in pids if is_running(pid)] == []


@pytest.mark.parametrize("started", ["0", "1", "99999999999"])
def test_a_process_that_only_has_the_number_of_a_child_is_left_alone(room: Path, started: str) -> None:
    """Pids are used again: another start time is another process."""
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        (room / "children").mkdir()
        (room / "children" / f"{stranger.pid}.{started}").touch()
        assert ended(room) == 0
        assert stranger.poll() is None
        assert records(room) == []
    finally:
        stranger.kill()
        stranger.wait()


def test_after_another_boot_a_record_is_nobodys(room: Path) -> None:
    """Start times count from the boot, so a process without the lock may have both the number and the time."""
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        (room / "children").mkdir()
        (room / "children" / f"{stranger.pid}.{start_time(stranger.pid)}").touch()
        assert ended(room) == 0
        assert stranger.poll() is None
        assert records(room) == []
    finally:
        stranger.kill()
        stranger.wait()


def test_a_lock_that_somebody_keeps_is_an_error_that_names_him(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing git's lock files while a git is still running would damage mirrors."""
    lock = take_lock(room / "children.lock", inheritable=True)
    keeper = subprocess.Popen(SLEEP, close_fds=False)
    os.close(lock)
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    try:
        with pytest.raises(LockHeld, match=str(keeper.pid)) as caught:
            end_survivors(room / "children", room / "children.lock", deadline=0.1)
        assert "by hand" in caught.value.hint
    finally:
        kill(keeper.pid, signal.SIGKILL)
        keeper.wait()


def test_a_directory_that_never_was_has_no_survivors(room: Path) -> None:
    """The first start of all."""
    assert ended(room) == 0


def test_an_odd_file_among_the_records_does_not_stop_a_start(room: Path) -> None:
    """For example an editor's backup. `serve` must start."""
    (room / "children").mkdir()
    (room / "children" / "README.txt").touch()
    assert ended(room) == 0


def test_the_limit_of_open_files_is_raised_as_far_as_it_may() -> None:
    """In a process of its own, from a low soft limit; a limit that is higher stays."""
    program = (
        "import resource; from appliance.core.process.children import raise_open_files_limit\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard)); raise_open_files_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]); raise_open_files_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = processes_module.MOST_OPEN_FILES
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    assert done.stdout.split() == [str(wanted), str(wanted)]
