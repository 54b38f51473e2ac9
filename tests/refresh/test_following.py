"""What happens upstream reaches the guests, and nothing that a guest may still need is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.git.ref_sets import ANCHORS, TIPS
from tests.refresh.node import Followed, Node
from tests.support.generate import add_commit, delete_branch, force_push, rename_branch, set_head
from tests.support.gitutil import clean_env, commit_files, fsck, git, git_result, refs
from tests.support.pkt import PushConnection

Names = Callable[[], str]


@pytest.fixture
def repo(node: Node, names: Names, generated_bare: Path) -> Followed:
    """A mirrored copy of the generated repository."""
    return node.follow(names(), generated_bare)


def test_a_commit_reaches_a_guest(repo: Followed, tmp_path: Path) -> None:
    """A clone after the refresh has the new commit checked out."""
    old = refs(repo.path)["refs/heads/main"]
    tip = add_commit(repo.path, "main", {"new.txt": "hello\n"})
    assert repo.refresh() == {"refs/heads/main": (old, tip)}
    guest = repo.node.serve.clone(tmp_path / "guest", repo.name)
    assert (guest / "new.txt").read_text() == "hello\n"
    assert repo.refresh() == {}
    assert repo.status()["tip"] == tip


def test_a_force_push_is_followed_and_the_old_tip_stays(repo: Followed, tmp_path: Path) -> None:
    """The branch is the new one; a guest that knows yesterday's commit can still fetch it by its id."""
    old = refs(repo.path)["refs/heads/main"]
    tip = force_push(repo.path, "main", depth=3)
    assert repo.refresh() == {"refs/heads/main": (old, tip)}
    assert repo.seen()["refs/heads/main"] == repo.seen()["HEAD"] == tip
    assert repo.can_fetch(old, tmp_path / "guest")
    fsck(repo.mirror)


def test_a_deleted_branch_goes_and_its_commits_stay(repo: Followed, tmp_path: Path) -> None:
    """ls-remote no longer shows it; its tip is fetchable by id."""
    old = refs(repo.path)["refs/heads/develop"]
    delete_branch(repo.path, "develop")
    assert repo.refresh() == {"refs/heads/develop": (old, None)}
    assert "refs/heads/develop" not in repo.seen()
    assert repo.can_fetch(old, tmp_path / "guest")


def test_tags_move_and_go(repo: Followed, tmp_path: Path) -> None:
    """A tag that was moved upstream is moved, one that was deleted is deleted, annotated or not."""
    tips = refs(repo.path)
    git("tag", "--force", "-m", "again", "v0.0", tips["refs/heads/develop"], cwd=repo.path)
    git("tag", "--delete", "v0.1", cwd=repo.path)
    assert set(repo.refresh()) == {"refs/tags/v0.0", "refs/tags/v0.1"}
    seen = repo.seen()
    assert seen["refs/tags/v0.0^{}"] == tips["refs/heads/develop"]
    assert "refs/tags/v0.1" not in seen
    assert repo.can_fetch(tips["refs/tags/v0.0"], tmp_path / "guest")


def test_a_branch_that_becomes_a_directory_and_back(repo: Followed) -> None:
    """`foo` to `foo/bar` and back, seen by guests at each step."""
    tip = refs(repo.path)["refs/heads/develop"]
    rename_branch(repo.path, "develop", "develop/next")
    assert set(repo.refresh()) == {"refs/heads/develop", "refs/heads/develop/next"}
    assert repo.seen()["refs/heads/develop/next"] == tip
    git("pack-refs", "--all", cwd=repo.mirror)
    rename_branch(repo.path, "develop/next", "develop")
    assert set(repo.refresh()) == {"refs/heads/develop", "refs/heads/develop/next"}
    assert repo.seen()["refs/heads/develop"] == tip


def test_a_renamed_default_branch_is_what_a_clone_checks_out(repo: Followed, tmp_path: Path) -> None:
    """HEAD follows a rename, and a mere change of the default."""
    rename_branch(repo.path, "main", "trunk")
    repo.refresh()
    guest = repo.node.serve.clone(tmp_path / "one", repo.name)
    assert git("symbolic-ref", "HEAD", cwd=guest) == "refs/heads/trunk"
    assert repo.status()["branch"] == "trunk"
    set_head(repo.path, "develop")
    assert repo.refresh() == {}
    guest = repo.node.serve.clone(tmp_path / "two", repo.name, "--depth=1")
    assert git("symbolic-ref", "HEAD", cwd=guest) == "refs/heads/develop"
    assert repo.status()["tip"] == refs(repo.path)["refs/heads/develop"]


