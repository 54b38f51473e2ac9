"""A mirror refreshed by itself: after each refresh it is its upstream, ref for ref, and nothing of ours is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from appliance.core.git.mirror import mirror_config
from appliance.core.git.ref_sets import ANCHORS
from appliance.core.models import RefChange
from tests.git.lab import Lab, anchored, followed, moves, shown_tips
from tests.support.generate import (
    add_commit,
    create_repository,
    delete_branch,
    force_push,
    rename_branch,
    set_head,
)
from tests.support.gitutil import fsck, git, git_bytes, git_result, refs, wait_until

CONFLICTS = [
    ("heads/foo", "heads/foo/bar"),
    ("heads/foo/bar", "heads/foo"),
    ("heads/foo", "heads/foo/bar/baz"),
    ("heads/foo/bar/baz", "heads/foo"),
    ("tags/v1", "tags/v1/final"),
    ("tags/v1/final", "tags/v1"),
]


def test_a_first_clone_is_full_bare_and_whole(lab: Lab, widgets_bare: Path) -> None:
    """The mirror has all branches and tags, HEAD, and every object; nothing but it is left behind."""
    facts = lab.refresh(lab.repo(widgets_bare))
    mirror = lab.mirror().path
    assert followed(mirror) == followed(widgets_bare)
    assert facts.tip == refs(widgets_bare)["refs/heads/main"]
    assert (facts.head, facts.refs) == ("refs/heads/main", len(followed(widgets_bare)))
    assert git("rev-parse", "--is-bare-repository", "--is-shallow-repository", cwd=mirror) == "true\nfalse"
    assert facts.size and facts.size > 100_000
    fsck(mirror)
    assert not list((lab.layout.state / "incoming").glob("*/*"))


def test_refs_that_are_no_branches_or_tags_are_left_out(lab: Lab, widgets_bare: Path) -> None:
    """Pull requests and notes of the upstream stay there."""
    tip = refs(widgets_bare)["refs/heads/main"]
    for name in ("refs/pull/1/head", "refs/notes/commits", "refs/agents/theirs", "refs/gitmirror/anchors/x"):
        git("update-ref", name, tip, cwd=widgets_bare)
    lab.refresh(lab.repo(widgets_bare))
    assert set(refs(lab.mirror().path)) == set(followed(widgets_bare))


def test_nothing_moves_when_nothing_moved(lab: Lab, widgets_bare: Path) -> None:
    """A refresh of an unchanged upstream asks for its refs and fetches nothing."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    before = sorted(os.listdir(lab.mirror().path / "objects" / "pack"))
    facts = lab.refresh(repo)
    assert facts.moved == () and facts.size is None
    assert sorted(os.listdir(lab.mirror().path / "objects" / "pack")) == before


def test_commits_branches_and_tags_are_followed(lab: Lab, widgets_bare: Path) -> None:
    """New, moved and deleted branches and tags, in one refresh, are told with their old and new values."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    old = refs(widgets_bare)
    new_main = add_commit(widgets_bare, "main", {"new.txt": "1\n"})
    added = add_commit(widgets_bare, "topic/new", {"new.txt": "2\n"})
    delete_branch(widgets_bare, "develop")
    git("tag", "--force", "v0.1", new_main, cwd=widgets_bare)
    git("tag", "--delete", "v0.0", cwd=widgets_bare)
    facts = lab.refresh(repo)
    assert moves(facts.moved) == {
        "refs/heads/develop": (old["refs/heads/develop"], None),
        "refs/heads/main": (old["refs/heads/main"], new_main),
        "refs/heads/topic/new": (None, added),
        "refs/tags/v0.0": (old["refs/tags/v0.0"], None),
        "refs/tags/v0.1": (old["refs/tags/v0.1"], new_main),
    }
    assert followed(lab.mirror().path) == followed(widgets_bare)
    assert facts.tip == new_main


def test_old_values_become_anchors(lab: Lab, widgets_bare: Path) -> None:
    """The old value of a moved or deleted ref is anchored; receive-pack shows only the followed branch's."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    old = refs(widgets_bare)
    force_push(widgets_bare, "main", depth=2)
    force_push(widgets_bare, "develop")
    delete_branch(widgets_bare, "feature/search")
    git("tag", "--delete", "v0.0", cwd=widgets_bare)
    lab.refresh(repo)
    mirror = lab.mirror().path
    names = ("refs/heads/main", "refs/heads/develop", "refs/heads/feature/search", "refs/tags/v0.0")
    assert anchored(mirror) == {old[name] for name in names}
    assert shown_tips(mirror) == {old["refs/heads/main"]}


