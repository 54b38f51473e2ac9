"""Plain HTTP requests, whole answers, and tars read as a guest gets them."""

from __future__ import annotations

import http.client
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.tars import unpack_tar


@dataclass(frozen=True)
class Reply:
    """One answer. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def tar(self) -> tarfile.TarFile:
        """The body as a tar."""
        return tarfile.open(fileobj=io.BytesIO(self.body))


def get(url: str, method: str = "GET", timeout: float = 60.0, **headers: str) -> Reply:
    """Ask once; `if_none_match="x"` is the header `If-None-Match: x`."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def unpack(reply: Reply, path: Path) -> Path:
    """Extract a tar as GNU tar does; return where."""
    assert reply.status == 200, reply.body
    path.mkdir(parents=True)
    with reply.tar() as tar:
        unpack_tar(tar, path, filter="fully_trusted")
    return path