def test_a_detached_upstream_head_does_no_harm(repo: Followed, tmp_path: Path) -> None:
    """A clone still checks out the branch, at its newest commit."""
    git("update-ref", "--no-deref", "HEAD", refs(repo.path)["refs/heads/develop"], cwd=repo.path)
    tip = add_commit(repo.path, "main", {"x": "1\n"})
    repo.refresh()
    guest = repo.node.serve.clone(tmp_path / "guest", repo.name)
    assert git("rev-parse", "HEAD", "refs/heads/main", cwd=guest) == f"{tip}\n{tip}"


def test_an_empty_upstream_is_mirrored_from_its_first_commit_on(node: Node, names: Names, tmp_path: Path) -> None:
    """Registered while empty: healthy, clonable, and followed when the first commit comes."""
    repo = node.follow(names(), None)
    assert repo.status()["state"] == "fresh" and repo.status()["tip"] is None
    git("clone", "--quiet", repo.url, str(tmp_path / "empty"))
    tip = add_commit(repo.path, "main", {"first.txt": "1\n"})
    assert repo.refresh() == {"refs/heads/main": (None, tip)}
    guest = node.serve.clone(tmp_path / "guest", repo.name)
    assert (guest / "first.txt").exists()
    assert repo.status()["branch"] == "main"


def test_an_emptied_upstream_is_followed_too(repo: Followed, tmp_path: Path) -> None:
    """With every branch gone the mirror is empty, healthy, and has the commits still."""
    old = refs(repo.path)
    for name in old:
        git("update-ref", "-d", name, cwd=repo.path)
    assert set(repo.refresh()) == set(old)
    assert repo.seen() == {}
    assert repo.status()["state"] == "fresh" and repo.status()["refs"] == 0
    assert repo.can_fetch(old["refs/heads/main"], tmp_path / "guest")


@pytest.mark.slow
def test_odd_names_reach_guests_and_history(repo: Followed) -> None:
    """Unicode, quotes and bytes that are no text: followed, shown by ls-remote, told by every command."""
    tip = refs(repo.path)["refs/heads/main"]
    odd = [b"na\xc3\xafve/\xe2\x98\x83", b'it\'s-"x";$(id)', b"caf\xe9"]
    lines = b"".join(b"create refs/heads/%s %s\n" % (name, tip.encode()) for name in odd)
    git("update-ref", "--stdin", cwd=repo.path, input=lines)
    git("symbolic-ref", "HEAD", b"refs/heads/caf\xe9".decode("utf-8", "surrogateescape"), cwd=repo.path)
    assert len(repo.refresh()) == len(odd)
    assert len(repo.seen()) == len(refs(repo.path)) + 1 + 3  # HEAD, and three peeled tags
    serve = repo.node.serve
    assert repo.status()["tip"] == tip
    add_commit(repo.path, "other", {"x": "1\n"})
    force_push(repo.path, "naïve/☃")
    assert "☃" in serve.cli("refresh", repo.name).stdout
    for command in (["status"], ["repos"], ["refreshes", repo.name]):
        assert serve.cli(*command, check=False).returncode in (0, 3)
    assert "cannot be recorded" not in serve.log() and "Traceback" not in serve.log()
    assert serve.cli_json("refreshes", repo.name)[0]["result"] == "moved"


@pytest.mark.slow
def test_thousands_of_refs_are_followed(repo: Followed) -> None:
    """1,000 branches come and half of them go, each in one refresh."""
    tip = refs(repo.path)["refs/heads/main"]
    names = [f"refs/heads/many/{number}" for number in range(1000)]
    git("update-ref", "--stdin", cwd=repo.path, input="".join(f"create {name} {tip}\n" for name in names))
    assert len(repo.refresh()) == 1000
    git("update-ref", "--stdin", cwd=repo.path, input="".join(f"delete {name}\n" for name in names[::2]))
    assert len(repo.refresh()) == 500
    assert len(repo.seen()) > 500