def test_what_moves_between_asking_and_fetching_is_anchored_too(lab: Lab, widgets_bare: Path, tmp_path: Path) -> None:
    """A force-push in the instant after the upstream was asked: the old tip is kept all the same."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    old = refs(widgets_bare)["refs/heads/main"]
    force_push(widgets_bare, "develop")
    real = shutil.which("git")
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    move = f"{real} --git-dir={widgets_bare} update-ref refs/heads/main {old}~2"
    wrapper.write_text(f'#!/bin/sh\ncase "$1" in fetch) {move};; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    lab.put_before_git(wrapper.parent)
    facts = lab.refresh(repo)
    mirror = lab.mirror().path
    assert followed(mirror) == followed(widgets_bare) and "refs/heads/main" in moves(facts.moved)
    assert old in anchored(mirror) and shown_tips(mirror) == {old}


def test_the_registered_branch_decides_which_tips_are_shown(lab: Lab, widgets_bare: Path) -> None:
    """With `--branch develop`, it is develop's old tips that pushes start from."""
    repo = lab.repo(widgets_bare, branch="develop")
    facts = lab.refresh(repo)
    old = refs(widgets_bare)
    assert facts.tip == old["refs/heads/develop"]
    force_push(widgets_bare, "main")
    force_push(widgets_bare, "develop")
    assert lab.refresh(repo).tip == refs(widgets_bare)["refs/heads/develop"]
    assert shown_tips(lab.mirror().path) == {old["refs/heads/develop"]}


def test_prune_leaves_what_is_ours(lab: Lab, widgets_bare: Path) -> None:
    """Agents' refs and private refs survive every refresh, also one that deletes all branches upstream."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    mirror = lab.mirror().path
    tip = refs(mirror)["refs/heads/main"]
    ours = {"refs/agents/s1": tip, f"{ANCHORS}{tip}": tip, "refs/gitmirror/turns/7": tip}
    for name in ours:
        git("update-ref", name, tip, cwd=mirror)
    add_commit(widgets_bare, "main", {"x": "1\n"})
    lab.refresh(repo)
    assert ours.items() <= refs(mirror).items()
    for name in followed(widgets_bare):
        git("update-ref", "-d", name, cwd=widgets_bare)
    lab.refresh(repo)
    assert followed(mirror) == {}
    assert ours.items() <= refs(mirror).items()
    fsck(mirror)


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
@pytest.mark.parametrize(("start", "then"), CONFLICTS)
def test_a_name_that_becomes_a_directory_and_back(
    lab: Lab, widgets_bare: Path, start: str, then: str, packed: bool
) -> None:
    """`foo` to `foo/bar` and back is followed, whether the mirror's refs are files or packed."""
    tip = refs(widgets_bare)["refs/heads/main"]
    other = refs(widgets_bare)["refs/heads/develop"]
    git("update-ref", f"refs/{start}", other, cwd=widgets_bare)
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    for gone, there, value in ((start, then, tip), (then, start, other)):
        if packed:
            git("pack-refs", "--all", cwd=lab.mirror().path)
            git("pack-refs", "--all", cwd=widgets_bare)
        git("update-ref", "-d", f"refs/{gone}", cwd=widgets_bare)
        git("update-ref", f"refs/{there}", value, cwd=widgets_bare)
        facts = lab.refresh(repo)
        assert followed(lab.mirror().path) == followed(widgets_bare)
        assert set(moves(facts.moved)) == {f"refs/{gone}", f"refs/{there}"}
    assert anchored(lab.mirror().path) == {tip, other}


def test_many_conflicts_at_once_with_the_default_branch_among_them(lab: Lab, widgets_bare: Path) -> None:
    """Every branch changes from file to directory in one refresh, HEAD's too."""
    repo = lab.repo(widgets_bare)
    tip = refs(widgets_bare)["refs/heads/main"]
    for number in range(20):
        git("update-ref", f"refs/heads/a{number}", tip, cwd=widgets_bare)
        git("update-ref", f"refs/heads/b{number}/x/y", tip, cwd=widgets_bare)
    lab.refresh(repo)
    for number in range(20):
        rename_branch(widgets_bare, f"a{number}", f"a{number}/x/y")
        rename_branch(widgets_bare, f"b{number}/x/y", f"b{number}")
    rename_branch(widgets_bare, "main", "main/next")
    facts = lab.refresh(repo)
    assert followed(lab.mirror().path) == followed(widgets_bare)
    assert facts.head == "refs/heads/main/next" and facts.tip == tip


