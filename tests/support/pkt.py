"""A raw client for the git protocol that sends pkt-lines itself, so that a test can stop anywhere or send garbage."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support.gitutil import GitFailed, git_bytes

FLUSH = b"0000"
DELIM = b"0001"
RESPONSE_END = b"0002"
ZERO = "0" * 40
"""The object id that means "no ref" in a push command."""
_HEADER = b"PACK\x00\x00\x00\x02\x00\x00\x00\x00"
EMPTY_PACK = _HEADER + hashlib.sha1(_HEADER).digest()
"""A pack without objects, which is enough to push a ref to a commit that the other side has."""
CAPABILITIES = "report-status side-band-64k agent=test/1"
_DEADLINE = 30.0


class ProtocolError(Exception):
    """The other side sent something that is not a pkt-line, or stopped in the middle of one."""


def pkt(data: bytes | str) -> bytes:
    """Return one pkt-line."""
    raw = data.encode() if isinstance(data, str) else data
    return b"%04x%s" % (len(raw) + 4, raw)


def read_pkt(sock: socket.socket) -> bytes | None:
    """Read one pkt-line. Returns None for a flush, a delimiter or the end of the stream.

    Raises ProtocolError for a malformed pkt-line, TimeoutError after the socket's timeout.
    """
    head = _read(sock, 4)
    if not head:
        return None
    try:
        size = int(head, 16)
    except ValueError:
        raise ProtocolError(f"not a pkt-line: {head!r}") from None
    if size < 4:
        return None
    data = _read(sock, size - 4)
    if len(data) != size - 4:
        raise ProtocolError(f"{len(data)} bytes of a pkt-line of {size - 4}")
    return data


def read_pkts(sock: socket.socket) -> list[bytes]:
    """Read pkt-lines up to a flush, a delimiter or the end of the stream."""
    return list(iter(lambda: read_pkt(sock), None))


def daemon_request(
    host: str, port: int, service: str, path: str, extra: Sequence[str] = (), *, timeout: float = _DEADLINE
) -> socket.socket:
    """Connect to a git:// port and send the first packet. `extra` are parameters such as `version=2`.

    `timeout` is in seconds and applies to every later read and write of the socket.
    """
    first = f"{service} {path}\0host={host}:{port}\0"
    if extra:
        first += "\0" + "".join(f"{each}\0" for each in extra)
    sock = socket.create_connection((host, port), timeout=timeout)
    try:
        sock.sendall(pkt(first))
    except BaseException:
        sock.close()
        raise
    return sock


def make_pack(repo: Path, want: Iterable[str], have: Iterable[str] = ()) -> bytes:
    """Return a pack of the objects in `want` that `have` lacks. Raises GitFailed when `repo` lacks one of them."""
    revisions = "".join(f"{each}\n" for each in want) + "".join(f"^{each}\n" for each in have)
    args = ("pack-objects", "--revs", "--stdout", "--quiet")
    code, pack, stderr = git_bytes(*args, cwd=repo, input=revisions)
    if code:
        raise GitFailed(args, code, stderr.decode(errors="replace"))
    return pack


@dataclass
class PushAnswer:
    """What receive-pack sent before and after a push."""

    refs: dict[str, str] = field(default_factory=dict)
    """The advertised refs with their ids."""
    haves: list[str] = field(default_factory=list)
    """Ids advertised as `.have`."""
    capabilities: list[str] = field(default_factory=list)
    error: str = ""
    """The text of an `ERR` packet."""
    unpack: str = ""
    """`ok`, or why the pack was refused; "" when there was no report."""
    report: dict[str, str] = field(default_factory=dict)
    """For each ref, `ok` or the reason why it was refused."""
    messages: str = ""
    """What the guest's terminal shows (side band 2 and 3)."""

    @property
    def accepted(self) -> bool:
        """Whether everything was accepted."""
        return self.unpack == "ok" and bool(self.report) and set(self.report.values()) == {"ok"}


