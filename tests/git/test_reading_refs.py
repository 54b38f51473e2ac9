"""Refs are listed as git lists them, a page at a time, with names of any bytes and objects of any kind."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.core.git.mirror import Mirror
from appliance.core.git.reading import MOST_ITEMS, list_refs
from appliance.core.text import storable
from tests.git.lab import Lab
from tests.git.reads import counting, plain, stored
from tests.support.generate import create_repository
from tests.support.gitutil import git, git_bytes, refs


@pytest.fixture
def mirror(lab: Lab, widgets_bare: Path) -> Mirror:
    """A mirror with sessions, private refs, odd tags and odd names."""
    lab.refresh(lab.repo(widgets_bare))
    path = lab.mirror().path
    tip = git("rev-parse", "main", cwd=path)
    annotated = git("rev-parse", "v0.0", cwd=path)
    nested = stored(path, "tag", f"object {annotated}\ntype tag\ntag twice\n\nNo tagger,\nand two lines\n\nx".encode())
    picture = stored(path, "blob", b"a key")
    of_a_blob = stored(path, "tag", f"object {picture}\ntype blob\ntag key\ntagger A <a@b> 5 +0100\n\nKey\n".encode())
    odd = {
        "refs/agents/agent-1": tip,
        "refs/gitmirror/turns/1": tip,
        "refs/tags/twice": nested,
        "refs/tags/key": of_a_blob,
        "refs/tags/plain-blob": picture,
        "refs/tags/tree": git("rev-parse", "main^{tree}", cwd=path),
        os.fsdecode(b"refs/heads/caf\xe9"): tip,
        "refs/heads/näive ☃".replace(" ", "-"): tip,
    }
    commands = b"".join(os.fsencode(f"create {ref} {oid}\n") for ref, oid in odd.items())
    code, _, stderr = git_bytes("update-ref", "--stdin", cwd=path, input=commands)
    assert code == 0, stderr
    return lab.mirror()


def listed(lab: Lab, mirror: Mirror, limit: int, prefix: str = "") -> list[dict[str, Any]]:
    """All refs, page by page."""
    items: list[dict[str, Any]] = []
    after = None
    while True:
        page = lab.run(list_refs(mirror, prefix, after, limit))
        assert len(page.items) <= limit
        items += page.items
        if page.next is None:
            return items
        assert len(page.items) == limit
        after = page.next


@pytest.mark.parametrize("limit", [1, 3, MOST_ITEMS])
def test_refs_are_listed_as_git_lists_them(lab: Lab, mirror: Mirror, limit: int) -> None:
    """Every branch, tag and session once, in git's order; none of ours."""
    form = "%(refname)%00%(objectname)%00%(objecttype)%00%(creatordate:unix)%00%(subject)"
    output = plain(mirror.path, "for-each-ref", f"--format={form}", "refs/heads", "refs/tags", "refs/agents")
    expected = []
    for line in output.decode("utf-8", "surrogateescape").splitlines():
        ref, oid, kind, at, subject = line.split("\0")
        code, peeled, _ = git_bytes("rev-parse", "--quiet", "--verify", f"{oid}^{{commit}}", cwd=mirror.path)
        moment = datetime.datetime.fromtimestamp(int(at), datetime.UTC).isoformat() if at else None
        expected.append(
            {
                "ref": storable(ref),
                "oid": oid,
                "peeled": peeled.decode().strip() if kind == "tag" and code == 0 else None,
                "at": moment and moment.replace("+00:00", ".000Z"),
                "subject": subject,
            }
        )
    found = listed(lab, mirror, limit)
    assert found == expected
    assert {each["ref"] for each in found} >= {"refs/heads/caf\\xe9", "refs/heads/näive-☃", "refs/agents/agent-1"}
    assert sum(each["peeled"] is not None for each in found) >= 2


@pytest.mark.parametrize(
    "prefix",
    ["", "r", "refs/", "refs/heads/", "refs/heads/fe", "refs/heads/feature", "refs/t", "refs/agents/agent-1", "refs/x"],
)
def test_a_prefix_is_a_plain_string(lab: Lab, mirror: Mirror, prefix: str) -> None:
    """It need not end at a slash."""
    names = [ref for ref in refs(mirror.path) if not ref.startswith("refs/gitmirror/")]
    expected = {storable(ref) for ref in names if ref.startswith(prefix)}
    assert {each["ref"] for each in listed(lab, mirror, 5, prefix)} == expected


@pytest.mark.parametrize(
    "prefix", ["refs/heads/*", "refs/heads/f?", "refs/heads/[a-z]", "refs/gitmirror/", "main", "-", "\ud800"]
)
def test_a_prefix_is_no_pattern_and_shows_nothing_private(lab: Lab, mirror: Mirror, prefix: str) -> None:
    """There is no ref with such a name."""
    assert listed(lab, mirror, 5, prefix) == []


def test_a_prefix_and_a_cursor_may_hold_bytes_as_they_are_shown(lab: Lab, mirror: Mirror) -> None:
    """What the list shows can be given back."""
    assert [each["ref"] for each in listed(lab, mirror, 5, "refs/heads/caf\\xe9")] == ["refs/heads/caf\\xe9"]
    names = [each["ref"] for each in listed(lab, mirror, 100)]
    page = lab.run(list_refs(mirror, "", "refs/heads/caf\\xe9", 1))
    assert page.items[0]["ref"] == names[names.index("refs/heads/caf\\xe9") + 1]


