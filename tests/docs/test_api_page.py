"""docs/api.md: it says what the code declares, and its commands work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.core.api.openapi import PATH_PARAMETERS
from tests.api.populated import attach
from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import commit_files, git
from tests.support.serve import ROOT, Serve, wait_until
from tests.support.upstream import HttpUpstream

PAGE = (ROOT / "docs" / "api.md").read_text()
HAND, _, WALK = PAGE.partition("## The life of a repository and a session")
ROUTES = re.findall(r"^### (\w+ \S+)$.*?^```sh\n(.*?)^```$", HAND, re.MULTILINE | re.DOTALL)
SETTINGS, *STEPS = re.findall(r"^```sh\n(.*?)^```$", WALK, re.MULTILINE | re.DOTALL)
GITHUB = "https://github.com/acme/widgets"
LEASE_ID = PATH_PARAMETERS["disk"][1]
CURL = """#!/bin/sh
PATH=${PATH#*:}
exec curl --fail-with-body --max-time 60 "$@"
"""
"""Stands before curl, so that a problem ends the shell."""


def sh(script: str, cwd: Path, serve: Serve, **env: str) -> str:
    """Runs commands in one shell, and returns what they print."""
    curl = cwd / "bin" / "curl"
    curl.parent.mkdir(exist_ok=True)
    curl.write_text(CURL)
    curl.chmod(0o755)
    environment = {**serve.env, **env, "PATH": f"{curl.parent}:{serve.env['PATH']}"}
    done = subprocess.run(
        ["sh", "-eu"], input=script, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{serve.log()[-2000:]}"
    return done.stdout


def access(serve: Serve) -> dict[str, str]:
    """The variables that the page says to set first."""
    token = serve.cli("api-token", "issue", "--scope", "operate", "--ttl", "1d", "--name", "walk-through")
    return {
        "GITMIRROR_API": serve.admin_url,
        "GITMIRROR_SOCKET": str(serve.state / "control.sock"),
        "TOKEN": token.stdout.strip(),
    }


def test_the_page_is_what_the_code_declares() -> None:
    """Otherwise: scripts/api_docs.py."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "api_docs.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_route_has_a_command() -> None:
    """And the table of routes has no other."""
    listed = re.findall(r"^\| \[`(\w+ \S+)`\]\(#", HAND, re.MULTILINE)
    assert [name for name, _ in ROUTES] == listed
    assert len(listed) > 30


@pytest.mark.slow
def test_a_repository_and_a_session_live_as_the_page_says(
    upstream: HttpUpstream, serve_factory: ServeFactory, tmp_path: Path
) -> None:
    """Typed into one shell as it stands, with the settings of this node."""
    assert {"GITMIRROR_API", "TOKEN", "UPSTREAM", "REPO"} == set(re.findall(r"\b([A-Z_]+)=", SETTINGS))
    serve = serve_factory().start()
    printed = sh("".join(STEPS), tmp_path, serve, UPSTREAM=upstream.url(WIDGETS), REPO=WIDGETS, **access(serve))
    assert "recorded ref=refs/agents/fix-dns" in printed
    assert "+An agent was here." in printed and '"lines": ["+An agent was here."]' in printed
    assert git("ls-tree", "--name-only", "fix-dns", "AGENT.md", cwd=tmp_path / "clone") == "AGENT.md"
    assert '{"name": "acme/widgets", "purged": true}' in printed
    assert serve.cli_json("sessions") == [] and serve.cli_json("repos") == []


@pytest.mark.slow
def test_the_command_of_every_route_works(upstream: HttpUpstream, serve_factory: ServeFactory, tmp_path: Path) -> None:
    """In the order of the page, but the session and the repository are deleted last."""
    (tmp_path / "backups").mkdir()
    serve = serve_factory(backup={"to": str(tmp_path / "backups" / "node")}).start()
    serve.cli("add-repo", upstream.url(WIDGETS))
    guest = serve.clone(tmp_path / "guest", WIDGETS)
    for number in range(2):
        commit_files(guest, {"README.md": f"parser {number}\n"}, "Mend the parser")
        git("push", "--quiet", "origin", "HEAD:refs/agents/fix-dns", cwd=guest)
        if number == 0:
            attach(serve, WIDGETS, "fix-dns", git("rev-parse", "HEAD", cwd=guest))
    serve.cli("token", "issue", "--repo", WIDGETS)
    # The page has the id of a lease from another node.
    lease_id = serve.cli_json("disk", WIDGETS)["id"]
    variables = access(serve)
    last = ("DELETE /v1/repos/{owner}/{repo}/sessions/{session}", "DELETE /v1/repos/{owner}/{repo}")
    commands = dict(ROUTES)
    for name in [*(name for name in commands if name not in last), *last]:
        command = commands[name].replace(GITHUB, upstream.url(WIDGETS)).replace(LEASE_ID, lease_id).strip()
        if name == "GET /v1/events":
            command = f"{command} > events.log & until [ -s events.log ]; do sleep 0.1; done; kill $!"
        if name == "DELETE /v1/fleet/nodes/{node}":
            # This node is alone, so all that the command can bring is that answer.
            command = f"{command} | grep 'the fleet has no node'"
        printed = sh(f"{command}\n", tmp_path, serve, **variables)
        assert printed or "> events.log" in command or "-o fix-dns.bundle" in command, name
    wait_until(lambda: not serve.mirror(WIDGETS).exists(), message="the mirror is gone")
