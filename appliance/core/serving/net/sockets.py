"""Listening sockets: TCP, unix and vsock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.core.config.addresses import ListenAddress, UnixAddress, VsockAddress
from appliance.core.errors import GitmirrorError
from appliance.core.serving.net.socket_files import (
    SocketFile,
    SocketPathError,
    bind,
    is_dead,
    open_directory,
    remove_dead,
)
from appliance.core.text import escape
from appliance.core.units import Address

BACKLOG = 4096
"""The length of the backlog: a thousand guests may start in one second. The kernel caps it at net.core.somaxconn."""
ADMIN_MODE = 0o660
"""The mode of a unix socket of the admin port: its connections are for operators."""
GUESTS_MODE = 0o666
"""The mode of the guests' unix sockets: who may enter their directory may connect, as anybody may over TCP."""


def listen(address: Address | VsockAddress, setting: str) -> socket.socket:
    """A non-blocking socket that listens on `address`. Raises GitmirrorError, which names the `setting` to change."""
    with _naming(address, setting):
        return _listen_vsock(address) if isinstance(address, VsockAddress) else _listen_tcp(address)


def listen_at(address: UnixAddress, setting: str) -> tuple[socket.socket, SocketFile]:
    """A non-blocking socket that listens at a path, and its file; the admin port's is for the service's group alone.

    A socket's file that a killed `serve` left there is replaced; one on whose socket somebody listens, and a file that
    is no socket, are left alone. Raises GitmirrorError, which names the `setting` to change.
    """
    with _naming(address, setting):
        return _listen_unix(Path(address.path), ADMIN_MODE if setting == "admin" else GUESTS_MODE)


def listen_on(
    addresses: Sequence[ListenAddress], setting: str, scheme: str
) -> tuple[dict[socket.socket, str], list[SocketFile]]:
    """Listens on all addresses: the sockets with what to show as their addresses, and the files of unix sockets.

    Raises GitmirrorError, which names the `setting` to change.
    """
    sockets, files = {}, []
    for address in addresses:
        if isinstance(address, UnixAddress):
            listening, socket_file = listen_at(address, setting)
            files.append(socket_file)
            # It was bound by a short name, which does not say where it is.
            sockets[listening] = str(address)
        else:
            listening = listen(address, setting)
            sockets[listening] = shown_address(listening, scheme)
    return sockets, files


def try_to_listen(address: ListenAddress, setting: str) -> None:
    """Finds out whether `listen` would succeed, and leaves nothing behind. Raises GitmirrorError as `listen` does."""
    if isinstance(address, UnixAddress):
        path = Path(address.path)
        if path.exists() or path.is_symlink():
            directory = open_directory(path.parent)
            try:
                _require_dead(directory, path)
            finally:
                os.close(directory)
            return
        listening, socket_file = listen_at(address, setting)
        listening.close()
        socket_file.remove()
        os.close(socket_file.directory)
    else:
        listen(address, setting).close()


@contextlib.contextmanager
def _naming(address: ListenAddress, setting: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise GitmirrorError(
            f"cannot listen on {address}: {error.strerror if isinstance(error, OSError) else error}",
            hint=f"choose another address with --{setting} or [serve] {setting}, or stop the program that uses it",
        ) from None


def shown_address(listening: socket.socket, scheme: str) -> str:
    """Where a socket listens: `scheme://HOST:PORT`, `unix:/path` (`unix:@name` if abstract) or `vsock:PORT`."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{_unix_name(listening)}"
    if listening.family == socket.AF_VSOCK:
        return f"vsock:{listening.getsockname()[1]}"
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def client_of(listening: socket.socket, address: object) -> tuple[str, int]:
    """The client, for the record, and the port of a connection that `listening` accepted from `address`.

    Who comes by a unix socket has no address, so it is named after the socket's file.
    """
    if listening.family == socket.AF_UNIX:
        return f"unix:{_unix_name(listening).rpartition('/')[2] or '?'}", 0
    if not isinstance(address, tuple):
        return "unknown", 0
    if listening.family == socket.AF_VSOCK:
        return f"vsock:{address[0]}", address[1]
    host = str(address[0])
    # A dual-stack socket reports an IPv4 address with this prefix.
    return host.removeprefix("::ffff:") if "." in host else host, address[1]


def _unix_name(listening: socket.socket) -> str:
    """The path that a unix socket was bound to, or the name of an abstract one after an @; no control characters."""
    name = listening.getsockname()
    if isinstance(name, bytes):
        return "@" + escape(name.removeprefix(b"\0").decode("utf-8", "surrogateescape"))
    return escape(name)


def _listen_tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _listen_vsock(address: VsockAddress) -> socket.socket:
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.bind((socket.VMADDR_CID_ANY, address.port or socket.VMADDR_PORT_ANY))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _listen_unix(path: Path, mode: int) -> tuple[socket.socket, SocketFile]:
    """Raises OSError, SocketPathError."""
    directory = open_directory(path.parent)
    try:
        try:
            return bind(directory, path.name, mode, os.getegid(), BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        _require_dead(directory, path)
        remove_dead(directory, path.name)
        return bind(directory, path.name, mode, os.getegid(), BACKLOG)
    except BaseException:
        os.close(directory)
        raise


def _require_dead(directory: int, path: Path) -> None:
    """Raises SocketPathError unless the file at `path` is a socket on which nobody listens."""
    if is_dead(directory, path.name):
        return
    is_socket = stat.S_ISSOCK(os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_mode)
    raise SocketPathError(
        f"cannot listen on {path}: " + ("another program listens there" if is_socket else "there is a file already"),
        hint="choose another path, or stop the program that uses it" if is_socket else "choose another path",
    )


def unsent_bytes(descriptor: int) -> int:
    """The bytes in a socket's buffer that its peer has not acknowledged; 0 if it is closed."""
    try:
        [count] = struct.unpack("=i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):
        return 0
    return int(count)
