"""Commits are listed as `git log` lists them, a page at a time; what names a commit, and what does not."""

from __future__ import annotations

import datetime
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import NotFound, UsageError
from appliance.core.git.mirror import Mirror
from appliance.core.git.objects import MOST_KEPT, MOST_MESSAGE
from appliance.core.git.reading import MOST_TEXT, list_commits
from appliance.core.git.revisions import commit_of, is_ref_name
from tests.git.lab import Lab
from tests.git.reads import counting, plain, stored
from tests.support.generate import add_commit, create_repository, force_push
from tests.support.gitutil import git, git_result

FORM = "%H%x00%P%x00%an%x00%ae%x00%at%x00%cn%x00%ce%x00%ct%x00%s%x00%B%x01"
PEOPLE = "author A <a@b> 7 +0000\ncommitter B <b@c> 8 -0130\n"


@pytest.fixture
def mirror(lab: Lab, widgets_bare: Path) -> Mirror:
    """A mirror with merges."""
    lab.refresh(lab.repo(widgets_bare))
    return lab.mirror()


@pytest.fixture
def odd(lab: Lab, tmp_path: Path) -> Mirror:
    """A repository for objects that git would not make."""
    return Mirror(create_repository(tmp_path / "odd.git"), lab.git)


def person(name: str, email: str, at: str) -> dict[str, str]:
    """A person as a document has it."""
    moment = datetime.datetime.fromtimestamp(int(at), datetime.UTC).isoformat()
    return {"name": name, "email": email, "at": moment.replace("+00:00", ".000Z")}


def logged(repository: Path, *args: str) -> list[dict[str, Any]]:
    """What `git log` says, as documents."""
    documents = []
    for record in plain(repository, "log", f"--format=tformat:{FORM}", *args).decode().split("\x01\n")[:-1]:
        oid, parents, an, ae, at, cn, ce, ct, subject, body = record.split("\0")
        documents.append(
            {
                "oid": oid,
                "parents": parents.split(),
                "author": person(an, ae, at),
                "committer": person(cn, ce, ct),
                "subject": subject,
                "message": body,
            }
        )
    return documents


def listed(lab: Lab, mirror: Mirror, ref: str | None, limit: int) -> list[dict[str, Any]]:
    """The whole history, page by page."""
    items: list[dict[str, Any]] = []
    after = None
    while True:
        page = lab.run(list_commits(mirror, ref, after, limit))
        assert 0 < len(page.items) <= limit
        items += page.items
        if page.next is None:
            return items
        after = page.next


def commit(mirror: Mirror, rest: bytes, *, headers: bytes = PEOPLE.encode()) -> str:
    """Store a commit with these headers and what follows them."""
    tree = stored(mirror.path, "tree", b"")
    return stored(mirror.path, "commit", b"tree %s\n%s%s" % (tree.encode(), headers, rest))


def one(lab: Lab, mirror: Mirror, oid: str) -> dict[str, Any]:
    """The document of one commit."""
    return lab.run(list_commits(mirror, oid, None, 1)).items[0]


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_commits_are_listed_as_git_lists_them(lab: Lab, mirror: Mirror, limit: int) -> None:
    """Across merges, each commit once, newest first."""
    expected = logged(mirror.path, "main")
    assert any(len(each["parents"]) == 2 for each in expected)
    assert listed(lab, mirror, "main", limit) == expected


def test_pages_fit_together_when_the_ref_moves(lab: Lab, mirror: Mirror) -> None:
    """The cursor holds the commit that the list began with."""
    expected = logged(mirror.path, "main")
    first = lab.run(list_commits(mirror, "main", None, 5))
    add_commit(mirror.path, "main", {"new": "x"})
    force_push(mirror.path, "main", depth=3)
    rest = lab.run(list_commits(mirror, "main", first.next, 1000))
    assert first.items + rest.items == expected
    assert rest.next is None


def test_without_a_name_it_is_head(lab: Lab, mirror: Mirror) -> None:
    """Also when HEAD is no branch."""
    assert listed(lab, mirror, None, 1000) == logged(mirror.path, "main")
    older = git("rev-parse", "main~3", cwd=mirror.path)
    (mirror.path / "HEAD").write_text(f"{older}\n")
    assert lab.run(commit_of(mirror, None)) == lab.run(commit_of(mirror, "HEAD")) == older


def test_a_page_takes_few_processes(lab: Lab, mirror: Mirror) -> None:
    """Finding the ref, its commit, the ids and what they hold."""
    assert counting(lab, lambda: list_commits(mirror, "main", None, 1000)) == 4


def test_what_names_a_commit(lab: Lab, mirror: Mirror) -> None:
    """Refs in full and in short, ids in full and in short."""
    path = mirror.path
    tip, tagged = git("rev-parse", "main", cwd=path), git("rev-parse", "v0.0^{commit}", cwd=path)
    assert git("cat-file", "-t", "v0.0", cwd=path) == "tag"
    git("update-ref", "refs/agents/s-1", tagged, cwd=path)
    git("update-ref", os.fsdecode(b"refs/heads/caf\xe9"), tagged, cwd=path)
    for name in ("main", "heads/main", "refs/heads/main", tip, tip[:12]):
        assert lab.run(commit_of(mirror, name)) == tip
    tag = git("rev-parse", "v0.0", cwd=path)
    for name in ("v0.0", "tags/v0.0", "refs/tags/v0.0", tag, "refs/agents/s-1", "agents/s-1", "caf\\xe9", "caf\udce9"):
        assert lab.run(commit_of(mirror, name)) == tagged