def test_a_cursor_need_not_exist_any_more(lab: Lab, mirror: Mirror) -> None:
    """A ref that was deleted between two pages hides none."""
    before = listed(lab, mirror, 100)
    page = lab.run(list_refs(mirror, "refs/heads/", None, 2))
    git("update-ref", "-d", before[[each["ref"] for each in before].index(page.next)]["ref"], cwd=mirror.path)
    after = lab.run(list_refs(mirror, "refs/heads/", page.next, 100))
    branches = [each for each in before if each["ref"].startswith("refs/heads/")]
    assert page.items + after.items == branches


def test_a_limit_is_bounded(lab: Lab, mirror: Mirror) -> None:
    """Neither nothing nor everything."""
    assert len(lab.run(list_refs(mirror, "", None, 0)).items) == 1
    assert len(lab.run(list_refs(mirror, "", None, -5)).items) == 1


def test_eleven_thousand_refs_cost_no_more_than_their_names(lab: Lab, tmp_path: Path) -> None:
    """Objects are read for the page alone, so all others may even be missing; a missing one is shown without facts."""
    path = create_repository(tmp_path / "many.git")
    tip = stored(
        path,
        "commit",
        f"tree {stored(path, 'tree', b'')}\nauthor A <a@b> 7 +0000\ncommitter A <a@b> 8 +0000\n\nOne\n".encode(),
    )
    names = sorted(f"refs/heads/topic/{number}" for number in range(11_000))
    lines = (f"{tip if number < 50 else f'{number:040x}'} {name}\n" for number, name in enumerate(names))
    (path / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted \n" + "".join(lines))
    mirror = Mirror(path, lab.git)
    page = lab.run(list_refs(mirror, "refs/heads/", None, 50))
    assert [each["ref"] for each in page.items] == names[:50]
    assert {(each["subject"], each["at"]) for each in page.items} == {("One", "1970-01-01T00:00:08.000Z")}
    page = lab.run(list_refs(mirror, "refs/heads/", names[10_990], 50))
    assert [(each["ref"], each["subject"], each["at"]) for each in page.items] == [
        (name, "", None) for name in names[10_991:]
    ]
    assert counting(lab, lambda: list_refs(mirror, "refs/heads/", None, 50)) == 3


def test_an_empty_mirror_has_no_refs(lab: Lab, tmp_path: Path) -> None:
    """It is served, with nothing in it."""
    page = lab.run(list_refs(Mirror(create_repository(tmp_path / "empty.git"), lab.git)))
    assert (page.items, page.next) == ([], None)


def archive(path: Path, *sessions: str) -> None:
    """What retention does with idle sessions."""
    for session in sessions:
        tip = git("rev-parse", f"refs/agents/{session}", cwd=path)
        git("update-ref", f"refs/gitmirror/archive/{session}", tip, cwd=path)
        git("update-ref", "-d", f"refs/agents/{session}", cwd=path)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3, MOST_ITEMS])
@pytest.mark.parametrize("prefix", ["", "refs/", "refs/agents/", "refs/agents/s", "refs/agents/deep/"])
def test_an_archived_session_is_listed_as_before(lab: Lab, mirror: Mirror, limit: int, prefix: str) -> None:
    """In the same place, with the same facts, under the name that was pushed."""
    tip = git("rev-parse", "main", cwd=mirror.path)
    for session in ("a", "s-1", "s-2", "s-3", "deep/er", "zz"):
        git("update-ref", f"refs/agents/{session}", tip, cwd=mirror.path)
    before = listed(lab, mirror, limit, prefix)
    archive(mirror.path, "a", "s-2", "deep/er", "zz")
    assert listed(lab, mirror, limit, prefix) == before
    assert {each["ref"] for each in before} & {"refs/agents/s-2", "refs/agents/deep/er"}
    git("pack-refs", "--all", cwd=mirror.path)
    assert listed(lab, mirror, limit, prefix) == before


@pytest.mark.parametrize("prefix", ["refs/gitmirror/", "refs/gitmirror/archive/s", "refs/heads/", "refs/tags/"])
def test_the_archive_is_listed_under_no_other_name(lab: Lab, mirror: Mirror, prefix: str) -> None:
    """Its place is private, and it holds no branch and no tag."""
    before = listed(lab, mirror, 5, prefix)
    archive(mirror.path, "agent-1")
    assert listed(lab, mirror, 5, prefix) == before


def test_a_session_that_is_in_both_places_is_listed_once(lab: Lab, mirror: Mirror) -> None:
    """A push put it back a moment ago: its own ref is newer."""
    older = git("rev-parse", "main~1", cwd=mirror.path)
    git("update-ref", "refs/gitmirror/archive/agent-1", older, cwd=mirror.path)
    [session] = listed(lab, mirror, 1, "refs/agents/")
    assert (session["ref"], session["oid"]) == ("refs/agents/agent-1", git("rev-parse", "main", cwd=mirror.path))
    page = lab.run(list_refs(mirror, "refs/agents/", None, 1))
    assert page.next is None
