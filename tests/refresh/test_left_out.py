"""One ref of the upstream that cannot be stored here: the other refs still move, and this one is reported."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from appliance.core.git import ref_sets
from appliance.core.git.command import GitError
from appliance.core.git.failures import Kind
from appliance.core.git.ref_sets import unholdable
from appliance.core.refresh import left_out
from appliance.core.refresh.left_out import RETRY_EVERY
from tests.conftest import ServeFactory
from tests.git.lab import Lab
from tests.refresh.node import repo_status
from tests.support.generate import add_commit
from tests.support.gitutil import git, refs
from tests.support.upstream import HttpUpstream

ODD = "acme/odd"
LONG = f"refs/heads/{'n' * 251}"
"""The shortest name that has no room for git's `.lock` behind it."""


def offer(bare: Path, ref: str, oid: str | None) -> None:
    """Put a ref into an upstream's packed refs, where any name fits; None takes it out."""
    git("pack-refs", "--all", cwd=bare)
    lines = (bare / "packed-refs").read_text().splitlines()
    named = {line.split(" ", 1)[1]: line for line in lines if not line.startswith(("#", "^")) and " " in line}
    named.pop(ref, None)
    if oid is not None:
        named[ref] = f"{oid} {ref}"
    (bare / "packed-refs").write_text(
        "# pack-refs with: sorted\n" + "".join(f"{named[name]}\n" for name in sorted(named))
    )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The refresher on a scratch state directory."""
    lab = Lab(tmp_path / "state")
    yield lab
    lab.close()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An upstream with `main` and `side`."""
    bare = tmp_path / "upstream.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    add_commit(bare, "main", {"a": "1"})
    git("update-ref", "refs/heads/side", "refs/heads/main", cwd=bare)
    return bare


def followed(lab: Lab) -> dict[str, str]:
    """The branches of the mirror."""
    return {ref: oid for ref, oid in refs(lab.mirror().path).items() if ref.startswith("refs/heads/")}


def break_branch(bare: Path, branch: str) -> str:
    """A commit whose tree is not there, as after damage on the upstream's disk."""
    blob = git("hash-object", "-w", "--stdin", cwd=bare, input=branch)
    tree = git("mktree", cwd=bare, input=f"100644 blob {blob}\tx\n")
    commit = git("commit-tree", "-p", "refs/heads/main", "-m", branch, tree, cwd=bare)
    git("update-ref", f"refs/heads/{branch}", commit, cwd=bare)
    (bare / "objects" / tree[:2] / tree[2:]).unlink()
    return commit


@pytest.mark.parametrize("first", [True, False], ids=["at the first clone", "later"])
@pytest.mark.parametrize("ref", [LONG, "refs/heads/main/below"], ids=["too long", "below another"])
def test_a_ref_whose_name_does_not_fit_is_left_out(lab: Lab, bare: Path, ref: str, first: bool) -> None:
    """It is recognised by its name alone; once it is deleted upstream, the mirror is complete again."""
    repo = lab.repo(bare)
    if not first:
        lab.refresh(repo)
    offer(bare, ref, git("rev-parse", "refs/heads/main", cwd=bare))
    tip = add_commit(bare, "main", {"b": "2"})
    facts = lab.refresh(repo)
    assert facts.tip == tip == followed(lab)["refs/heads/main"] and ref not in followed(lab)
    assert set(facts.left_out) == {ref}
    columns = facts.columns(0.0)
    assert columns["error_kind"] == Kind.REF and ref[:40] in columns["last_error"] and columns["failures"] == 0
    offer(bare, ref, None)
    assert lab.refresh(repo).columns(0.0)["last_error"] is None


