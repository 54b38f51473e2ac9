"""`durability = "sync"` and one push of several sessions, of which the fleet stores some; and a private repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.fleet.test_fleet_out import OutNode, turns_in
from tests.serving.conftest import commit_turn, entry_of
from tests.support.fleet import TestFleet
from tests.support.gitutil import git, refs, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.serve import Section
from tests.support.upstream import HttpUpstream

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")]


@pytest.fixture
def tight(tmp_path: Path, generated_bare: Path) -> Iterator[OutNode]:
    """A node on a server that stores two megabytes."""
    with (
        NatsCluster(tmp_path / "nats", store="2MB") as nats,
        HttpUpstream(tmp_path / "upstream") as upstream,
        TestFleet(tmp_path, nats, ["a"], fleet={"durability": "sync", "sync_timeout": "5s"}) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        serve.wait_for_repo(WIDGETS)
        wait_until(lambda: " as a" in serve.log(), message="the fleet is there")
        yield OutNode(serve, upstream, nats, "default")


@pytest.mark.parametrize(("atomic", "http"), [(False, False), (True, True)], ids=["each-git", "atomic-http"])
def test_some_refs_are_stored_and_some_are_not(tight: OutNode, tmp_path: Path, http: bool, atomic: bool) -> None:
    """Each is a session of its own, and so is confirmed by itself, also in an atomic push."""
    guest = tight.guest(tmp_path / "guest")
    git("config", "core.compression", "0", cwd=guest)
    begun = commit_turn(guest, "the first turn of large")
    assert tight.push(guest, "large").returncode == 0
    small = commit_turn(guest, "small")
    (guest / "large").write_bytes(os.urandom(3 * 2**20))
    git("add", "large", cwd=guest)
    git("commit", "-qm", "large", cwd=guest)
    large = git("rev-parse", "HEAD", cwd=guest)
    url = f"{tight.serve.http_url if http else tight.serve.git_url}/{WIDGETS}"
    pushed = subprocess.run(
        ["git", "push", "--porcelain", *(["--atomic"] if atomic else []), url, f"{small}:refs/agents/small",
         f"{large}:refs/agents/large", f"{large}:refs/agents/new"],
        cwd=guest, capture_output=True, text=True, check=False, env=tight.serve.env,
    )  # fmt: skip
    said = pushed.stdout + pushed.stderr
    assert pushed.returncode != 0 and "nothing was recorded, push again" in said, said
    present = refs(tight.serve.mirror(WIDGETS))
    assert present["refs/agents/large"] == begun and "refs/agents/new" not in present
    assert [entry_of(tight.serve, f"refs/agents/{name}")["outcome"] for name in ("large", "new")] == ["failed"] * 2
    assert present["refs/agents/small"] == small
    assert entry_of(tight.serve, "refs/agents/small")["outcome"] == "applied"
    assert [row.commit for row in tight.wait_rows("small", 1)] == [small]
    assert [line[0] for line in pushed.stdout.splitlines() if "refs/agents/small" in line] == ["*"], said
    assert [row.commit for row in turns_in(tight.rows(), "large")] == [begun]
    assert [turn for turn in present if turn.startswith("refs/gitmirror/turns/")] == [
        f"refs/gitmirror/turns/{number}" for (number,) in tight.database("SELECT id FROM turns ORDER BY id")
    ]


def test_a_private_repository_waits_for_nobody(tight: OutNode, tmp_path: Path) -> None:
    """Its turns stay on their node, whatever the fleet is about."""
    guest, serve = tight.guest(tmp_path / "guest"), tight.serve
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    fleet: Section = {"servers": tight.nats.urls, "node": "a", "durability": "sync", "sync_timeout": "5s"}
    serve.configure(
        fleet=fleet, refresh={"interval": "1s", "allow_local": True},
        credentials=[{"url": tight.upstream.url(WIDGETS), "token_file": str(token)}],
    )  # fmt: skip
    serve.reload()
    wait_until(lambda: "was read again" in serve.log(), timeout=60, message="it is private")
    issued = serve.cli_json("token", "issue", "--repo", WIDGETS, "--ttl", "1h")["token"]
    header = f"http.extraHeader=Authorization: Bearer {issued}"
    tight.nats.servers[0].freeze()
    try:
        commit = commit_turn(guest, "private")
        git("-c", header, "push", "-q", f"{serve.http_url}/{WIDGETS}", "HEAD:refs/agents/hidden", cwd=guest)
    finally:
        tight.nats.servers[0].thaw()
        tight.nats.wait()
    assert tight.database("SELECT commit_id FROM turns") == [(commit,)]
    assert tight.rows() == []