def test_a_renamed_default_branch_is_followed(lab: Lab, widgets_bare: Path) -> None:
    """HEAD goes where the upstream's goes, also when no ref moved, and also to a branch with no commit."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    rename_branch(widgets_bare, "main", "trunk")
    assert lab.refresh(repo).head == "refs/heads/trunk"
    set_head(widgets_bare, "develop")
    facts = lab.refresh(repo)
    assert facts.moved == ()
    assert (facts.head, facts.tip) == ("refs/heads/develop", refs(widgets_bare)["refs/heads/develop"])


def test_a_detached_upstream_head_leaves_ours(lab: Lab, widgets_bare: Path) -> None:
    """HEAD stays on its branch while the upstream's points at a commit; commits are followed all the same."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    git("update-ref", "--no-deref", "HEAD", refs(widgets_bare)["refs/heads/develop"], cwd=widgets_bare)
    tip = add_commit(widgets_bare, "main", {"x": "1\n"})
    facts = lab.refresh(repo)
    assert (facts.head, facts.tip) == ("refs/heads/main", tip)


@pytest.mark.parametrize(
    ("branches", "expected"),
    [(["main", "master", "a"], "main"), (["master", "a"], "master"), (["b", "a"], "a")],
)
def test_a_first_clone_of_a_detached_head_takes_a_usual_branch(
    lab: Lab, tmp_path: Path, branches: list[str], expected: str
) -> None:
    """With no branch to follow, HEAD is one that exists, so that a guest's clone checks something out."""
    upstream = create_repository(tmp_path / "up.git")
    tips = {branch: add_commit(upstream, branch, {"x": branch}) for branch in branches}
    git("update-ref", "--no-deref", "HEAD", tips[branches[-1]], cwd=upstream)
    facts = lab.refresh(lab.repo(upstream))
    assert (facts.head, facts.tip) == (f"refs/heads/{expected}", tips[expected])


def test_a_detached_head_whose_branch_goes(lab: Lab, widgets_bare: Path) -> None:
    """When the branch that our HEAD stood on is deleted and none is named, HEAD takes another one."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    git("update-ref", "--no-deref", "HEAD", refs(widgets_bare)["refs/heads/develop"], cwd=widgets_bare)
    delete_branch(widgets_bare, "main")
    facts = lab.refresh(repo)
    assert facts.head == "refs/heads/develop"
    assert git_result("rev-parse", "--verify", "HEAD", cwd=lab.mirror().path)[0] == 0


@pytest.mark.parametrize("branch", ["main", "trunk"])
def test_an_empty_upstream_gets_its_first_commit_later(lab: Lab, tmp_path: Path, branch: str) -> None:
    """An empty repository is mirrored empty, and followed from its first commit on, whatever its branch is."""
    upstream = create_repository(tmp_path / "up.git")
    repo = lab.repo(upstream)
    facts = lab.refresh(repo)
    assert (facts.refs, facts.tip, facts.moved) == (0, None, ())
    assert lab.refresh(repo).moved == ()
    set_head(upstream, branch)
    tip = add_commit(upstream, branch, {"x": "1\n"})
    facts = lab.refresh(repo)
    assert (facts.head, facts.tip) == (f"refs/heads/{branch}", tip)


def test_an_upstream_that_is_emptied_and_filled_again(lab: Lab, widgets_bare: Path) -> None:
    """All branches and tags go; what they were stays fetchable; new ones are followed."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    old = followed(widgets_bare)
    for name in old:
        git("update-ref", "-d", name, cwd=widgets_bare)
    facts = lab.refresh(repo)
    assert (facts.refs, facts.tip, facts.head) == (0, None, "refs/heads/main")
    assert anchored(lab.mirror().path) == set(old.values())
    tip = add_commit(widgets_bare, "main", {"x": "1\n"})
    assert lab.refresh(repo).tip == tip
    fsck(lab.mirror().path)


ODD_BRANCHES = [
    "naïve/résumé-☃",
    "日本語",
    "emoji/🚀",
    'it\'s-"quoted"',
    "$(id)",
    "`id`;&|",
    "100%s{}",
    "#42!",
    "a@b",
    "-dash/-inner",
    "CASE",
    "case",
    "x" * 200,
]


def test_odd_branch_names_are_followed(lab: Lab, widgets_bare: Path) -> None:
    """Quotes, shell characters, unicode and dashes in names: made, moved, deleted."""
    repo = lab.repo(widgets_bare)
    tip = refs(widgets_bare)["refs/heads/main"]
    for name in ODD_BRANCHES:
        git("update-ref", f"refs/heads/{name}", tip, cwd=widgets_bare)
    lab.refresh(repo)
    assert followed(lab.mirror().path) == followed(widgets_bare)
    for name in ODD_BRANCHES[::2]:
        git("update-ref", "-d", f"refs/heads/{name}", cwd=widgets_bare)
    for name in ODD_BRANCHES[1::2]:
        force_push(widgets_bare, name)
    facts = lab.refresh(repo)
    assert followed(lab.mirror().path) == followed(widgets_bare)
    assert set(moves(facts.moved)) == {f"refs/heads/{name}" for name in ODD_BRANCHES}


