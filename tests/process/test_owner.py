"""One process at a time owns a state directory, and root becomes its user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.process.owner import SERVE, OwnerInfo, StateInUse, become_owner_of, claim, find_owner
from tests.support.gitutil import wait_until
from tests.support.processes import processes_of
from tests.support.serve import ROOT

OWNER = """
import sys, time
from pathlib import Path
from appliance.core.layout import Layout
from appliance.core.process.owner import claim
owned = claim(Layout(Path(sys.argv[1])), sys.argv[2], control=Path("/run/x.sock"))
print("owned", flush=True)
sys.stdin.readline()
owned.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """A state directory; every process that works on it is killed at the end."""
    yield Layout(tmp_path / "state")
    for pid in processes_of(tmp_path / "state"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def others_place() -> Iterator[Path]:
    """A directory that other users may enter."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield Path(place)


def other_owner(layout: Layout, role: str) -> subprocess.Popen[str]:
    """Another process that owns the state directory until it gets a line, or dies."""
    argv = [sys.executable, "-c", OWNER, str(layout.state), role]
    owner = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout
    assert owner.stdout.readline() == "owned\n"
    return owner


def test_whoever_owns_it_says_who_he_is(layout: Layout) -> None:
    """Its process id, its command and its control socket. After the release, there is no owner."""
    assert find_owner(layout) is None
    owned = claim(layout, SERVE, control=Path("/run/gitmirror/control.sock"))
    assert find_owner(layout) == OwnerInfo(os.getpid(), "serve", "/run/gitmirror/control.sock")
    assert owned.survivors == 0
    owned.release()
    assert find_owner(layout) is None
    claim(layout, "add-repo").release()


def test_a_second_serve_is_refused_at_once_and_told_who_holds_it(layout: Layout) -> None:
    """However long the caller would wait, because a `serve` does not end by itself."""
    owner = other_owner(layout, SERVE)
    with pytest.raises(StateInUse, match=rf"serve \(process {owner.pid}\) already uses {layout.state}") as caught:
        claim(layout, SERVE, wait=60)
    assert "--state" in caught.value.hint
    owner.kill()
    owner.wait()


def test_an_add_repo_is_waited_for(layout: Layout) -> None:
    """It ends by itself; a starting serve takes over then."""
    owner = other_owner(layout, "add-repo")
    assert find_owner(layout) == OwnerInfo(owner.pid, "add-repo", "/run/x.sock")
    assert owner.stdin and owner.stdout
    with pytest.raises(StateInUse, match=r"add-repo \(process"):
        claim(layout, SERVE, wait=0.1)
    threading.Timer(0.2, lambda: (owner.stdin.write("go\n"), owner.stdin.flush())).start()  # type: ignore[union-attr]
    claim(layout, SERVE, wait=30).release()
    assert owner.stdout.readline() == "released\n"
    owner.communicate("\n")


def test_a_killed_owner_is_no_owner(layout: Layout) -> None:
    """Its entry stays in the lock file but has no effect."""
    owner = other_owner(layout, SERVE)
    owner.kill()
    owner.wait()
    assert json.loads(layout.owner_lock.read_text())["pid"] == owner.pid
    assert find_owner(layout) is None
    claim(layout, SERVE).release()


def test_a_child_of_a_killed_owner_that_is_yet_to_become_git_is_waited_for(layout: Layout) -> None:
    """Until then it holds the lock, too, and a service manager may start the next `serve` at once."""
    program = OWNER.replace(
        "sys.stdin.readline()", "import os; os.fork() or (sys.stdin.readline(), os._exit(0)); time.sleep(600)", 1
    )
    argv = [sys.executable, "-c", program, str(layout.state), SERVE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdin and owner.stdout and owner.stdout.readline() == "owned\n"
        wait_until(lambda: len(processes_of(layout.state)) == 2, message="it has a child")
        owner.kill()
        owner.wait()
        with pytest.raises(StateInUse, match=rf"serve \(process {owner.pid}\)"):
            claim(layout, SERVE, wait=0.1)
        threading.Timer(0.2, owner.stdin.close).start()
        claim(layout, SERVE, wait=30).release()


def test_a_shorter_name_leaves_nothing_of_a_longer_one(layout: Layout) -> None:
    """The file is written anew by each owner."""
    claim(layout, "remove-repo", control=Path("/a/very/long/path/to/a/socket")).release()
    owned = claim(layout, SERVE)
    assert find_owner(layout) == OwnerInfo(os.getpid(), "serve", "")
    owned.release()


def test_only_one_of_many_gets_it(layout: Layout) -> None:
    """All at once, again and again: never two owners."""
    program = (
        "import sys, time, os\nfrom pathlib import Path\nfrom appliance.core.layout import Layout\n"
        "from appliance.core.process.owner import claim\n"
        "layout = Layout(Path(sys.argv[1]))\n"
        "for _ in range(5):\n"
        "    owned = claim(layout, 'add-repo', wait=60)\n"
        "    inside = layout.state / 'inside'\n"
        "    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))\n"
        "    inside.unlink()\n"
        "    owned.release()\n"
    )
    argv = [sys.executable, "-c", program, str(layout.state)]
    claimants = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    assert [claimant.communicate(timeout=60)[1] for claimant in claimants] == ["", "", ""]


def test_a_claim_ends_what_a_killed_owner_left(layout: Layout) -> None:
    """And reports how many. Every process that holds the children's lock counts as a child."""
    program = OWNER.replace("sys.stdin.readline()", "") + (
        "\nimport asyncio, os\nasync def main():\n"
        "    owned = claim(Layout(Path(sys.argv[1])), 'serve')\n"
        "    owned.children.start([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]], env={})\n"
        "    print('started', flush=True)\n    os.kill(os.getpid(), 9)\nasyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", program, str(layout.state), SERVE]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.split()[-1]) == (-9, "started")
    wait_until(lambda: processes_of(layout.state), message="the orphan runs")
    owned = claim(layout, SERVE)
    assert owned.survivors == 1
    assert processes_of(layout.state) == []
    owned.release()


