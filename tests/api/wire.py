"""HTTP by hand: bytes that no proper client sends, and responses read one by one from a kept connection."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.core.process.control_socket import short_name

WAIT = 60.0
"""Seconds that an answer may take: for hangs alone, since the machine may be busy."""
Address = Path | tuple[str, int]


@dataclass(frozen=True)
class Response:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """Without parameters."""
        return self.headers.get("content-type", "").partition(";")[0]

    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def problem(self, status: int, name: str) -> dict[str, Any]:
        """The document of a problem, after checking that it is this one and whole."""
        assert (self.status, self.media_type) == (status, "application/problem+json"), self
        document: dict[str, Any] = self.document()
        assert set(document) == {"type", "title", "status", "detail", "hint"}, document
        assert all(document.values()), document
        assert (document["status"], document["type"]) == (status, f"urn:gitmirror:problem:{name}"), document
        return document


class Wire:
    """A connection to the API."""

    def __init__(self, address: Address) -> None:
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(WAIT)
        if isinstance(address, Path):
            with short_name(address) as name:
                self.socket.connect(name)
        else:
            self.socket.connect(address)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self._file.close()
        self.socket.close()

    def say(self, data: bytes) -> Wire:
        """Sends bytes."""
        self.socket.sendall(data)
        return self

    def is_ended(self) -> bool:
        """Whether the server ends the connection next."""
        try:
            return not self._file.read(1)
        except ConnectionResetError:
            return True

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next response."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (field := self._file.readline().decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        return int(line[9:12]), headers

    def piece(self) -> bytes:
        """The next chunk of a chunked body; empty at its end, and when it is cut."""
        size = int(self._file.readline().strip() or b"0", 16)
        data = self._file.read(size)
        self._file.readline()
        return data

    def rest(self, within: float) -> bytes:
        """The last bytes until the server ends the connection, which it does in so many seconds."""
        end, last = time.monotonic() + within, b""
        while piece := self._file.read1(1 << 20):
            last = (last + piece)[-16:]
            assert time.monotonic() < end
        return last

    def response(self, method: str = "GET") -> Response:
        """The next response."""
        status, headers = self.head()
        body = b""
        if method != "HEAD" and status >= 200:
            if headers.get("transfer-encoding") == "chunked":
                while piece := self.piece():
                    body += piece
            else:
                body = self._file.read(int(headers.get("content-length", "0")))
        return Response(status, headers, body)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: Any) -> Response:
        """Sends a request and returns its response."""
        return self.say(request(method, target, body, **headers)).response(method)


def request(method: str, target: str, body: bytes | None = None, **headers: Any) -> bytes:
    """The bytes of a request with a counted body. `_` in a header's name stands for `-`."""
    fields = {"Host": "h", **({} if body is None else {"Content-Length": str(len(body))}), **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))