def test_the_ref_of_an_archived_session_is_read_by_its_own_name(lab: Lab, mirror: Mirror) -> None:
    """A session that was idle for a day has moved to where pushes do not see it, and is no other session for that."""
    path = mirror.path
    tip, older = git("rev-parse", "main", cwd=path), git("rev-parse", "main~2", cwd=path)
    git("update-ref", "refs/gitmirror/archive/s-1", older, cwd=path)
    for name in ("refs/agents/s-1", "agents/s-1"):
        assert lab.run(commit_of(mirror, name)) == older
        assert lab.run(list_commits(mirror, name, None, 1)).items[0]["oid"] == older
    for name in ("refs/gitmirror/archive/s-1", "gitmirror/archive/s-1", "s-1", "refs/agents/s", "refs/agents/s-1/x"):
        with pytest.raises(NotFound):
            lab.run(commit_of(mirror, name))
    # A push has put it back, and a branch has the short name.
    git("update-ref", "refs/agents/s-1", tip, cwd=path)
    assert lab.run(commit_of(mirror, "refs/agents/s-1")) == tip
    git("update-ref", "-d", "refs/agents/s-1", cwd=path)
    git("update-ref", "refs/heads/agents/s-1", tip, cwd=path)
    assert lab.run(commit_of(mirror, "agents/s-1")) == tip


def test_a_branch_goes_before_a_tag_and_a_ref_before_a_short_id(lab: Lab, mirror: Mirror) -> None:
    """As people mean it; a full id is always an id."""
    path = mirror.path
    tip, older = git("rev-parse", "main", cwd=path), git("rev-parse", "main~2", cwd=path)
    git("update-ref", "refs/tags/main", older, cwd=path)
    git("update-ref", f"refs/heads/{tip[:8]}", older, cwd=path)
    git("update-ref", f"refs/heads/{tip}", older, cwd=path)
    assert lab.run(commit_of(mirror, "main")) == tip
    assert lab.run(commit_of(mirror, tip[:8])) == older
    assert lab.run(commit_of(mirror, tip)) == tip


EXPRESSIONS = [
    *("-n1", "--all", "main..develop", "main...develop", "main@{1}", "@", "@{-1}", "main~1", "main^", "main^{tree}"),
    *("^main", ":README.md", "main:README.md", ":/fix", "main develop", "main\n", "main\0", "a*", "a?", "[a]", "a\\b"),
    *("a//b", "/a", "a/", "a.lock", ".a", "a/.b", "a.", "\x7f", "x" * 5000),
]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_no_expression_reaches_git(lab: Lab, mirror: Mirror, name: str) -> None:
    """It is refused before a process starts."""
    with pytest.raises(UsageError):
        lab.run(list_commits(mirror, name))


@pytest.mark.parametrize("name", [*EXPRESSIONS, "main", "a/b", "a-b", "näive", "a@b", "a.b", "x.lockx", "refs/heads/@"])
def test_a_name_is_what_git_allows(name: str) -> None:
    """As `git check-ref-format`, but for its length and a dash in front."""
    if "\0" in name or len(name) > 4096 or name == "@":
        assert not is_ref_name(name)
        return
    code, _, _ = git_result("check-ref-format", f"refs/heads/{name}")
    assert is_ref_name(name) == (code == 0 and not name.startswith("-"))


@pytest.mark.parametrize(
    "name",
    [
        *("nothing", "refs/heads/nothing", "feature", "refs/heads", "refs", "a" * 40, "b" * 64, "abcdef0"),
        *("refs/gitmirror/turns/1", "gitmirror/turns/1", "picture", "tree", "refs/heads/x", "ORIG_HEAD", "config"),
    ],
)
def test_what_is_not_there_is_not_found(lab: Lab, mirror: Mirror, name: str) -> None:
    """Also what is no commit, what is private, and what git would find by adding `refs/heads/`."""
    path = mirror.path
    tip = git("rev-parse", "main", cwd=path)
    git("update-ref", "refs/gitmirror/turns/1", tip, cwd=path)
    git("update-ref", "refs/heads/refs/heads/x", tip, cwd=path)
    git("update-ref", "refs/tags/picture", stored(path, "blob", b"x"), cwd=path)
    git("update-ref", "refs/tags/tree", git("rev-parse", "main^{tree}", cwd=path), cwd=path)
    (path / "ORIG_HEAD").write_text(f"{tip}\n")
    with pytest.raises(NotFound, match="no commit"):
        lab.run(list_commits(mirror, name))


def test_half_a_character_is_no_name(lab: Lab, mirror: Mirror) -> None:
    """JSON can hold it."""
    with pytest.raises(NotFound):
        lab.run(list_commits(mirror, "\ud800"))