def test_prune_leaves_agents_refs_alone(repo: Followed, tmp_path: Path) -> None:
    """What a guest recorded is there after branches were pruned and after the upstream was emptied."""
    guest = repo.node.serve.clone(tmp_path / "guest", repo.name)
    recorded = commit_files(guest, {"work.txt": "done\n"}, "Work")
    git("push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest)
    delete_branch(repo.path, "develop")
    repo.refresh()
    assert repo.seen()["refs/agents/s1"] == recorded
    for name in refs(repo.path):
        git("update-ref", "-d", name, cwd=repo.path)
    repo.refresh()
    assert repo.seen() == {"refs/agents/s1": recorded}
    assert repo.status()["sessions"] == 1


def test_refs_agents_of_the_upstream_are_not_taken(repo: Followed) -> None:
    """An upstream that has refs/agents of its own can neither add nor move one here."""
    git("update-ref", "refs/agents/forged", refs(repo.path)["refs/heads/main"], cwd=repo.path)
    add_commit(repo.path, "main", {"x": "1\n"})
    repo.refresh()
    assert "refs/agents/forged" not in repo.seen()


def test_a_push_from_yesterdays_shallow_clone_is_thin(repo: Followed, tmp_path: Path) -> None:
    """The old tip of the branch is known to receive-pack, so three objects are sent and not the whole snapshot."""
    guest = repo.node.serve.clone(tmp_path / "guest", repo.name, "--depth=1")
    force_push(repo.path, "main", depth=2)
    repo.refresh()
    assert _objects_pushed(guest, "s1") <= 3
    fsck(repo.mirror)


def test_a_push_from_another_branch_shows_what_thinness_saves(repo: Followed, tmp_path: Path) -> None:
    """The old tips of other branches are kept, not shown: the push works and sends everything."""
    guest = repo.node.serve.clone(tmp_path / "guest", repo.name, "--depth=1", "--branch=develop")
    force_push(repo.path, "develop", depth=2)
    repo.refresh()
    assert _objects_pushed(guest, "s1") > 100


def test_anchors_are_shown_to_pushes_of_the_registered_branch_alone(
    node: Node, names: Names, generated_bare: Path
) -> None:
    """receive-pack advertises old tips of `--branch`, no other private ref, and upload-pack none at all."""
    repo = node.follow(names(), generated_bare, "--branch", "develop")
    old = refs(repo.path)
    force_push(repo.path, "develop")
    force_push(repo.path, "main")
    git("tag", "--delete", "v0.0", cwd=repo.path)
    repo.refresh()
    private = {name for name in refs(repo.mirror) if name.startswith("refs/gitmirror/")}
    assert {f"{ANCHORS}{old[name]}" for name in ("refs/heads/main", "refs/heads/develop", "refs/tags/v0.0")} < private
    with PushConnection(*node.serve.git_address, f"/{repo.name}") as connection:
        advertised = connection.answer
    shown = {name for name in advertised.refs if name.startswith("refs/gitmirror/")}
    assert shown == {f"{TIPS}{old['refs/heads/develop']}"}
    assert old["refs/heads/main"] not in [*advertised.refs.values(), *advertised.haves]
    for version in ("0", "1", "2"):
        seen = git("-c", f"protocol.version={version}", "ls-remote", repo.url)
        assert "refs/gitmirror" not in seen and "refs/heads/main" in seen


def test_a_lazy_fetch_after_a_force_push_finds_its_blobs(repo: Followed, tmp_path: Path) -> None:
    """A partial clone made before a force-push still gets the files of its own commit."""
    guest = repo.node.serve.clone(tmp_path / "guest", repo.name, "--filter=blob:none", "--no-checkout", "--depth=1")
    old = git("rev-parse", "HEAD", cwd=guest)
    rewritten = force_push(repo.path, "main", depth=4)
    repo.refresh()
    git("checkout", "--quiet", old, cwd=guest)
    assert git("status", "--porcelain", cwd=guest) == ""
    assert rewritten != old


def test_what_moved_is_kept_as_history(repo: Followed) -> None:
    """`refreshes` has a row for each refresh: when, how long, what moved."""
    old = refs(repo.path)["refs/heads/main"]
    tip = add_commit(repo.path, "main", {"x": "1\n"})
    repo.refresh()
    repo.refresh()
    newest, moved, first = repo.node.serve.cli_json("refreshes", repo.name)[:3]
    assert (newest["result"], newest["moved"], newest["error"]) == ("unchanged", [], None)
    assert moved["moved"] == [{"ref": "refs/heads/main", "old": old, "new": tip}]
    assert first["result"] == "moved" and len(first["moved"]) == len(refs(repo.path))
    assert 0 < moved["duration"] < 30
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moved["started_at"])


def test_a_mirror_that_was_deleted_by_hand_is_cloned_again(repo: Followed, tmp_path: Path) -> None:
    """A lost mirror heals with the next refresh."""
    repo.mirror.rename(tmp_path / "gone.git")
    code, _, said = git_result("ls-remote", repo.url)
    assert code != 0 and "not mirrored here" in said
    repo.refresh()
    assert refs(repo.path).items() <= repo.seen().items()
    assert repo.seen()["HEAD"] == refs(repo.path)["refs/heads/main"]


def _objects_pushed(guest: Path, session: str) -> int:
    """Commit one file, push it as the session, and return how many objects git sent."""
    commit_files(guest, {"work.txt": "done\n"}, "Work")
    env = clean_env(guest.parent)
    code, _, said = git_result("push", "--progress", "origin", f"HEAD:refs/agents/{session}", cwd=guest, env=env)
    assert code == 0, said
    sent = re.search(r"Writing objects: 100% \((\d+)/\d+\)", said)
    assert sent, said
    return int(sent[1])
