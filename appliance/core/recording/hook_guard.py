"""Installs the hooks, checks before each push that they are unchanged, and proves that git runs them.

git skips a hook that is missing or not executable, and accepts the push (tried: `chmod -x`, a noexec mount). So this
module checks both that the files are still there and that git runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git
from appliance.core.git.reflog import read_moves, was_moved
from appliance.core.git.revisions import empty_tree_like
from appliance.core.layout import Layout
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.disk import room_of
from appliance.core.recording.policy import EVERY_SESSION

_EMPTY_PACK = bytes.fromhex("5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e")
_PROOF_DEADLINE = 20.0

OFF = "pushes are off"
"""The beginning of every refusal that is caused by the node, not by the guest."""
_RESTART = "then `systemctl restart gitmirror`"


class HookGuardBroken(GitmirrorError):
    """Pushes are off because their guard cannot be relied on. `mend` tells an operator how to fix that."""

    def __init__(self, message: str, *, hint: str, mend: str) -> None:
        super().__init__(message, hint=hint)
        self.mend = mend


@dataclass(frozen=True)
class _Installed:
    """An installed hook file, and the file attributes that show whether it was changed."""

    path: Path
    identity: tuple[int, int, int, int, int]


def _identity(path: Path) -> tuple[int, int, int, int, int]:
    status = path.stat()
    # Nobody can set ctime back, and chmod, writing and replacing all change it.
    return status.st_dev, status.st_ino, status.st_size, status.st_mode, status.st_ctime_ns


class HookGuard:
    """Guards the hooks below `layout.hooks`. `environment` is the environment of receive-pack."""

    def __init__(self, layout: Layout, git: Git, environment: Mapping[str, str]) -> None:
        self._layout = layout
        self._git = git
        self._environment = dict(environment)
        self._installed: tuple[_Installed, ...] = ()
        self.broken: str | None = "the guard has not been proved yet"
        self.may_recover = False
        """Whether to try the installation and the proof again: the system failed, and nobody changed a hook."""

    def install(self) -> None:
        """Writes the hooks, each atomically. Raises HookGuardBroken."""
        hooks = self._layout.hooks
        source = resources.files("appliance.core.recording")
        try:
            if hooks.exists():
                shutil.rmtree(hooks)
            hooks.mkdir(parents=True)
            for name in ("policy.py", "pre_receive.py"):
                write_atomically(hooks / name, source.joinpath(name).read_text(encoding="utf-8"))
            # The hook runs through sh, because a shebang allows neither a space in the path of the interpreter nor a
            # very long path.
            command = f"exec {shlex.quote(sys.executable)} -IS {shlex.quote(str(hooks / 'pre_receive.py'))}\n"
            write_atomically(hooks / "pre-receive", f"#!/bin/sh\n{command}", mode=0o755)
            write_atomically(hooks / "update", _TURN_HOOK, mode=0o755)
            names = ("policy.py", "pre_receive.py", "pre-receive", "update")
            self._installed = tuple(_Installed(hooks / name, _identity(hooks / name)) for name in names)
        except OSError as error:
            self.broken, self.may_recover = f"the hooks cannot be written: {error}", True
            hint = f"make sure that serve can write {hooks}"
            raise HookGuardBroken(self.broken, hint=hint, mend=self._mend()) from error

    def check(self) -> None:
        """Raises HookGuardBroken unless the guard is proved, the hook files are unchanged, and the disk has space."""
        if self.broken is None:
            self.broken = self._changed()
        if self.broken is not None:
            raise HookGuardBroken(
                f"{OFF}: {self.broken}",
                hint="the operator must fix it and restart gitmirror (see `doctor`)",
                mend=self._mend(),
            )
        room = room_of(self._layout.state)
        if room is not None and room.is_full:
            raise HookGuardBroken(
                f"{OFF}: {room.complaint(self._layout.state)}",
                hint="the operator must free disk space (see `doctor`)",
                mend="free disk space; no restart is needed",
            )

    def _mend(self) -> str:
        hooks = self._layout.hooks
        if self.may_recover:
            return f"free disk space and check who may write {hooks.parent}; serve tries again by itself"
        return f"find out who changed {hooks}, {_RESTART}, which installs and proves the hooks again"

    def _changed(self) -> str | None:
        for hook in self._installed:
            try:
                identity = _identity(hook.path)
            except OSError as error:
                return f"the hook {hook.path.name} is gone ({error.strerror})"
            if identity != hook.identity:
                mode = stat.S_IMODE(identity[3])
                return f"the hook {hook.path.name} was changed after it was installed (mode {mode:o})"
        return None

    async def prove(self, daemon: list[str]) -> None:
        """Pushes to a scratch mirror as a guest would, but without the first guard; sets `broken` to the result.

        `daemon` is the command line of `git daemon --inetd`. A push of `refs/heads/x` must be refused, which shows that
        the hook runs. One of `refs/agents/x` must be accepted, which shows that the hook does not refuse everything.
        The reflog of the ref that moved must name the push.
        """
        scratch = self._layout.run / "proof.git"
        try:
            async with asyncio.timeout(_PROOF_DEADLINE):
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
                tip = await self._scratch_commit(scratch)
                branch = await self._push(daemon, scratch, tip, "refs/heads/x")
                agent = await self._push(daemon, scratch, tip, "refs/agents/x")
                moved = await self._git.run(
                    "for-each-ref", "--format=%(refname)", "refs/", cwd=scratch, deadline=_PROOF_DEADLINE
                )
            self.may_recover = False
        except (OSError, TimeoutError, GitmirrorError) as error:
            self.may_recover = True
            self.broken = f"the proof that the hook guards pushes failed: {str(error) or type(error).__name__}"
        else:
            refs = moved.stdout.decode().split()
            if "refs/heads/x" in refs:
                self.broken = (
                    f"git does not run the hook {self._layout.hooks / 'pre-receive'} (is it on a noexec mount?)"
                )
            elif "refs/agents/x" in refs and "refs/gitmirror/turns/proof" not in refs:
                self.broken = "git does not run the hook update, which keeps a ref for every turn"
            elif "refs/agents/x" not in refs:
                self.broken = f"the hook refuses a push that it must allow: {agent or branch}"
            elif not was_moved(read_moves(scratch, "refs/agents/x"), "proof", tip, tip):
                self.broken = "git keeps no log of who moves a ref, and outcomes cannot be known without it"
            else:
                self.broken = self._changed()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def _scratch_commit(self, scratch: Path) -> str:
        scratch.mkdir(parents=True)
        await self._git.run("init", "--quiet", "--bare", "--template=", ".", cwd=scratch, deadline=_PROOF_DEADLINE)
        identity = "gitmirror <gitmirror@localhost> 1000000000 +0000"
        commit = f"tree {empty_tree_like('0' * 40)}\nauthor {identity}\ncommitter {identity}\n\nproof\n"
        written = await self._git.run(
            "hash-object",
            "-t",
            "commit",
            "-w",
            "--stdin",
            cwd=scratch,
            deadline=_PROOF_DEADLINE,
            stdin=commit.encode(),
        )
        return written.stdout.decode().strip()

    async def _push(self, daemon: list[str], scratch: Path, tip: str, ref: str) -> str:
        """Pushes one ref without git; returns the end of the response, for the error message."""
        ours, theirs = socket.socketpair()
        turns = scratch / "gitmirror-turns"
        turns.write_text("refs/agents/x proof\n")
        environment = self._environment | push_environment("proof", turns, EVERY_SESSION)
        with ours:
            with theirs:
                child = self._git.children.start(
                    [*daemon, str(scratch)], env=environment, stdin=theirs.fileno(), stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                )  # fmt: skip
            try:
                ours.setblocking(False)
                loop = asyncio.get_running_loop()
                command = f"{'0' * 40} {tip} {ref}\0report-status".encode()
                await loop.sock_sendall(ours, _packet(f"git-receive-pack {scratch}\0".encode()))
                await loop.sock_sendall(ours, _packet(command) + b"0000" + _EMPTY_PACK)
                answer = b""
                while data := await loop.sock_recv(ours, 65536):
                    answer += data
                await child.wait()
            finally:
                with contextlib.suppress(TimeoutError):
                    await child.end()
        return answer.decode("utf-8", "replace")[-300:]


def push_environment(push: str, turns: Path, sessions: Sequence[str]) -> dict[str, str]:
    """The environment variables for receive-pack and the hooks: a push, its turn file, the sessions it may write.

    The id is also the committer's email, so git writes it into the reflog of each ref that the push moves.
    """
    return {
        "GITMIRROR_PUSH": push,
        "GITMIRROR_TURNS": str(turns),
        "GITMIRROR_SESSIONS": " ".join(sessions),
        "GIT_COMMITTER_NAME": "gitmirror",
        "GIT_COMMITTER_EMAIL": push,
    }


def _packet(payload: bytes) -> bytes:
    return b"%04x%s" % (len(payload) + 4, payload)


_TURN_HOOK = """\
#!/bin/sh
# git calls this for each ref after its objects are in place and before it moves. The turn's own ref is created first,
# so that no recorded commit is lost, whichever process is killed. A ref without an open turn does not move.
while read -r ref turn; do
    if [ "$ref" = "$1" ]; then
        # The empty old value: the ref must not exist. A log that is older than this mirror assigns ids a second time.
        exec git -c core.hooksPath=/dev/null -c core.logAllRefUpdates=false \\
            update-ref "refs/gitmirror/turns/$turn" "$3" ""
    fi
done <"$GITMIRROR_TURNS"
echo "gitmirror: refused: no turn was opened for $1" >&2
exit 1
"""