def test_an_empty_mirror_has_no_head(lab: Lab, odd: Mirror) -> None:
    """It is not found, which is no failure of git."""
    with pytest.raises(NotFound):
        lab.run(list_commits(odd))


@pytest.mark.parametrize(
    "after",
    ["", "x", "main:1", "a" * 40, f"{'a' * 40}:-1", f"{'a' * 40}:1:2", f"{'a' * 40}:{'9' * 10}", f"-{'a' * 39}:1"],
)
def test_a_cursor_is_one_of_ours(lab: Lab, mirror: Mirror, after: str) -> None:
    """Nothing else reaches git."""
    with pytest.raises(UsageError, match="cursor"):
        lab.run(list_commits(mirror, "main", after))


def test_a_cursor_of_a_commit_that_is_gone(lab: Lab, mirror: Mirror) -> None:
    """It is not found, and one behind the end has nothing."""
    with pytest.raises(NotFound):
        lab.run(list_commits(mirror, "main", f"{'a' * 40}:1"))
    page = lab.run(list_commits(mirror, "main", f"{git('rev-parse', 'main', cwd=mirror.path)}:100000"))
    assert (page.items, page.next) == ([], None)


def test_odd_commits_are_shown_as_git_shows_them(lab: Lab, odd: Mirror) -> None:
    """Signatures, encodings, empty messages, leading blank lines, names with anything in them."""
    signature = b"gpgsig -----BEGIN PGP SIGNATURE-----\n \n parent " + b"a" * 40 + b"\n -----END PGP SIGNATURE-----\n"
    latin = PEOPLE.replace("A ", "Jos\xe9 ").encode("latin-1") + b"encoding ISO-8859-1\n"
    oids = [
        commit(odd, signature + b"\nSigned\n\nBody\n"),
        commit(odd, b"\nCaf\xe9\n", headers=latin),
        commit(odd, b"\n"),
        commit(odd, b"\n\n\n  Two\t \nlines  \n \t\nBody\n\n"),
        commit(odd, b"\nNo end of line"),
        commit(odd, "\nNäive ☃\n".encode(), headers=PEOPLE.replace("A ", "\u202eÅ (x) ").encode()),
        commit(odd, b"\nparent " + b"b" * 40 + b"\nauthor nobody\n"),
    ]
    for oid in oids:
        expected = logged(odd.path, "-1", oid)[0]
        found = one(lab, odd, oid)
        # git ends each message that it prints with the end of a line, and leaves out blank lines in front.
        assert found["message"].strip("\n") == expected["message"].strip("\n")
        assert found | {"message": ""} == expected | {"message": ""}


def test_what_is_broken_in_a_commit_is_shown_as_far_as_it_goes(lab: Lab, odd: Mirror) -> None:
    """Times that no calendar has, people without an address, text in no encoding."""
    far = one(lab, odd, commit(odd, b"\nFar\n", headers=b"author A <a@b> 99999999999999 +0000\ncommitter B <b> 8 +0\n"))
    assert far["author"] == {"name": "A", "email": "a@b", "at": None}
    bare = one(lab, odd, commit(odd, b"\nB\xff\n", headers=b"author nobody\ncommitter <>\nencoding punycode\n"))
    assert bare["author"] == {"name": "nobody", "email": "", "at": None}
    assert bare["committer"] == {"name": "", "email": "", "at": None}
    assert bare["message"] == "B\ufffd\n"


def test_a_long_message_is_cut(lab: Lab, odd: Mirror) -> None:
    """In the middle of nothing: the cut ends with an ellipsis, and fits the bound as UTF-8."""
    whole = "é" * (MOST_MESSAGE // 2)
    assert one(lab, odd, commit(odd, b"\n" + whole.encode()))["message"] == whole
    cut = one(lab, odd, commit(odd, b"\nx" + whole.encode()))["message"]
    assert cut == "x" + "é" * ((MOST_MESSAGE - 4) // 2) + "…"
    assert len(cut.encode()) <= MOST_MESSAGE


@pytest.mark.slow
def test_messages_of_megabytes_take_no_memory(lab: Lab, odd: Mirror) -> None:
    """Nineteen commits of 2 MiB and one with a signature of 2 MiB: pages are short, and complete together."""
    tip, oids = "", []
    for number in range(20):
        parent = f"parent {tip}\n" if tip else ""
        filler = b"x" * 2**21
        rest = b"gpgsig %s\n\nSigned\n" % filler if number == 10 else b"\nMessage %d\n\n%s" % (number, filler)
        tip = commit(odd, rest, headers=(parent + PEOPLE).encode())
        oids.append(tip)
    tracemalloc.start()
    try:
        pages: list[list[str]] = []
        after = None
        while not pages or after:
            page = lab.run(list_commits(odd, tip, after, 1000))
            pages.append([each["oid"] for each in page.items])
            after = page.next
            assert tracemalloc.get_traced_memory()[1] < 6 * MOST_TEXT
    finally:
        tracemalloc.stop()
    assert len(pages) == 20 * MOST_KEPT // MOST_TEXT + 1
    assert [oid for page in pages for oid in page] == oids[::-1]