def test_a_default_branch_whose_name_is_not_utf8(lab: Lab, widgets_bare: Path) -> None:
    """git allows any bytes in a name; a mirror of such a branch is refreshed like any other."""
    name = os.fsdecode(b"refs/heads/caf\xe9")
    tip = refs(widgets_bare)["refs/heads/main"]
    git("update-ref", name, tip, cwd=widgets_bare)
    git("symbolic-ref", "HEAD", name, cwd=widgets_bare)
    repo = lab.repo(widgets_bare)
    assert lab.refresh(repo).tip == tip
    force_push(widgets_bare, "main")
    facts = lab.refresh(repo)
    assert (facts.head, facts.tip) == (name, tip)
    assert git_bytes("symbolic-ref", "HEAD", cwd=lab.mirror().path)[1] == b"refs/heads/caf\xe9\n"


@pytest.mark.slow
def test_thousands_of_refs_move_at_once(lab: Lab, widgets_bare: Path) -> None:
    """2,000 branches are cloned, all moved and half of them deleted, each in one refresh."""
    main, develop = (refs(widgets_bare)[f"refs/heads/{name}"] for name in ("main", "develop"))
    names = [f"refs/heads/many/{number}" for number in range(2000)]
    _update_refs(widgets_bare, [f"create {name} {main}" for name in names])
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    _update_refs(widgets_bare, [f"update {name} {develop}" for name in names])
    assert len(lab.refresh(repo).moved) == 2000
    _update_refs(widgets_bare, [f"delete {name}" for name in names[::2]])
    lab.refresh(repo)
    assert followed(lab.mirror().path) == followed(widgets_bare)


def test_a_mirror_that_was_misconfigured_is_put_right(lab: Lab, widgets_bare: Path) -> None:
    """A kill between clone and configuration, or a hand, must not leave a mirror that prunes agents' refs."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    mirror = lab.mirror().path
    git("update-ref", "refs/agents/s1", refs(mirror)["refs/heads/main"], cwd=mirror)
    (mirror / "config").write_text('[remote "origin"]\n\turl = /nowhere\n\tfetch = +refs/*:refs/*\n\tmirror = true\n')
    add_commit(widgets_bare, "main", {"x": "1\n"})
    lab.refresh(repo)
    assert (mirror / "config").read_text() == mirror_config(str(widgets_bare))
    assert "refs/agents/s1" in refs(mirror)


@pytest.mark.parametrize("name", ['with "quotes"', "back\\slash", "sp ace; # and more", "naïve"])
def test_any_path_is_quoted_right_in_the_configuration(lab: Lab, widgets_bare: Path, name: str) -> None:
    """What git reads back is the URL that was written."""
    target = widgets_bare.rename(widgets_bare.with_name(name))
    mirror = lab.mirror()
    lab.run(mirror.initialise(str(target)))
    assert git("config", "remote.origin.url", cwd=mirror.path) == str(target)


def test_the_mirror_never_repacks_by_itself(lab: Lab, widgets_bare: Path) -> None:
    """After sixty fetches, git has not packed or collected anything on its own."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    git("config", "fetch.unpackLimit", "1", cwd=lab.mirror().path)
    config = lab.mirror().path / "config"
    text = config.read_text()
    assert "auto = 0" in text and "autogc = false" in text
    for number in range(5):
        add_commit(widgets_bare, "main", {"x": f"{number}\n"})
        lab.refresh(repo)
    wait_until(lambda: lab.running == 0, message="no git runs on")
    assert not list(lab.mirror().path.glob("gc.*"))


def _update_refs(repository: Path, commands: list[str]) -> None:
    git("update-ref", "--stdin", cwd=repository, input="".join(f"{command}\n" for command in commands))


def test_many_rewritten_branches_cost_work_in_proportion(
    lab: Lab, widgets_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is looked for once among the others: 60,000 of them stopped the loop for two minutes."""
    old, new = (git("rev-parse", f"refs/heads/main~{back}", cwd=widgets_bare) for back in (1, 0))
    names, repo = [f"refs/heads/many/{number}" for number in range(400)], lab.repo(widgets_bare)
    git("update-ref", "--stdin", cwd=widgets_bare, input="".join(f"create {name} {old}\n" for name in names))
    lab.refresh(repo)
    git("update-ref", "--stdin", cwd=widgets_bare, input="".join(f"update {name} {new}\n" for name in names))
    compared = 0
    equal = RefChange.__eq__

    def counting(one: RefChange, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(one, other)

    monkeypatch.setattr(RefChange, "__eq__", counting)
    facts = lab.refresh(repo)
    monkeypatch.undo()
    assert len(facts.moved) == len(names) and old in anchored(lab.mirror().path)
    assert compared <= 4 * len(names)
