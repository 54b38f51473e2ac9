"""What users of a fleet do on one of its nodes and see on another: webhooks, the guest kit, pushes, and sessions."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.support.gitutil import clean_env, git, run_process
from tests.support.serve import Serve

WEBHOOK_SECRET = b"the secret of the webhooks"
PATIENCE = 30.0
"""Seconds that one request of the API may take."""


def ask(serve: Serve, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
    """Calls the API of a node. Raises GitmirrorError."""
    return call(Layout(serve.state), method, f"/v1/{path}", body, query=query, timeout=PATIENCE)


def webhook_settings(place: Path) -> dict[str, str]:
    """What `[refresh]` needs so that a node takes webhooks; the secret is written below `place`."""
    secret = place / "webhook-secret"
    secret.write_bytes(WEBHOOK_SECRET + b"\n")
    secret.chmod(0o600)
    return {"webhook_secret_file": str(secret)}


def send_webhook(serve: Serve, name: str, url: str, **facts: Any) -> int:
    """Tells a node as GitHub does that something was pushed to `url`; returns the HTTP status. Raises OSError."""
    body = json.dumps({"repository": {"clone_url": url, "full_name": name}, **facts}).encode()
    signed = hmac.new(WEBHOOK_SECRET, body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": f"sha256={signed}",
    }
    with urlopen(Request(f"{serve.admin_url}/hooks/github", body, headers), timeout=PATIENCE) as response:
        return int(response.status)


def is_warm(serve: Serve, name: str, tip: str) -> bool:
    """Whether a node has the tip, serves it, and has every response ready that guests are likely to ask for."""
    status = serve.status()
    warmed = status["warmed"].get(name)
    fresh = any(repo["name"] == name and repo["state"] == "fresh" and repo["tip"] == tip for repo in status["repos"])
    return fresh and warmed is not None and warmed["tip"] == tip and warmed["answers"] >= warmed["wanted"]


def sessions_of(serve: Serve) -> dict[tuple[str, str], list[str]]:
    """The commits of the turns of every session that a node lists, oldest first, by repository and session."""
    found = ask(serve, "GET", "sessions", limit=1000)["items"]
    return {(each["repo"], each["session"]): commits_of(serve, each["repo"], each["session"]) for each in found}


def commits_of(serve: Serve, repo: str, session: str) -> list[str]:
    """The commits of a session's turns on a node, oldest first. Raises GitmirrorError."""
    return [turn["commit"] for turn in ask(serve, "GET", f"repos/{repo}/sessions/{session}")["turns"]]


def fleet_of(serve: Serve) -> dict[str, Any]:
    """The document of `fleet status --json` of a node."""
    return dict(ask(serve, "GET", "fleet"))


def waiting_at(serve: Serve) -> int:
    """How many turns, attachments, ends and changes of the registry have yet to go out from a node."""
    return int(sum(fleet_of(serve)["waiting"].values()))


class KitGuest:
    """A guest of one repository with the kit of a node, which can go on at another node."""

    def __init__(self, home: Path, serve: Serve, repo: str, upstream: str) -> None:
        self.home = home
        self.repo = repo
        self._env = {"GITMIRROR_UPSTREAM": upstream, "GITMIRROR_DEADLINE": "30"}
        home.mkdir(parents=True)
        (home / "guest.sh").write_text(serve.here("guest-kit"))

    def hydrate(self, serve: Serve, dest: Path, want: str = "") -> str:
        """`gitmirror_hydrate` from a node; returns what it printed. Raises AssertionError."""
        return self._run(serve, "hydrate", self.repo, str(dest), *([want] if want else []))

    def record(self, serve: Serve, session: str, place: Path, *options: str) -> str:
        """`gitmirror_record` at a node; returns the commit that was recorded. Raises AssertionError."""
        said = self._run(serve, "record", session, str(place), *options)
        recorded = re.search(r"^recorded ref=\S+ commit=([0-9a-f]{40})$", said, re.MULTILINE)
        assert recorded, f"the kit recorded nothing: {said}"
        return recorded[1]

    def _run(self, serve: Serve, *words: str) -> str:
        env = clean_env(self.home, GITMIRROR_GIT=serve.git_url, GITMIRROR_HTTP=serve.http_url, **self._env)
        done = run_process(["sh", str(self.home / "guest.sh"), *words], env=env, timeout=90)
        said, why = done.stdout.decode(), done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"{words} ended with {done.returncode}: {said}{why}"
        return said + why


class Pushing:
    """A bare repository from which turns are pushed, so that a turn costs a commit and a push. Safe over threads."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        git("clone", "--quiet", "--bare", str(source), str(path))
        self.base = git("rev-parse", "main", cwd=path)
        self._tree = git("rev-parse", "main^{tree}", cwd=path)

    def commit(self, message: str, parent: str | None = None) -> str:
        """A new commit with one more file, on `parent` or on what the upstream has."""
        blob = git("hash-object", "-w", "--stdin", cwd=self.path, input=f"{message}\n" * 20)
        listed = git("ls-tree", self._tree, cwd=self.path) + f"\n100644 blob {blob}\tturn.txt\n"
        tree = git("mktree", cwd=self.path, input=listed)
        return git("commit-tree", tree, "-p", parent or self.base, "-m", message, cwd=self.path)

    def push(
        self, serve: Serve, repo: str, session: str, commit: str, *, enter: Sequence[str] = (), timeout: float = 30.0
    ) -> tuple[bool, str]:
        """Pushes a commit as a turn of a session: whether git said that it was done, and what it said.

        `enter` begins the command of a guest that is in another network namespace.
        """
        url = f"{serve.git_url}/{repo}"
        argv = [*enter, "git", "push", "--porcelain", url, f"+{commit}:refs/agents/{session}"]
        try:
            done = run_process(argv, cwd=self.path, env=clean_env(self.path), timeout=timeout)
        except subprocess.TimeoutExpired:
            return False, f"not done after {timeout} s"
        return done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
