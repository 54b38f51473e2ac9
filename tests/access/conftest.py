"""A node that mirrors one repository with a token and one without, and what its guests can learn."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import clean_env, git, git_result
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

SECRET = "acme/secret"
"""The repository that the upstream serves only with the token."""
OTHER = "acme/other"
"""Another one that is private."""
NOWHERE = "acme/nowher"
"""One that nobody has registered; its name is as long as that of `SECRET`."""
TOKEN = "ghp_0123456789abcdefTOKENOFTHEUPSTREAM"
USER = "x-access-token"
SETTLED = {"interval": "1h", "stale_after": "1d"}


def encodings(secret: str, user: str = USER) -> list[bytes]:
    """The forms in which a secret may appear: as it is, and as it is sent over the network."""
    return [secret.encode(), base64.b64encode(f"{user}:{secret}".encode()).rstrip(b"=")]


class Sampling:
    """Searches all processes for secrets, again and again, in these files below /proc."""

    def __init__(self, secrets: list[bytes], files: Sequence[str] = ("cmdline", "environ")) -> None:
        self.found: set[str] = set()
        self.saw_git = False
        self._secrets = secrets
        self._files = files
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended.wait(0.001):
            for process in Path("/proc").glob("[0-9]*"):
                for name in self._files:
                    try:
                        data = (process / name).read_bytes()
                    except OSError:
                        continue
                    self.saw_git |= b"git-remote-http" in data or b"git\0remote-http" in data
                    if any(secret in data for secret in self._secrets):
                        self.found.add(f"{name} of {data[:80]!r}")


def lock(upstream: HttpUpstream, *names: str, token: str = TOKEN) -> None:
    """Demand a token for repositories."""
    for name in names:
        faults = upstream.on(name)
        faults.require_password, faults.user, faults.password = True, USER, token


def write_secret(path: Path, text: str) -> Path:
    """Write a file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Node:
    """A running appliance that mirrors `SECRET` and `OTHER` with a token, and `WIDGETS` without."""

    serve: Serve
    upstream: HttpUpstream
    token_file: Path

    def entry(self, *names: str, **more: str) -> list[dict[str, str]]:
        """`[[credentials]]` for these repositories."""
        return [{"url": self.upstream.url(name), "token_file": str(self.token_file), **more} for name in names]

    def issue(self, repo: str = SECRET, ttl: str = "1h") -> dict[str, Any]:
        """`token issue --json`."""
        return dict(self.serve.cli_json("token", "issue", "--repo", repo, "--ttl", ttl))

    def ls_remote(self, url: str, token: str | None = None) -> tuple[int, str]:
        """What `git ls-remote` prints, and its error output. The token is sent as the docs say."""
        code, out, err = git_result("ls-remote", url, "HEAD", env=bearer(token) if token else None)
        return code, out if code == 0 else err


def bearer(token: str, url: str = "") -> Mapping[str, str]:
    """The environment of a guest whose git sends a read token, only to `url` or to every URL."""
    return clean_env(
        Path(os.environ["HOME"]),
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"http.{url}.extraHeader" if url else "http.extraHeader",
        GIT_CONFIG_VALUE_0=f"Authorization: Bearer {token}",
    )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that all tests of a module share. It refreshes only on request."""
    place = tmp_path_factory.mktemp("private")
    token_file = write_secret(place / "token", TOKEN + "\n")
    with HttpUpstream(place / "upstream") as upstream:
        for name in (SECRET, OTHER, WIDGETS):
            upstream.add(name, generated_bare)
        lock(upstream, SECRET, OTHER)
        urls = [upstream.url(name) for name in (SECRET, OTHER, WIDGETS)]
        with Serve(place / "state", repos=urls, refresh=SETTLED) as serve:
            made = Node(serve, upstream, token_file)
            serve.configure(urls, refresh=SETTLED, credentials=made.entry(SECRET, OTHER))
            serve.start()
            for name in (SECRET, OTHER, WIDGETS):
                serve.wait_for_repo(name)
            yield made


def raw_http(serve: Serve, request: bytes) -> bytes:
    """All bytes of the response to one request, which asks to close the connection."""
    parts = urlsplit(serve.http_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as sock:
        sock.sendall(request)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def tip(upstream: HttpUpstream, name: str) -> str:
    """`main` of a repository upstream."""
    return git("rev-parse", "refs/heads/main", cwd=upstream.path(name))
