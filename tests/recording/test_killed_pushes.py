"""Kills each process at each moment of a push: no applied turn is lost, and a failed push leaves none.

A directory of git's own programs in which `git` and `cat` stop at chosen moments makes the moments exact.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, assert_turns_are_kept, fetches, new_session, turns_of
from tests.serving.conftest import SETTLED, Node, assert_mirror_is_clean, commit_turn, entry_of
from tests.support.gitutil import clean_env, git, refs, wait_until
from tests.support.processes import processes_of
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

MOMENTS = {
    "the pack comes in": ("unpack-objects", "before", False),
    "its objects are checked": ("rev-list", "after", False),
    "the guard looks": ("cat-file", "before", False),
    "the turn is not there yet": ("update-ref", "before", False),
    "the turn is there, the ref has not moved": ("update-ref", "after", False),
    "the ref has moved, nobody noted it": ("cat", "before", True),
    "the ref has moved, it is noted": ("cat", "after", True),
}
"""The command that stops, when, and whether the push is applied by then."""

_SHIM = """\
#!/bin/sh
# Runs the real program; stops at the moment that the file `moment` names.
case "$0" in
*/cat) name=cat real=/bin/cat ;;
*) name=$1 real={real}
    case $1 in -c | --shallow-file) name=$3 ;; esac ;;
esac
moment=
if [ -e {place}/moment ]; then read -r moment <{place}/moment; fi
if [ "$moment" = "$name before" ]; then
    echo $$ >{place}/stopped
    while [ -e {place}/moment ]; do /bin/sleep 0.02; done
fi
if [ "$moment" = "$name after" ]; then
    "$real" "$@"
    code=$?
    echo $$ >{place}/stopped
    while [ -e {place}/moment ]; do /bin/sleep 0.02; done
    exit $code
fi
exec "$real" "$@"
"""


@dataclass(frozen=True)
class Trap:
    """Stops the programs that git runs. `place` is where the test says when."""

    place: Path

    @classmethod
    def build(cls, place: Path) -> Trap:
        """Lay out git's programs with two of them replaced."""
        programs, real = place / "programs", Path(git("--exec-path"))
        programs.mkdir(parents=True)
        for program in real.iterdir():
            (programs / program.name).symlink_to(program)
        shim = _SHIM.format(place=place, real=real / "git")
        for name in ("git", "cat"):
            (programs / name).unlink(missing_ok=True)
            (programs / name).write_text(shim)
            (programs / name).chmod(0o755)
        return cls(place)

    @property
    def environment(self) -> dict[str, str]:
        """What a serve in the trap is started with."""
        return {"GIT_EXEC_PATH": str(self.place / "programs")}

    def set(self, moment: str) -> None:
        """Makes the next program stop at one of MOMENTS."""
        command, when, _ = MOMENTS[moment]
        (self.place / "moment").write_text(f"{command} {when}\n")

    def wait(self) -> int:
        """Wait until one has stopped; return its pid."""
        return int(wait_until(lambda: self._stopped(), timeout=8, message="a program stops"))

    def open(self) -> None:
        """Nothing stops any more."""
        for name in ("moment", "stopped"):
            (self.place / name).unlink(missing_ok=True)

    def _stopped(self) -> str | None:
        stopped = self.place / "stopped"
        return stopped.read_text().strip() or None if stopped.exists() else None


@dataclass(frozen=True)
class TrappedNode(Node):
    """A node whose pushes stop where the trap says."""

    trap: Trap


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[TrappedNode]:
    """A node that the tests of this module share; it never shuts down in an orderly way."""
    base = tmp_path_factory.mktemp("trapped")
    trap = Trap.build(base / "trap")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        urls = [upstream.url(WIDGETS)]
        with Serve(base / "state", repos=urls, env=trap.environment, refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.keep_ports()
            yield TrappedNode(serve, upstream, trap)


def receive_pack_of(pid: int) -> int:
    """The `git receive-pack` above a process."""
    while pid > 1:
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        pid = int(status[1])
        if b"receive-pack" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return pid
    raise AssertionError("no receive-pack above it")


def kill_serve(node: TrappedNode, stopped: int) -> None:
    """serve alone dies, as by the OOM killer; its children live on until the next serve ends them."""
    node.serve.kill()


def kill_receive_pack(node: TrappedNode, stopped: int) -> None:
    """receive-pack dies, its hook lives on."""
    os.kill(receive_pack_of(stopped), signal.SIGKILL)


def kill_hook(node: TrappedNode, stopped: int) -> None:
    """The program that git waits for dies."""
    os.kill(stopped, signal.SIGKILL)


def kill_guest(node: TrappedNode, stopped: int) -> None:
    """Kills none of our processes; the test kills the guest."""


VICTIMS: dict[str, Callable[[TrappedNode, int], None]] = {
    "serve": kill_serve,
    "receive-pack": kill_receive_pack,
    "hook": kill_hook,
    "guest": kill_guest,
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_a_moment_of_a_push(trapped: TrappedNode, tmp_path: Path, victim: str, moment: str) -> None:
    """The log, the ref, the turn's ref and the session table agree, and an applied commit can be fetched."""
    node, name = trapped, new_session()
    guest = node.guest(tmp_path / "guest")
    commit = commit_turn(guest, f"{victim} {moment}")
    node.trap.set(moment)
    push = subprocess.Popen(
        ["git", "push", "--quiet", "origin", f"HEAD:{AGENTS}{name}"],
        cwd=guest,
        env=clean_env(tmp_path),
        stderr=subprocess.PIPE,
    )
    try:
        stopped = node.trap.wait()
        if victim == "guest":
            push.kill()
        VICTIMS[victim](node, stopped)
    finally:
        node.trap.open()
        push.communicate(timeout=20)
    if not node.serve.running:
        node.serve.start()
    assert_turns_are_kept(node)
    entry = entry_of(node.serve, f"{AGENTS}{name}")
    if victim == "guest":
        assert entry["outcome"] == "applied", "its push had come in whole"
    elif MOMENTS[moment][2] or victim != "serve":
        # An orphaned receive-pack may still go on until the next serve ends it; both ends are true then.
        # A check of all refs that dies is no verdict: git then checks each ref by itself.
        applied = MOMENTS[moment][2] or (victim, moment) == ("hook", "its objects are checked")
        assert entry["outcome"] == ("applied" if applied else "failed")
    at = refs(node.mirror).get(f"{AGENTS}{name}")
    if entry["outcome"] == "applied":
        assert at == commit and [turn.commit for turn in turns_of(node, name)] == [commit]
        assert fetches(node, commit, tmp_path / "fetch")
    else:
        assert at is None and turns_of(node, name) == []
    # Whoever was killed: the next push of the same session goes through, and no process is left over.
    git("push", "--quiet", "--force", "origin", f"HEAD:{AGENTS}{name}", cwd=guest)
    assert [turn.commit for turn in turns_of(node, name)][-1:] == [commit]
    wait_until(
        lambda: not [pid for pid in processes_of(node.trap.place) if pid != node.serve.pid],
        message="nobody is left over",
    )


def test_after_all_that_the_mirror_is_whole(trapped: TrappedNode) -> None:
    """No quarantine, no lock and no broken object is left when serve was started again."""
    trapped.trap.open()
    if trapped.serve.running:
        trapped.serve.kill()
    trapped.serve.start()
    assert_mirror_is_clean(trapped.mirror)
    assert_turns_are_kept(trapped)
