"""Each git client clones, fetches and records, and its user can read why a push is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, Client, Hub
from tests.conftest import WIDGETS
from tests.serving.conftest import entry_of, wait_settled
from tests.support.gitutil import clean_env, commit_files, fsck, git, git_result, refs

pytestmark = pytest.mark.slow

CHUNKED = 5 * 2**18
"""Bytes of a turn past the size at which git and JGit send a request in chunks."""
OVER_HTTP = [client for client in CLIENTS if client.road == "http" and client.name not in ("git-oldest", "git-newest")]
"""Those to which a read token is given in another way than to git."""
PUSHING = [client for client in CLIENTS if client.version != 0]
"""All but those that ask for version 0."""


def cloned(hub: Hub, client: Client, directory: Path, depth: int = 0) -> Path:
    """A clone by this client."""
    said = client.clone(hub.url(client), directory, depth)
    assert said.code == 0, said.text
    assert git("rev-parse", "HEAD", cwd=directory) == hub.tip()
    assert git("status", "--porcelain", cwd=directory) == ""
    fsck(directory)
    return directory


def record(hub: Hub, client: Client, workspace: Path, session: str) -> None:
    """Push HEAD as this session: the ref moves, and the log tells so."""
    said = client.push(workspace, f"+HEAD:refs/agents/{session}")
    commit = git("rev-parse", "HEAD", cwd=workspace)
    assert (said.code, hub.tip(f"refs/agents/{session}")) == (0, commit), said.text
    wait_settled(hub.serve)
    entry = entry_of(hub.serve, f"refs/agents/{session}")
    assert (entry["verdict"], entry["outcome"], entry["new"]) == ("accepted", "applied", commit)


def commit_many(workspace: Path, count: int) -> None:
    """So many commits on the current branch that the mirror does not have."""
    lines = []
    for number in range(count):
        text = f"local {number}"
        lines.append(
            f"commit refs/heads/local\ncommitter A Tester <tester@example.com> {1700000000 + number} +0000\n"
            f"data {len(text)}\n{text}\n" + ("from HEAD\n" if number == 0 else "")
        )
    git("fast-import", "--quiet", cwd=workspace, input="".join(lines))
    git("reset", "--quiet", "--hard", "refs/heads/local", cwd=workspace)


def test_it_clones_fetches_and_records(hub_of_clients: Hub, client: Client, tmp_path: Path) -> None:
    """The clone is whole; turns are recorded, rewritten ones too; a fetch finds the common history."""
    hub = hub_of_clients
    workspace = cloned(hub, client, tmp_path / "clone")
    assert git("rev-list", "--count", "HEAD", cwd=workspace) == git("rev-list", "--count", "main", cwd=hub.mirror)
    session = f"whole-{client.id}"
    commit_files(workspace, {"turn.txt": f"first of {client.id}"}, f"first turn of {client.id}")
    record(hub, client, workspace, session)
    git("commit", "--quiet", "--amend", "-m", f"the first turn of {client.id}, again", cwd=workspace)
    record(hub, client, workspace, session)
    # A client sends 16 or 32 of its commits at a time until one is known: this takes it several rounds.
    commit_many(workspace, 100)
    tip = hub.move(client.id)
    said = client.fetch(workspace)
    assert said.code == 0, said.text
    assert git("rev-parse", "refs/remotes/origin/main", cwd=workspace) == tip
    fsck(workspace)
    record(hub, client, workspace, session)


def test_it_records_from_a_shallow_clone(hub_of_clients: Hub, client: Client, tmp_path: Path) -> None:
    """A depth of 1 is one commit; a large turn is recorded from it, and a fetch brings what is new."""
    hub = hub_of_clients
    workspace = cloned(hub, client, tmp_path / "clone", depth=1)
    assert git("rev-list", "--count", "HEAD", cwd=workspace) == "1"
    noise = random.Random(client.id).randbytes(CHUNKED)
    commit_files(workspace, {"noise.bin": noise}, f"a large turn of {client.id}")
    record(hub, client, workspace, f"shallow-{client.id}")
    # With a tree that is new: go-git does not say that its history is cut off, and git leaves out what is in all of it.
    tip = hub.move(f"after a shallow clone by {client.id}")
    said = client.fetch(workspace)
    assert said.code == 0, said.text
    assert git("rev-parse", "refs/remotes/origin/main", cwd=workspace) == tip
    fsck(workspace)


# There is no push of version 2: clients that ask for it push as by version 0.
@pytest.mark.parametrize("client", PUSHING, ids=[client.id for client in PUSHING], indirect=True)
def test_its_user_reads_why_a_push_is_refused(hub_of_clients: Hub, client: Client, tmp_path: Path) -> None:
    """The client fails, prints the reason of the ref and what is allowed, and no ref of the mirror has moved."""
    hub, session = hub_of_clients, f"refused-{client.id}"
    workspace = cloned(hub, client, tmp_path / "clone", depth=1)
    commit_files(workspace, {"turn.txt": session}, session)
    record(hub, client, workspace, session)
    git("tag", "-a", "-m", f"a tag of {client.id}", "new", cwd=workspace)
    before = refs(hub.mirror)
    # Large enough that the first pack is still on its way when the push is refused. Those after it are small.
    noise = random.Random(client.id).randbytes(CHUNKED)
    commit_files(workspace, {"noise.bin": noise}, f"a refused turn of {client.id}")
    attempts = [
        ("+HEAD:refs/heads/mine", "branches and tags are the upstream's: push them there"),
        ("+HEAD:refs/heads/main", "branches and tags are the upstream's: push them there"),
        ("+HEAD:refs/agents/two/parts", "only refs/agents/SESSION may be written"),
        (f":refs/agents/{session}", "recorded sessions cannot be deleted"),
        # What is in the pack is known only once git has unpacked it, so this is refused by the hook.
        ("refs/tags/new:refs/agents/tagged", "a recorded object has to be a commit"),
    ]
    for number, (refspec, reason) in enumerate(attempts):
        if number == 1:
            git("reset", "--quiet", "--hard", "HEAD~1", cwd=workspace)
            commit_files(workspace, {"turn.txt": "small"}, f"a small turn of {client.id}")
        said = client.push(workspace, refspec)
        assert said.code != 0, f"{refspec}: {said.text}"
        reports: list[str] = []
        messages: list[str] = []
        for line in said.text.splitlines():
            (messages if "gitmirror: " in line else reports).append(line)
        assert any(reason in line for line in reports), f"{refspec}: {said.text}"
        assert any(reason in line for line in messages), f"{refspec}: {said.text}"
        assert any("allowed" in line for line in messages), f"{refspec}: {said.text}"
        assert refs(hub.mirror) == before


def test_its_user_reads_that_a_repository_is_not_here(hub_of_clients: Hub, client: Client, tmp_path: Path) -> None:
    """The client fails at once and leaves no clone that looks like one."""
    said = client.clone(hub_of_clients.url(client, "acme/elsewhere"), tmp_path / "clone")
    assert said.code != 0, said.text
    if client.road == "git" or client.name not in ("dulwich", "pygit2"):
        # Over HTTP these two print the status at most.
        assert "/acme/elsewhere is not mirrored here" in said.text
    assert WIDGETS not in said.text


@pytest.mark.parametrize("client", OVER_HTTP, ids=[client.id for client in OVER_HTTP], indirect=True)
def test_it_reads_and_records_with_a_token(private_hub: Hub, client: Client, tmp_path: Path) -> None:
    """As the password in the URL, or as a header of libgit2; without it, there is no repository."""
    hub, url = private_hub, private_hub.url(client)
    said = client.clone(url, tmp_path / "without")
    assert said.code != 0, said.text
    token = hub.serve.cli_json("token", "issue", "--repo", WIDGETS, "--ttl", "1h")["token"]
    if client.name == "pygit2":
        # libgit2 sends the password of a URL only when it is asked for it.
        client = replace(client, env={**client.env, "HEADER": f"Authorization: Bearer {token}"})
    else:
        url = url.replace("//", f"//guest:{token}@")
    workspace = tmp_path / "clone"
    said = client.clone(url, workspace)
    assert said.code == 0, said.text
    assert git("rev-parse", "HEAD", cwd=workspace) == hub.tip()
    commit_files(workspace, {"turn.txt": client.id}, f"with a token, by {client.id}")
    record(hub, client, workspace, f"token-{client.id}")


def test_a_client_of_the_dumb_protocol_is_told(hub_of_clients: Hub, tmp_path: Path) -> None:
    """It asks for `info/refs` without a service."""
    env = clean_env(tmp_path, GIT_SMART_HTTP="0")
    code, _, said = git_result("ls-remote", f"{hub_of_clients.serve.http_url}/{WIDGETS}", env=env)
    assert code != 0
    assert "remote: only git's smart protocol is served: fetch and push" in said
