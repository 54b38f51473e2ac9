"""A running `serve` in which there is something of everything, and HTTP sessions for each kind of caller of its API."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.process.control_socket import short_name
from appliance.core.store.api_tokens import TokenScope
from tests.access.conftest import TOKEN, lock, write_secret
from tests.support.generate import add_commit, generate_repository
from tests.support.gitutil import commit_files, git, git_result, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

READ, SECRET, OWN, FAILING = "acme/gadgets", "acme/secret", "acme/own", "acme/gone"
"""The repositories: an open one that is only read, a private one, one that calls may change, one without upstream.
None is `acme/widgets`: that is the example in the description, so any operation may be tried on it."""
SESSIONS = ("fix-dns", "tidy_2.0", "kept")
NOWHERE = "http://127.0.0.1:9"
"""The proxy of `serve`: nothing listens there, so no URL that is made up leads out of this machine."""
PATIENCE = 60.0


class _UnixConnection(urllib3.connection.HTTPConnection):
    """HTTP on a unix socket, whose path stands in for the address."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connects."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        with short_name(self._path) as name:
            self.sock.connect(name)


class _UnixAdapter(HTTPAdapter):
    """Sends every request of a session to one unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = urllib3.HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = lambda *_, **__: _UnixConnection(path)  # type: ignore[assignment]

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        """The pool of connections to the socket, whatever the URL."""
        return self._pool


class Caller(requests.Session):
    """Sends requests as they are. Of a stream of events it takes what there is at once, and hangs up."""

    def __init__(self, socket_path: Path | None = None) -> None:
        super().__init__()
        self.trust_env = False
        if socket_path is not None:
            self.mount("http://", _UnixAdapter(socket_path))

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        """Sends it and reads the response."""
        settings |= {"stream": True, "timeout": PATIENCE, "allow_redirects": False}
        response = super().send(request, **settings)
        if response.headers.get("content-type", "").startswith("text/event-stream") and request.method != "HEAD":
            response._content = next(response.iter_content(None), b"")
            response.close()
        # Anything else is read to its end.
        assert response.content is not None
        return response


def place_of_guest(place: Path) -> Path:
    """Where the sockets of the known guest are."""
    return place / "sockets" / "vm-7.sock"


def attach(serve: Serve, repo: str, session: str, commit: str) -> None:
    """Attaches a transcript to a turn, as the kit does."""
    url = f"{serve.http_url}/{repo}/agents/{session}/{commit}/attachments/transcript.json"
    assert requests.put(url, b"{}", timeout=60).status_code == 201


class Populated:
    """A node and what is in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.upstream = HttpUpstream(place / "upstream")
        (place / "sockets").mkdir()
        token_file = write_secret(place / "token", TOKEN + "\n")
        for name in (READ, SECRET, OWN):
            generate_repository(self.upstream.path(name), files=12, commits=6, branches=2, tags=3)
        lock(self.upstream, SECRET)
        self.local = generate_repository(place / "local.git", files=12, commits=2, branches=1, tags=0)
        self.serve = Serve(
            place / "state",
            repos=[self.upstream.url(name) for name in (READ, SECRET)],
            env={name: NOWHERE for name in ("http_proxy", "https_proxy", "all_proxy")} | {"no_proxy": "127.0.0.1"},
            credentials=[{"url": self.upstream.url(SECRET), "token_file": str(token_file)}],
            refresh={"interval": "1h", "stale_after": "1d", "allow_local": True},
            backup={"to": str(place / "backups"), "every": "1h"},
            # Tests may run as root, and paths are made up: a guest's sockets can be nowhere else.
            guests={"socket_directories": [str(place / "sockets")]},
        ).start()
        self._numbers = itertools.count(1)
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends `serve` and the upstream."""
        self.serve.close()
        self.upstream.close()

    def _fill(self) -> None:
        self.operator = self.caller("socket")
        stores = open_stores(Layout(self.serve.state))
        self.tokens = {scope: stores.api_tokens.issue(TokenScope(scope))["token"] for scope in ("read", "operate")}
        revoked = stores.api_tokens.issue(TokenScope.OPERATE)
        self.tokens["revoked"] = revoked["token"]
        stores.api_tokens.revoke(revoked["id"])
        for name in (READ, SECRET):
            path = f"/v1/repos/{name}"
            wait_until(lambda path=path: self.ask("GET", path)["state"] == "fresh", message=f"{name} is cloned")  # type: ignore[misc]
        self.post("/v1/repos", {"url": self.upstream.url(OWN)})
        self.post("/v1/repos", {"url": self.upstream.url(FAILING)})
        for number in (1, 2, 3):
            add_commit(self.upstream.path(READ), "main", {f"new-{number}": "x\n"})
            self.post(f"/v1/repos/{READ}/refresh")
        for session in SESSIONS:
            self.record(session, turns=3 if session == SESSIONS[0] else 1)
        attach(self.serve, READ, SESSIONS[0], git("rev-parse", "HEAD~2", cwd=self.place / "work-1"))
        work = self.place / "work-1"
        for ref in ("refs/heads/main", "refs/agents/-rejected"):
            assert git_result("push", "-q", "origin", f"HEAD:{ref}", cwd=work)[0] != 0
        self.read_token = self.post("/v1/tokens", {"repo": SECRET, "note": "for a guest"})
        self.revoked = self.post("/v1/tokens", {"repo": SECRET, "ttl": 60})
        self.ask("DELETE", f"/v1/tokens/{self.revoked['id']}")
        self.ask("PATCH", f"/v1/repos/{READ}/sessions/kept", {"keep": True})
        self.lease = self.post(f"/v1/repos/{READ}/disks", {"guest": "vm-7"})
        self.guest = {
            "name": "vm-7",
            "sessions": ["fix-dns"],
            "unix": str(place_of_guest(self.place)),
            "repos": [SECRET],
        }
        self.post("/v1/guests", self.guest)
        self.post("/v1/backup", {})
        self.post("/v1/verify", {"repos": [READ], "full": True})
        self.commit = git("rev-parse", "main", cwd=self.upstream.path(READ))

    def record(self, session: str, *, turns: int = 1, repo: str = READ) -> None:
        """Pushes the turns of a new session."""
        work = self.place / f"work-{next(self._numbers)}"
        self.serve.clone(work, repo)
        for turn in range(1, turns + 1):
            commit_files(work, {f"turn-{turn}.txt": f"{session}\n" * turn}, f"Turn {turn} of {session}")
            git("push", "-q", "origin", f"HEAD:refs/agents/{session}", cwd=work)

    @property
    def urls(self) -> list[str]:
        """URLs to register: good ones, ones that cannot be cloned, and none at all. All are on this machine."""
        return [
            self.upstream.url(OWN),
            self.upstream.url(READ),
            self.upstream.url(FAILING),
            f"file://{self.local}",
            str(self.local),
            "file:///nonexistent/acme/nothing",
            "http://127.0.0.1:9/acme/refused",
            "git://127.0.0.1:9/acme/refused",
            "ssh://git@127.0.0.1:9/acme/no-key",
            "http://user:secret@127.0.0.1:9/acme/credential",
            "http://127.0.0.1:9/\x01",
            "http://[::1/acme/broken",
            "--upload-pack=touch /tmp/never",
            "ext::false",
            " ",
            "é",
        ]

    def prepare(self, operation: str, path: dict[str, Any]) -> None:
        """Makes what an operation is about to end, unless it is to end what does not exist."""
        if operation == "remove-repo" and path.get("owner") == "acme":
            self.post("/v1/repos", {"url": self.upstream.url(OWN), "wait": False})
        if operation == "drop-session" and path.get("session") in SESSIONS:
            path["session"] = f"dropped-{next(self._numbers)}"
            self.record(path["session"])
        if operation == "remove-guest" and path.get("guest") == "vm-7":
            path["guest"] = f"vm-{next(self._numbers)}-gone"
            self.post("/v1/guests", {"name": path["guest"], "token": True})
        if operation == "revoke-api-token" and path.get("api_token") == "1":
            # Others hold the first ones.
            path["api_token"] = self.post("/v1/api-tokens", {"scope": "read"})["id"]
        if operation == "release-disk" and path.get("disk") == self.lease["id"]:
            path["disk"] = self.post(f"/v1/repos/{READ}/disks")["id"]

    def caller(self, kind: str) -> Caller:
        """`socket` is an operator; `operate`, `read` and `revoked` have such a token, and `nobody` has none."""
        if kind == "socket":
            return Caller(self.serve.state / "control.sock")
        caller = Caller()
        if kind in self.tokens:
            caller.headers["Authorization"] = f"Bearer {self.tokens[kind]}"
        return caller

    @property
    def url(self) -> str:
        """Where the API is."""
        return self.serve.admin_url

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the operator's socket answers, a success. Raises AssertionError."""
        response = self.operator.request(method, self.url + path, json=body)
        assert response.ok, (method, path, response.status_code, response.text)
        return response.json()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What a POST answers."""
        return self.ask("POST", path, body)