def test_a_branch_whose_objects_are_broken_is_left_out_and_comes_back(lab: Lab, bare: Path) -> None:
    """It is found by halving; the mirror keeps its old value; it is retried, at once if it has moved."""
    repo, refresher = lab.repo(bare), lab.refresher()
    lab.refresh(repo, refresher=refresher)
    side = followed(lab)["refs/heads/side"]
    for number in range(6):
        git("update-ref", f"refs/heads/new-{number}", add_commit(bare, "main", {"b": f"{number}"}), cwd=bare)
    broken = break_branch(bare, "side")
    # The first failure may be of the connection.
    with pytest.raises(GitError):
        lab.refresh(repo, refresher=refresher)
    facts = lab.refresh(repo, refresher=refresher)
    assert set(facts.left_out) == {"refs/heads/side"}
    assert followed(lab)["refs/heads/side"] == side
    assert len(followed(lab)) == 8 and facts.tip == git("rev-parse", "refs/heads/main", cwd=bare)
    tip = add_commit(bare, "main", {"c": "3"})
    facts = lab.refresh(repo, refresher=refresher)
    assert facts.tip == tip and "refs/heads/side" in facts.left_out
    refresher.left_out.clock = lambda: 10 * RETRY_EVERY + 1e9
    assert "refs/heads/side" in lab.refresh(repo, refresher=refresher).left_out, f"{broken} is as it was"
    whole = add_commit(bare, "main", {"d": "4"})
    git("update-ref", "refs/heads/side", whole, cwd=bare)
    facts = lab.refresh(repo, refresher=refresher)
    assert not facts.left_out and followed(lab)["refs/heads/side"] == whole


def test_a_stale_lock_on_one_branch_stops_no_other(lab: Lab, bare: Path) -> None:
    """A local obstacle blocks one ref; the others still move."""
    repo, refresher = lab.repo(bare), lab.refresher()
    lab.refresh(repo, refresher=refresher)
    git("update-ref", "refs/heads/side", add_commit(bare, "main", {"b": "2"}), cwd=bare)
    lock = lab.mirror().path / "refs" / "heads" / "side.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with pytest.raises(GitError, match="File exists"):
        lab.refresh(repo, refresher=refresher)
    facts = lab.refresh(repo, refresher=refresher)
    assert followed(lab)["refs/heads/main"] == facts.tip == git("rev-parse", "refs/heads/main", cwd=bare)
    assert set(facts.left_out) == {"refs/heads/side"} and "File exists" in facts.left_out["refs/heads/side"]
    lock.unlink()
    assert not lab.refresh(repo, refresher=refresher).left_out
    assert followed(lab)["refs/heads/side"] == git("rev-parse", "refs/heads/side", cwd=bare)


def test_the_followed_branch_is_never_left_out_in_silence(lab: Lab, bare: Path) -> None:
    """A mirror without its default branch at the tip is not fresh."""
    repo = lab.repo(bare, branch="n" * 251)
    offer(bare, LONG, git("rev-parse", "refs/heads/main", cwd=bare))
    with pytest.raises(GitError, match="cannot be stored here"):
        lab.refresh(repo)


def test_names_that_do_not_fit_are_told_by_looking_at_them(tmp_path: Path) -> None:
    """The longest name that fits does; a ref and one below it cannot both be."""
    fits = f"refs/heads/{'n' * 250}"
    assert set(unholdable(tmp_path, {fits: "1", LONG: "1"})) == {LONG}
    assert set(unholdable(tmp_path, {"refs/heads/a": "1", "refs/heads/a/b/c": "1", "refs/heads/ab": "1"})) == {
        "refs/heads/a/b/c"
    }
    umlaut = f"refs/tags/{'ü' * 130}"
    assert set(unholdable(tmp_path, {umlaut: "1"})) == {umlaut}


@pytest.mark.slow
def test_status_names_the_one_and_is_fresh(serve_factory: ServeFactory, upstream: HttpUpstream, bare: Path) -> None:
    """An operator sees which ref, why, and what to do; the repository is fresh."""
    served = upstream.add(ODD, bare)
    offer(served, LONG, git("rev-parse", "refs/heads/main", cwd=served))
    serve = serve_factory(repos=[upstream.url(ODD)], refresh={"interval": "1s"}).start()
    serve.wait_for_repo(ODD)
    tip = add_commit(served, "main", {"b": "2"})
    serve.wait_for_ref(ODD, "refs/heads/main", tip)
    found = repo_status(serve, ODD)
    assert found["state"] == "fresh" and found["error"] == "ref" and "nnn" in found["last_error"] and found["hint"]


def test_many_refs_are_checked_beside_the_loop(lab: Lab, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every refresh checks every name: those of 60,000 refs take tenths of a second, and guests would wait."""
    threads: list[threading.Thread] = []

    def noting(repository: Path, names: Iterable[str]) -> dict[str, str]:
        threads.append(threading.current_thread())
        return unholdable(repository, names)

    monkeypatch.setattr(left_out, "unholdable", noting)
    monkeypatch.setattr(ref_sets, "MANY", 1)
    for _ in range(2):
        lab.refresh(lab.repo(bare))
    assert len(threads) == 2 and threading.main_thread() not in threads