def test_a_state_directory_that_cannot_be_used_is_an_error_in_words(tmp_path: Path) -> None:
    """A file in its place, for one."""
    (tmp_path / "file").write_text("")
    with pytest.raises(GitmirrorError, match="cannot be used: Not a directory") as caught:
        claim(Layout(tmp_path / "file" / "state"), SERVE)
    assert "--state" in caught.value.hint


# Root

AS_OWNER = """
import os, sys
from pathlib import Path
from appliance.core.process.owner import become_owner_of
become_owner_of(Path(sys.argv[1]))
print(os.geteuid(), os.getuid(), os.getegid(), os.getgid(), sorted(os.getgroups()))
try:
    os.setuid(0)
    print("root again")
except PermissionError:
    pass
"""


def ids_on(state: Path) -> list[str]:
    argv = [sys.executable, "-c", AS_OWNER, str(state)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(("uid", "gid", "groups"), [(12345, 23456, "[]"), (65534, 65534, "[65534]")])
def test_root_becomes_the_directorys_user_for_good(tmp_path: Path, uid: int, gid: int, groups: str) -> None:
    """With the user's group and none of root's, even without a user name, because `serve` must read what it writes."""
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, uid, gid)
    assert ids_on(state) == [f"{uid} {uid} {gid} {gid} {groups}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_what_the_owner_may_not_read_is_named(others_place: Path) -> None:
    """In place of a traceback. Where everybody may read the program, the command does what it says."""
    state = others_place / "state"
    state.mkdir()
    os.chown(state, 65534, 65534)
    argv = [sys.executable, "-m", "appliance", "--state", str(state), "add-repo", "https://h/o/r", "--no-wait"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    unreadable = f"this Python ({sys.executable})", str(ROOT / "appliance")
    assert done.returncode == 0 or any(f"who may not read {each}\n" in done.stderr for each in unreadable), done.stderr


def test_on_ones_own_directory_or_none_at_all_nothing_changes(tmp_path: Path) -> None:
    """The user of `serve`, root on root's directory, and a directory that does not exist yet."""
    before = (os.geteuid(), os.getegid(), os.getgroups())
    become_owner_of(tmp_path)
    become_owner_of(tmp_path / "missing")
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root becomes any user")
def test_who_is_not_root_stays_who_he_is() -> None:
    """The system's own directory belongs to root."""
    become_owner_of(Path("/"))
    assert os.geteuid() != 0
