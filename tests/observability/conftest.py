"""A node that refreshes only on request, and the webhooks and tokens that request it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.conftest import WIDGETS
from tests.serving.fetch.wire import Reply, http_ask
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

SECRET = b"it's a secret"
TOKEN = "s3cret-token"
ODD = "acme/odd"
"""The repository of `hooked` that is told of refs which never arrive, so it is refreshed again and again."""


def status_of(serve: Serve) -> dict[str, Any]:
    """`status --json`, by the socket that the command asks."""
    return dict(call(Layout(serve.state), "GET", "/v1/status"))


def repo_of(serve: Serve, name: str = WIDGETS) -> dict[str, Any]:
    """One repository's entry of it."""
    return next(dict(repo) for repo in status_of(serve)["repos"] if repo["name"] == name)


def signature(body: bytes, secret: bytes = SECRET) -> str:
    """`X-Hub-Signature-256` of a body."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


@dataclass
class Hooked:
    """A running appliance with a webhook secret and a refresh token, and its upstream."""

    serve: Serve
    upstream: HttpUpstream
    secret_file: Path
    token_file: Path

    @property
    def url(self) -> str:
        """Where webhooks go."""
        return f"{self.serve.admin_url}/hooks/github"

    def send(self, body: bytes, event: str = "push", **headers: str) -> Reply:
        """A signed body as it is; `headers` (with `_` for `-`) replace those of GitHub."""
        given = {
            "Content-Type": "application/json",
            "X-GitHub-Event": event,
            "X-Hub-Signature-256": signature(body),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return http_ask(self.url, "POST", {name: value for name, value in given.items() if value}, body)

    def hook(
        self, event: str = "push", name: str = WIDGETS, repository: Mapping[str, Any] | None = None, **facts: Any
    ) -> Reply:
        """A webhook about one repository of the upstream, as GitHub would send it."""
        about = {"clone_url": f"{self.upstream.url(name)}.git", "full_name": name} if repository is None else repository
        return self.send(json.dumps({"repository": about, **facts}).encode(), event)

    def settle(self, name: str = WIDGETS) -> None:
        """Waits until the refreshes that were requested before have ended."""
        call(Layout(self.serve.state), "POST", "/v1/refresh", {"repos": [name]})

    def asked(self, name: str = WIDGETS) -> int:
        """How often the upstream was asked for refs so far."""
        return sum(each.repo == name and "info/refs" in each.path for each in self.upstream.requests)


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Hooked]:
    """A node that a module shares. It refreshes its repositories only on request."""
    base = tmp_path_factory.mktemp("hooked")
    secret, token = base / "secret", base / "token"
    secret.write_bytes(SECRET + b"\n")
    token.write_text(f"{TOKEN}\n")
    refresh = {"interval": "1h", "stale_after": "1d", "webhook_secret_file": str(secret), "token_file": str(token)}
    with HttpUpstream(base / "upstream") as upstream:
        names = (WIDGETS, "acme/other", ODD, "acme/off")
        for name in names:
            upstream.add(name, generated_bare)
        repos = [upstream.url(name) for name in names]
        with Serve(base / "state", repos=repos, refresh=refresh).start() as serve:
            for name in names:
                serve.wait_for_repo(name)
            serve.cli("disable", "acme/off")
            yield Hooked(serve, upstream, secret, token)


@pytest.fixture
def restored(hooked: Hooked) -> Iterator[Callable[[], None]]:
    """Puts the secret back after a test that changes it."""

    def restore() -> None:
        hooked.secret_file.unlink(missing_ok=True)
        hooked.secret_file.write_bytes(SECRET + b"\n")

    yield restore
    restore()


@pytest.fixture
def notify_socket(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A socket's path in place of systemd's notification socket."""
    return str(tmp_path_factory.mktemp("systemd") / "notify")


@pytest.fixture
def notified(notify_socket: str) -> Iterator[Callable[[], list[str]]]:
    """Returns the messages to systemd since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(notify_socket)
        listening.setblocking(False)

        def read() -> list[str]:
            said = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    said.append(listening.recv(65536).decode())
            return said

        yield read
