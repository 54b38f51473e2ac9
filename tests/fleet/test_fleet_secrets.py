"""Everything that reaches NATS in a busy hour is read, and nothing of it is secret or from a private repository."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import nats as nats_py
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from appliance.core.errors import GitmirrorError
from tests.support.fleet import TestFleet
from tests.support.fleet_users import commits_of, waiting_at, webhook_settings
from tests.support.generate import add_commit
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.serve import Section, Serve
from tests.support.upstream import HttpUpstream

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")]

OPEN, CLOSED = "acme/open", "acme/closed"
NATS_PASSWORD = "nats-password-6f1c"


class Tap:
    """Hears every message that goes over a server, also those that no stream keeps."""

    def __init__(self, nats: NatsCluster) -> None:
        self.heard = bytearray()
        self._nats = nats
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Tap]:
        """Listens until the end of the block."""
        self._thread.start()
        assert self._ready.wait(10)
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(10)

    async def _listen(self) -> None:
        client = await nats_py.connect(self._nats.urls, user="tap", password="tap")

        async def hear(message: Msg) -> None:
            self.heard += message.subject.encode() + b"\n" + repr(message.headers).encode() + message.data + b"\n"

        await client.subscribe(">", cb=hear)
        await client.flush()
        self._ready.set()
        while not self._stop.is_set():
            await asyncio.sleep(0.05)
        await client.close()


class Guarded(NatsCluster):
    """A server that wants a password."""

    def ask(self, work, **options):  # type: ignore[no-untyped-def]
        """As the one who taps."""
        return super().ask(work, user="tap", password="tap", **options)


def everything_in(nats: NatsCluster) -> bytes:
    """Subject, headers and data of each message of each stream, those below buckets and object stores too."""

    async def read(context: JetStreamContext) -> bytes:
        found = bytearray()
        for info in await context.streams_info():
            assert info.config.name
            for seq in range(max(1, info.state.first_seq), info.state.last_seq + 1):
                with contextlib.suppress(Exception):
                    message = await context.get_msg(info.config.name, seq)
                    found += (message.subject or "").encode() + repr(message.headers).encode() + (message.data or b"")
        return bytes(found)

    return bytes(nats.ask(read))


def push(guest: Path, serve: Serve, repo: str, session: str, *options: str, token: str = "") -> None:
    """Pushes HEAD, and waits until it is recorded."""
    header = ("-c", f"http.extraHeader=Authorization: Bearer {token}") if token else ()
    git(*header, "push", "-q", "-f", *options, f"{serve.http_url}/{repo}", f"HEAD:refs/agents/{session}", cwd=guest)
    tip = git("rev-parse", "HEAD", cwd=guest)
    wait_until(lambda: tip in commits_of(serve, repo, session), timeout=60, message=f"{session} is recorded")


def test_nothing_secret_is_in_nats(tmp_path: Path, generated_bare: Path) -> None:
    users = f'{{ user: node, password: "{NATS_PASSWORD}" }}, {{ user: tap, password: tap }}'
    access = tmp_path / "nats.secret"
    refresh: Section = {"interval": "1s", "allow_local": True, **webhook_settings(tmp_path)}
    access.write_text(f"node:{NATS_PASSWORD}\n")
    access.chmod(0o600)
    with (
        HttpUpstream(tmp_path / "upstream") as upstream,
        HttpUpstream(tmp_path / "private") as private,
        Guarded(tmp_path / "nats", extra=f"authorization {{ users: [ {users} ] }}") as nats,
        TestFleet(tmp_path, nats, (), fleet={"credentials_file": str(access)}, refresh=refresh) as nodes,
        Tap(nats).listening() as tap,
    ):
        upstream.add(OPEN, generated_bare)
        private.add(CLOSED, generated_bare)
        closed = private.on(CLOSED)
        closed.require_password = True
        (tmp_path / "upstream-password").write_text(f"{closed.password}\n")
        (tmp_path / "upstream-password").chmod(0o600)
        credential = {
            "url": f"http://127.0.0.1:{private.port}",
            "username": closed.user,
            "token_file": str(tmp_path / "upstream-password"),
        }
        # The node `a` has the credential; for `b` the same repository is one like any other.
        fleet = {"credentials_file": str(access)}
        nodes.nodes["a"] = nodes.make("a", fleet=fleet, refresh=refresh, credentials=[credential])
        nodes.nodes["b"] = nodes.make("b", fleet=fleet, refresh=refresh)
        a, b = nodes.start().nodes.values()
        a.cli("add-repo", upstream.url(OPEN), "--name", OPEN)
        a.cli("add-repo", private.url(CLOSED), "--name", CLOSED)
        for serve in (a, b):
            serve.wait_for_repo(OPEN)
        a.wait_for_repo(CLOSED)
        b.wait_for_repo(CLOSED, "failing")
        token = a.cli_json("token", "issue", "--repo", CLOSED, "--ttl", "1h")["token"]
        api_token = a.cli_json("api-token", "issue", "--scope", "read", "--name", "ci")["token"]

        hidden = tmp_path / "hidden"
        header = f"http.extraHeader=Authorization: Bearer {token}"
        git("-c", header, "clone", "-q", f"{a.http_url}/{CLOSED}", str(hidden))
        secrets = [NATS_PASSWORD, closed.password, token, api_token, "the secret of the webhooks"]
        for number in range(3):
            secrets.append(commit_files(hidden, {"plan.txt": f"hidden plan {number}"}, f"hidden subject {number}"))
            push(hidden, a, CLOSED, f"hidden-session-{number}", "-o", "note.k=hidden-note", token=token)
        a.cli("session", "keep", CLOSED, "hidden-session-0")
        a.cli("session", "drop", CLOSED, "hidden-session-1", "--yes")
        seen = a.clone(tmp_path / "seen", OPEN)
        for number in range(3):
            shown = commit_files(seen, {"plan.txt": f"shown plan {number}"}, f"shown subject {number}")
            push(seen, a, OPEN, f"shown-{number}")
        a.cli("session", "drop", OPEN, "shown-1", "--yes")
        secrets.append(add_commit(private.path(CLOSED), "main", {"upstream.txt": "hidden upstream"}))
        a.cli("refresh", CLOSED)
        subprocess.run([*b.command, "refresh", CLOSED, "--state", str(b.state)], cwd=b.cwd, env=b.env, check=False,
                       capture_output=True)  # fmt: skip
        add_commit(upstream.path(OPEN), "main", {"upstream.txt": "shown"})
        a.cli("refresh", OPEN)
        wait_until(lambda: not waiting_at(a), timeout=60, message="all is out")
        wait_until(lambda: shown in commits_of(b, OPEN, "shown-2"), timeout=60, message="it is on the other node")
        with pytest.raises(GitmirrorError):
            commits_of(b, CLOSED, "hidden-session-0")
        stored = everything_in(nats) + bytes(tap.heard)
        assert b"shown subject 2" in stored and shown.encode() in stored, "the test sees what is there"
        assert CLOSED.encode() in stored, "that it is registered is no secret"
        bad = [secret for secret in (*secrets, "hidden") if secret.encode() in stored]
        assert not bad, bad
        assert nodes["a"].here("status")
