"""Becomes `python -m appliance` again and again: it has imported everything, and forks for each process asked for.

Importing takes half a second of the processor, and the tests start thousands. What is forked is a process like any
other, with a session, files, environment and working directory of its own; `forked` is the side that asks. Tests of
how the program starts, and of the built file, start it anew.

It is run as `python -m tests.support.fork_server FD`. On that socket each request is a packet with four descriptors: a
socket for this process alone, stdin, stdout and stderr. There it reads a JSON object with `module`, `argv`, `env`,
`cwd`, `umask` and `ids`, and answers with the pid, and with the exit status once there is one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, cast

import appliance.__main__
import appliance.cli.main
import appliance.core.daemon.service
import appliance.core.fleet.client
import appliance.core.fleet.streams
import appliance.core.git.browse
import appliance.core.node.node
import appliance.core.node.offline
import appliance.core.node.running
import appliance.core.node.sessions
import appliance.core.store.migrations
from appliance.core.api.application import make_application
from appliance.core.api.compose import declare

LARGEST = 1 << 20
"""Bytes of a request."""


def wait_to_become_one(control: socket.socket) -> str:
    """Returns the module to run, in each forked process, as that process.

    In the server, does not return before `control` is closed.
    """
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    asking: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)
        _tell_ends(asking)
        if control.fileno() not in ready:
            continue
        data, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not data:
            sys.exit()
        own = socket.socket(fileno=descriptors[0])
        request = json.loads(own.recv(LARGEST))
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for left in (control.detach(), own.detach(), woken, wake, *asking.values()):
                os.close(left)
            _become(request, descriptors[1:])
            return str(request["module"])
        own.send(b"%d" % pid)
        asking[pid] = own.detach()
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def _tell_ends(asking: dict[int, int]) -> None:
    while asking:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with socket.socket(fileno=asking.pop(pid)) as own, contextlib.suppress(OSError):
            own.send(b"%d" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    if request["ids"]:
        user, group, groups = request["ids"]
        os.setgroups(groups)
        os.setgid(group)
        os.setuid(user)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv = [appliance.__main__.__file__, *request["argv"]]


def _run(module: str) -> None:
    """Runs the command, or a module of the tests, and ends as Python does but for taking its modules apart.

    For that, each page of them would be copied first, which is most of what a short command takes here.
    """
    code = 0
    try:
        if module == "appliance":
            appliance.__main__.main()
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # Python says so, and ends with a code of its own.
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    # The patterns of the routes, which Python keeps once they are compiled.
    nothing = cast(Any, None)
    make_application(declare(nothing, nothing, nothing), nothing)
    # So that a child copies few pages that the server has, too.
    gc.collect()
    gc.freeze()
    _run(wait_to_become_one(socket.socket(fileno=int(sys.argv[1]))))
