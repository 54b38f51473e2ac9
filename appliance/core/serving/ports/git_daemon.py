"""Relays one guest's connection to a `git daemon --inetd` child and back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.core.git.command import Git
from appliance.core.git.complaints import Hear, hears_nothing
from appliance.core.process.children import Child, Children, limit_push
from appliance.core.process.error_output import error_output
from appliance.core.serving.fetch.relayed import Relayed
from appliance.core.serving.net.idle import Activity, end_tasks
from appliance.core.serving.net.streams import CHUNK, IdleTimeout
from appliance.core.serving.wire.pktline import packet
from appliance.core.serving.wire.requests import RECEIVE_PACK, DaemonRequest, is_refusal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GitDaemon:
    """How `git daemon` is started: its path, the environment of receive-pack and upload-pack, and its timeout (s).

    `hear` gets each mirror with what git printed on stderr there.
    """

    program: str
    environment: Mapping[str, str]
    idle_timeout: float
    hear: Hear = hears_nothing

    def command(self) -> list[str]:
        """The command line for one connection on standard input. The caller adds the one directory it may serve."""
        return [
            self.program,
            "--inetd",
            "--export-all",
            "--strict-paths",
            "--enable=receive-pack",
            f"--timeout={max(1, round(self.idle_timeout))}",
            # So that git daemon passes on the errors of upload-pack and receive-pack, which it otherwise drops.
            "--log-destination=stderr",
        ]


async def find_git_daemon(
    git: Git, environment: Mapping[str, str], idle_timeout: float, hear: Hear = hears_nothing
) -> GitDaemon:
    """The `git daemon` that belongs to the installed git. Raises GitError."""
    exec_path = (await git.run("--exec-path", cwd=Path("/"), deadline=10)).stdout.decode().strip()
    return GitDaemon(f"{exec_path}/git-daemon", environment, idle_timeout, hear)


@contextlib.asynccontextmanager
async def daemon_child(
    children: Children, daemon: GitDaemon, mirror: Path, request: DaemonRequest, extra: Mapping[str, str]
) -> AsyncIterator[tuple[Child, socket.socket]]:
    """A child that was sent the first packet, and our end of its socket pair. The child is ended on exit."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(error_output(partial(daemon.hear, mirror)))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs:
            ours.setblocking(False)
            child = children.start(
                [*daemon.command(), str(mirror)],
                env=dict(daemon.environment) | dict(extra),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=errors,
            )
        try:
            if request.service == RECEIVE_PACK:
                # The limit is set early enough, because the child starts receive-pack only after its first packet.
                limit_push(child.pid)
            await asyncio.get_running_loop().sock_sendall(ours, request.replay(str(mirror)))
            yield child, ours
        finally:
            ours.close()
            await asyncio.shield(child.end())


UNREADABLE = "git cannot read this mirror; its operator finds the reason in the log"


async def _send_down(guest: socket.socket, child: socket.socket, activity: Activity, relayed: Relayed) -> None:
    """Copies the child's output to the guest until it ends, then ends the guest's side too. Raises OSError."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(child, CHUNK):
        activity.touch()
        if not relayed.sent and is_refusal(data):
            log.error("git daemon refused a fetch: %r", data[8:300])
            data = packet(f"ERR gitmirror: {UNREADABLE}".encode())
        await loop.sock_sendall(guest, data)
        activity.touch()
        relayed.down(data)
        # Two sockets that are always ready would otherwise keep other tasks from running.
        await asyncio.sleep(0)
    with contextlib.suppress(OSError):
        guest.shutdown(socket.SHUT_WR)


async def relay_fetch(
    guest: socket.socket, child: socket.socket, idle: float, relayed: Relayed, permitted: Callable[[], bool]
) -> None:
    """Relays a fetch until the child ends; records it in `relayed`.

    A guest that half-closes still gets the whole response, and a guest that never does so is not waited for. The
    guest's bytes are passed on only while `permitted` returns True, because a repository may become private after its
    refs were shown. Raises IdleTimeout, and OSError if the guest disconnected.
    """
    activity = Activity()
    upwards = asyncio.create_task(_send_up(guest, child, activity, relayed, permitted))
    downwards = asyncio.create_task(_send_down(guest, child, activity, relayed))
    watch = asyncio.create_task(activity.expire(idle))
    try:
        done, _ = await asyncio.wait({downwards, watch}, return_when=asyncio.FIRST_COMPLETED)
        if downwards not in done:
            raise IdleTimeout
        downwards.result()
    finally:
        await end_tasks(upwards, downwards, watch)


async def _send_up(
    guest: socket.socket, child: socket.socket, activity: Activity, relayed: Relayed, permitted: Callable[[], bool]
) -> None:
    """Copies the guest's requests to the child until the guest's side ends, even if by a reset."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while (data := await loop.sock_recv(guest, CHUNK)) and permitted():
            activity.touch()
            await loop.sock_sendall(child, data)
            activity.touch()
            relayed.up(data)
            await asyncio.sleep(0)
    with contextlib.suppress(OSError):
        child.shutdown(socket.SHUT_WR)
