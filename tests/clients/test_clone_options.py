"""An old and a new git get from the mirror, with options that cut off or filter, just what the upstream gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, Client, Hub
from tests.conftest import WIDGETS
from tests.support.gitutil import git, refs

pytestmark = pytest.mark.slow

OF_GIT = [client for client in CLIENTS if client.name in ("git-oldest", "git-newest")]
EVERY_BRANCH = "+refs/heads/*:refs/remotes/every/*"


def steps(date: str, tag: str, branch: str, commit: str) -> list[tuple[list[str], list[str]]]:
    """Options of a clone, and arguments of the fetch after it."""
    return [
        (["--depth=1"], ["--deepen=3", "origin"]),
        (["--depth=3", "--no-single-branch"], ["--unshallow", "origin"]),
        (["--depth=2", f"--branch={branch}"], ["--depth=5", "origin", EVERY_BRANCH]),
        ([f"--shallow-since={date}"], ["origin", EVERY_BRANCH]),
        ([f"--shallow-exclude={tag}"], [f"--shallow-since={date}", "origin"]),
        (["--single-branch", "--no-tags", f"--branch={branch}"], ["--tags", "origin", EVERY_BRANCH]),
        (["--filter=blob:none"], ["origin", EVERY_BRANCH]),
        (["--filter=tree:0", "--depth=1"], ["origin", commit]),
        (["--filter=blob:limit=1k", "--depth=1"], ["--deepen=4", "origin", EVERY_BRANCH]),
    ]


def state(repository: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """The refs, the commits at which the history is cut off, and all objects."""
    shallow = repository / "shallow"
    listed = git("cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)", cwd=repository)
    cut = sorted(shallow.read_text().split()) if shallow.exists() else []
    return refs(repository), cut, sorted(listed.split())


def both(client: Client, options: list[str], fetch: list[str], url: str, clone: Path) -> object:
    """The state after a clone with these options, and after a fetch with these arguments."""
    said = client.run("clone", "--bare", *options, url, str(clone))
    assert said.code == 0, f"{url} {options}: {said.text}"
    first = state(clone)
    said = client.run("-C", str(clone), "fetch", *fetch)
    assert said.code == 0, f"{url} {options} {fetch}: {said.text}"
    return first, state(clone)


@pytest.fixture(scope="module")
def given() -> dict[tuple[str, int | None, int], object]:
    """What the upstream gave a client, by its name, its version of the protocol and the step: it is asked over HTTP."""
    return {}


@pytest.mark.parametrize("client", OF_GIT, ids=[client.id for client in OF_GIT], indirect=True)
def test_the_mirror_gives_what_the_upstream_gives(
    hub_of_clients: Hub, client: Client, given: dict[tuple[str, int | None, int], object], tmp_path: Path
) -> None:
    """After the clone and after the fetch."""
    hub = hub_of_clients
    upstream = hub.upstream.path(WIDGETS)
    # As the mirror is, whose packs have no deltas against objects that a filter leaves out.
    for setting in ("uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true", "pack.window=0"):
        git("config", *setting.split("="), cwd=upstream)
    commits = git("log", "--format=%H %ct", "main", cwd=upstream).split("\n")
    commit, date = commits[len(commits) // 3].split()
    tag = git("tag", "--merged", "main", "--sort=creatordate", cwd=upstream).split()[0]
    branch = next(name for name in git("branch", "--format=%(refname:short)", cwd=upstream).split() if name != "main")
    for number, (options, fetch) in enumerate(steps(date, tag, branch, commit)):
        here = both(client, options, fetch, hub.url(client), tmp_path / f"mirror-{number}")
        key = (client.name, client.version, number)
        if key not in given:
            given[key] = both(client, options, fetch, hub.upstream.url(WIDGETS), tmp_path / f"upstream-{number}")
        assert here == given[key], f"{options} {fetch}"
