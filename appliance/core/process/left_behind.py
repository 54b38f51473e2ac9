"""A process that stays whoever called while the command becomes the owner of a state directory, and acts for it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from appliance.core.errors import GitmirrorError

Operation = Callable[[Mapping[str, Any], int | None], int | None]
"""What may be done as the caller, with arguments that JSON can have and a descriptor; it may return a descriptor."""
MOST_BYTES = 2**16


class LeftBehind:
    """Runs `operations` for this process as the user that it is now. Methods may be called from several threads."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._pid = os.fork()
        if self._pid == 0:
            here.close()
            _act(there, operations)
        there.close()
        self._channel = here
        atexit.register(self.close)

    def run(self, name: str, arguments: Mapping[str, Any], descriptor: int | None = None) -> int | None:
        """Runs an operation, and returns the descriptor that it returns. Raises OSError and GitmirrorError."""
        request = json.dumps({"operation": name, **arguments}).encode()
        try:
            with self._lock:
                socket.send_fds(self._channel, [request], [] if descriptor is None else [descriptor])
                data, descriptors, _, _ = socket.recv_fds(self._channel, MOST_BYTES, 1)
        except OSError as error:
            raise GitmirrorError(f"the process that writes as the caller cannot be asked: {error.strerror}") from error
        if not data:
            raise GitmirrorError("the process that writes as the caller has ended", hint="run the command again")
        answer = json.loads(data)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"])
        if "message" in answer:
            raise GitmirrorError(answer["message"], hint=answer["hint"], exit_code=answer["exit_code"])
        return descriptors[0] if descriptors else None

    def close(self) -> None:
        """Ends the process. Whatever ends this one ends it too."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _act(channel: socket.socket, operations: Mapping[str, Operation]) -> None:
    """Answers until the other side is closed; never returns."""
    try:
        # Ctrl-C is for the command, which then says what is to be removed.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        while True:
            data, descriptors, _, _ = socket.recv_fds(channel, MOST_BYTES, 1)
            if not data:
                break
            answer, returned = _answer(json.loads(data), descriptors[0] if descriptors else None, operations)
            socket.send_fds(channel, [json.dumps(answer).encode()], [] if returned is None else [returned])
            for descriptor in (*descriptors, *([] if returned is None else [returned])):
                os.close(descriptor)
    finally:
        os._exit(0)


def _answer(
    request: dict[str, Any], descriptor: int | None, operations: Mapping[str, Operation]
) -> tuple[dict[str, Any], int | None]:
    try:
        return {}, operations[request.pop("operation")](request, descriptor)
    except OSError as error:
        return {"errno": error.errno or 0, "file": str(error.filename or "")}, None
    except GitmirrorError as error:
        return {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}, None