class PushConnection:
    """A push step by step: the constructor reads the advertisement, and the test sends the rest.

    A context manager that closes the socket. `answer` collects everything that was read.
    """

    def __init__(
        self, host: str, port: int, path: str, extra: Sequence[str] = (), *, timeout: float = _DEADLINE
    ) -> None:
        self.answer = PushAnswer()
        self.sock = daemon_request(host, port, "git-receive-pack", path, extra, timeout=timeout)
        try:
            self._read_advertisement()
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> PushConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self.sock.sendall(data)

    def half_close(self) -> None:
        """Shut down the sending side."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Close with a reset, like a guest that is killed with unread data."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.sock.close()

    def read_report(self) -> PushAnswer:
        """Read to the end of the report, split the side bands, and return `answer`."""
        report = bytearray()
        while (line := read_pkt(self.sock)) is not None:
            if line.startswith(b"ERR "):
                self.answer.error = line[4:].decode().strip()
            elif line[:1] == b"\x01":
                report += line[1:]
            elif line[:1] in (b"\x02", b"\x03"):
                self.answer.messages += line[1:].decode(errors="replace")
            else:
                self._note(line)
        for line in _split(bytes(report)):
            self._note(line)
        return self.answer

    def _note(self, line: bytes) -> None:
        word, _, rest = line.decode(errors="replace").rstrip("\n").partition(" ")
        if word == "unpack":
            self.answer.unpack = rest
        elif word == "ok":
            self.answer.report[rest] = "ok"
        elif word == "ng":
            ref, _, reason = rest.partition(" ")
            self.answer.report[ref] = reason

    def _read_advertisement(self) -> None:
        for number, line in enumerate(read_pkts(self.sock)):
            text, _, capabilities = line.decode(errors="replace").rstrip("\n").partition("\0")
            if text.startswith("ERR "):
                self.answer.error = text[4:]
                return
            if text.startswith("version "):
                continue
            if number == 0 or capabilities:
                self.answer.capabilities = capabilities.split()
            oid, _, name = text.partition(" ")
            if name == ".have":
                self.answer.haves.append(oid)
            elif name != "capabilities^{}":
                self.answer.refs[name] = oid


def push_bytes(
    commands: Iterable[tuple[str, str, str]], pack: bytes = EMPTY_PACK, capabilities: str = CAPABILITIES
) -> bytes:
    """Return what a client sends after the advertisement: `(old, new, ref)` commands, a flush, the pack.

    A client sends no pack when every command deletes a ref: pass `b""` then.
    """
    lines = []
    for number, (old, new, ref) in enumerate(commands):
        lines.append(pkt(f"{old} {new} {ref}" + (f"\0 {capabilities}" if number == 0 else "")))
    return b"".join(lines) + FLUSH + pack


def raw_push(
    host: str,
    port: int,
    path: str,
    commands: Iterable[tuple[str, str, str]],
    pack: bytes = EMPTY_PACK,
    *,
    capabilities: str = CAPABILITIES,
    extra: Sequence[str] = (),
    stop_after: int | None = None,
    timeout: float = _DEADLINE,
) -> PushAnswer:
    """Push `(old, new, ref)` commands and a pack over git://, and return the response.

    With `stop_after`, sends only that many bytes of commands and pack, and closes with a reset. A refusal that arrives
    during sending is read too.
    """
    with PushConnection(host, port, path, extra, timeout=timeout) as connection:
        if connection.answer.error:
            return connection.answer
        data = push_bytes(commands, pack, capabilities)
        if stop_after is not None:
            connection.send(data[:stop_after])
            connection.abort()
            return connection.answer
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(data)
        return connection.read_report()


def _split(report: bytes) -> list[bytes]:
    """Return the pkt-lines within side band 1."""
    lines = []
    while len(report) >= 4 and (size := int(report[:4], 16)) >= 4:
        lines.append(report[4:size])
        report = report[size:]
    return lines


def _read(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the stream."""
    parts = []
    while size:
        part = sock.recv(min(size, 65536))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
