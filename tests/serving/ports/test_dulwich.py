"""A guest with another implementation of git: dulwich, whose requests differ, on both ports."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import Node, entry_of, own_refs, wait_settled
from tests.support.gitutil import fsck, git, refs

porcelain = pytest.importorskip("dulwich.porcelain")
pytestmark = pytest.mark.slow

ME = b"Ada <ada@example.com>"


def address(node: Node, road: str) -> str:
    """Of `acme/widgets`, over git:// or HTTP."""
    return f"{node.serve.git_url if road == 'git' else node.serve.http_url}/{WIDGETS}"


def commit(workspace: Path, text: str) -> str:
    """One commit of one new file, made by dulwich."""
    (workspace / "turn.txt").write_text(text)
    porcelain.add(str(workspace), [str(workspace / "turn.txt")])
    made = porcelain.commit(str(workspace), message=text.encode(), author=ME, committer=ME)
    assert isinstance(made, bytes)
    return made.decode()


@pytest.mark.parametrize("road", ["git", "http"])
@pytest.mark.parametrize("depth", [None, 1], ids=["full", "shallow"])
def test_it_clones_fetches_and_records(node: Node, tmp_path: Path, road: str, depth: int | None) -> None:
    """The clone is whole, a turn is applied and logged, a second one too, and a fetch brings what is new."""
    url, workspace = address(node, road), tmp_path / "clone"
    session = f"refs/agents/kept-dulwich-{road}-{depth}"
    porcelain.clone(url, str(workspace), depth=depth, errstream=io.BytesIO()).close()
    assert git("rev-parse", "HEAD", cwd=workspace) == node.tip
    assert git("status", "--porcelain", cwd=workspace) == ""
    fsck(workspace)
    for turn in ("first turn", "second turn"):
        # The text names the session: dulwich fetches every ref, and a commit that another session recorded in the same
        # second, with the same text, would be this one, and a boundary of the shallow clone.
        made = commit(workspace, f"{turn} of {session}")
        said = io.BytesIO()
        porcelain.push(str(workspace), url, f"HEAD:{session}", outstream=said, errstream=said)
        assert refs(node.mirror)[session] == made, said.getvalue()
        wait_settled(node.serve)
        entry = entry_of(node.serve, session)
        assert (entry["verdict"], entry["outcome"], entry["new"]) == ("accepted", "applied", made)
    other = tmp_path / "other"
    porcelain.clone(url, str(other), depth=depth, errstream=io.BytesIO()).close()
    fetched = porcelain.fetch(str(other), url, errstream=io.BytesIO())
    assert fetched.refs[session.encode()].decode() == made


@pytest.mark.parametrize("road", ["git", "http"])
def test_it_is_told_why_a_push_is_refused(node: Node, tmp_path: Path, road: str) -> None:
    """The reason is dulwich's own report of the ref, and the advice is on its terminal."""
    url, workspace = address(node, road), tmp_path / "clone"
    before = own_refs(node)
    porcelain.clone(url, str(workspace), depth=1, errstream=io.BytesIO()).close()
    commit(workspace, "to main")
    said = io.BytesIO()
    porcelain.push(str(workspace), url, "HEAD:refs/heads/main", outstream=said, errstream=said)
    text = said.getvalue().decode()
    assert "refs/heads/main failed: branches and tags are the upstream's: push them there" in text
    assert "gitmirror: allowed here: " in text
    assert own_refs(node) == before
