"""The protocols between systemd and a service: inherited sockets, readiness and the watchdog.

Both protocols are a few environment variables and datagrams (sd_listen_fds(3), sd_notify(3)), so this module
implements them itself and needs no library. Without systemd, nothing here has any effect.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

from appliance.core.errors import GitmirrorError
from appliance.core.serving.net.guest_sockets import KEPT_PREFIX
from appliance.core.text import escape

logger = logging.getLogger(__name__)

LISTENERS = ("git", "http", "admin")
"""The values of `FileDescriptorName=` that a socket unit may have."""

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START: the number of the first inherited descriptor."""

VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "FDSTORE",
)
"""Variables that systemd sets for this process alone. A child that inherits them could act as the service."""


class InheritedSocketError(GitmirrorError):
    """The descriptors from systemd are not those that gitmirror's units pass."""


def take_environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Removes systemd's variables from `environ` and returns them, so that no child inherits them."""
    return {name: environ.pop(name) for name in VARIABLES if name in environ}


class Notifier:
    """Reports the state of `serve` to systemd. Every call returns at once and none raises.

    If systemd's queue is full, the message is sent together with the next one.
    """

    def __init__(self, address: str | None, watchdog_interval: float | None = None) -> None:
        """`address` is a socket path, `@name` for an abstract socket, or None, with which no call has any effect.

        `watchdog_interval` is how often `watchdog` should be called, in seconds, or None without a watchdog.
        """
        self._address = address
        self._interval = watchdog_interval if address else None
        self._socket: socket.socket | None = None
        self._unsent: dict[str, str] = {}
        self._complained = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """A notifier configured by `environ`. Invalid values are logged and ignored."""
        address = environ.get("NOTIFY_SOCKET") or None
        if address is not None and not address.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET is %r, no path or abstract socket: systemd is not notified", address)
            address = None
        return cls(address, _watchdog_interval(environ))

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of `watchdog`, half of what systemd allows, or None without a watchdog."""
        return self._interval

    def ready(self, status: str) -> None:
        """Guests are accepted, or a reload has ended. `status` is the line that `systemctl status` shows."""
        self._send({"READY": "1", "STATUS": status})

    def status(self, text: str) -> None:
        """Changes the one line that `systemctl status` shows."""
        self._send({"STATUS": text})

    def reloading(self) -> None:
        """A reload of the configuration has begun. `ready` ends it."""
        # Type=notify-reload (systemd 253) requires the time; older versions ignore it.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(now)})

    def stopping(self, seconds: float = 0) -> None:
        """The drain has begun and may take `seconds`. systemd waits that long, even beyond TimeoutStopSec=."""
        values = {"STOPPING": "1"}
        if seconds > 0:
            values["EXTEND_TIMEOUT_USEC"] = str(round(seconds * 1_000_000))
        self._send(values)

    def watchdog(self) -> None:
        """This process still makes progress."""
        self._send({"WATCHDOG": "1"})

    def close(self) -> None:
        """Closes the socket. A later call opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, values: dict[str, str]) -> None:
        if self._address is None:
            return
        if "READY" in values:
            # systemd ignores READY in a message with RELOADING, so drop the unsent start of a reload that has ended.
            self._unsent.pop("RELOADING", None)
            self._unsent.pop("MONOTONIC_USEC", None)
        self._unsent.update(values)
        # A line break inside a value would start another assignment.
        lines = (f"{name}={escape(' '.join(value.split()))}" for name, value in self._unsent.items())
        # In the kernel's form, an abstract socket's name starts with NUL instead of @.
        target = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(lines).encode(errors="replace"), target)
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.warning("cannot notify systemd at %s: %s; will try again each time", self._address, error)
        else:
            self._unsent.clear()
            self._complained = False


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC in seconds, as sd_watchdog_enabled(3) advises; None if it is not meant for this process."""
    allowed = environ.get("WATCHDOG_USEC")
    if not allowed or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not allowed.isascii() or not allowed.isdigit() or int(allowed) == 0:
        logger.warning("WATCHDOG_USEC is %r, not a number of microseconds: the watchdog is not pinged", allowed)
        return None
    return int(allowed) / 2_000_000


def inherited_sockets(environ: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """The listening sockets that systemd passed to process `pid`, by name; empty without any.

    Those of the socket units have a name of LISTENERS, and those that `serve` let systemd keep begin with KEPT_PREFIX.

    They are non-blocking, and children do not inherit them. A socket unit may have several addresses under one name,
    hence the lists. Raises InheritedSocketError for a socket that no unit of gitmirror passes, because serving on a
    socket of unknown purpose could expose the admin port to guests.
    """
    if environ.get("LISTEN_PID") != str(pid) or "LISTEN_FDS" not in environ:
        return {}
    count = _descriptor_count(environ["LISTEN_FDS"])
    if count == 0:
        return {}
    named = environ.get("LISTEN_FDNAMES", "")
    names = named.split(":") if named else []
    if len(names) != count:
        raise InheritedSocketError(
            f"systemd passed sockets, {count} of them, but LISTEN_FDNAMES is {named!r}",
            hint=f"each socket unit needs a FileDescriptorName= of {', '.join(LISTENERS)}",
        )
    unknown = sorted({name for name in names if not name.startswith(KEPT_PREFIX)} - set(LISTENERS))
    if unknown:
        raise InheritedSocketError(
            f"systemd passed sockets with unknown names: {', '.join(repr(name) for name in unknown)}",
            hint=f"FileDescriptorName= of a socket unit must be one of {', '.join(LISTENERS)}",
        )
    adopted: dict[str, list[socket.socket]] = {}
    try:
        for descriptor, name in enumerate(names, FIRST_DESCRIPTOR):
            adopted.setdefault(name, []).append(_adopt(descriptor, name))
    except InheritedSocketError:
        for listener in (listener for listeners in adopted.values() for listener in listeners):
            listener.close()
        raise
    return adopted


def _descriptor_count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise InheritedSocketError(f"LISTEN_FDS is {text!r}, not a number", hint="start serve through its units")
    return int(text)


def _adopt(descriptor: int, name: str) -> socket.socket:
    """The socket object of an inherited descriptor, after checking that it is a listening stream socket."""
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise InheritedSocketError(
            f"the socket for {name} (descriptor {descriptor}) cannot be used: {error.strerror}",
            hint="start serve through its units, or unset LISTEN_FDS",
        ) from None
    listening = 0
    with contextlib.suppress(OSError):
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.type != socket.SOCK_STREAM or not listening:
        listener.close()
        raise InheritedSocketError(
            f"the socket for {name} (descriptor {descriptor}) is not a listening stream socket",
            hint="the socket unit needs ListenStream= and Accept=no",
        )
    listener.set_inheritable(False)
    listener.setblocking(False)
    return listener
