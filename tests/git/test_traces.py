"""Traces of refs: every way in which git changes a ref leaves one, and nothing else makes a reader ask again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.git.ref_traces import MOST_DIRECTORIES, TRUSTED_FOR, RefTraces, take_traces
from tests.support.generate import add_commit
from tests.support.gitutil import git

LONG_PAST = 1_000_000_000


def settled(repository: Path) -> RefTraces:
    """The traces once everything is old enough, without the wait for it."""
    directories = [Path(directory) for directory, _, _ in os.walk(repository / "refs")]
    for path in (repository / "HEAD", repository / "packed-refs", *directories):
        if path.exists():
            os.utime(path, (LONG_PAST, LONG_PAST))
    # ctime cannot be set, so it is the clock that is put forward.
    traces = take_traces(repository, time.time() + 10)
    assert traces is not None
    return traces


def state(repository: Path) -> str:
    """Everything that guests are shown of the refs."""
    return git("for-each-ref", cwd=repository) + (repository / "HEAD").read_text()


@pytest.fixture
def mirror(tmp_path: Path, generated_bare: Path) -> Path:
    """A bare repository with its refs packed, as a first clone leaves them."""
    git("clone", "--quiet", "--mirror", str(generated_bare), str(tmp_path / "mirror"))
    git("pack-refs", "--all", cwd=tmp_path / "mirror")
    return tmp_path / "mirror"


WAYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "a new loose ref": (("update-ref", "refs/heads/new", "main"),),
    "a new ref in a new directory": (("update-ref", "refs/agents/a/b/c", "main"),),
    "a packed ref that moves": (("update-ref", "refs/heads/main", "main~1"),),
    "a packed ref that goes": (("update-ref", "-d", "refs/heads/main"),),
    "a tag": (("tag", "--annotate", "--message=x", "v99", "main"),),
    "another HEAD": (("symbolic-ref", "HEAD", "refs/heads/other"),),
    "a detached HEAD": (("update-ref", "--no-deref", "HEAD", "main"),),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_seen(mirror: Path, way: str) -> None:
    """Whatever git does to a ref, one of the traces is another after it."""
    traces, before = settled(mirror), state(mirror)
    assert traces.hold()
    for command in WAYS[way]:
        git(*command, cwd=mirror)
    assert state(mirror) != before
    assert not traces.hold()


@pytest.mark.parametrize("loose", ["main", "deep/er/ref"])
def test_a_loose_ref_that_moves_or_goes_is_seen(mirror: Path, loose: str) -> None:
    """The file is replaced in its directory; the directory's own entry in its parent stays."""
    git("update-ref", f"refs/heads/{loose}", "main~1", cwd=mirror)
    traces = settled(mirror)
    git("update-ref", f"refs/heads/{loose}", "main~2", cwd=mirror)
    assert not traces.hold()
    traces = settled(mirror)
    git("update-ref", "-d", f"refs/heads/{loose}", cwd=mirror)
    assert not traces.hold()


def test_a_fetch_is_seen(mirror: Path, tmp_path: Path) -> None:
    """With prune and --atomic, as a refresh does it."""
    upstream = tmp_path / "upstream"
    git("clone", "--quiet", "--mirror", str(mirror), str(upstream))
    git("remote", "set-url", "origin", str(upstream), cwd=mirror)
    git("fetch", "--quiet", cwd=mirror)
    traces = settled(mirror)
    add_commit(upstream, "main", {"seen.txt": "x"})
    git("branch", "come", "main", cwd=upstream)
    git("fetch", "--quiet", "--atomic", "--prune", "origin", "+refs/heads/*:refs/heads/*", cwd=mirror)
    assert not traces.hold()
    traces = settled(mirror)
    git("branch", "--delete", "--force", "come", cwd=upstream)
    git("fetch", "--quiet", "--atomic", "--prune", "origin", "+refs/heads/*:refs/heads/*", cwd=mirror)
    assert not traces.hold()


def test_what_changes_no_ref_is_no_change(mirror: Path) -> None:
    """New objects and reading leave the traces alone, so that nobody asks git for them."""
    traces = settled(mirror)
    git("hash-object", "-w", "--stdin", cwd=mirror, input=b"an object")
    git("repack", "-a", "-d", "-q", cwd=mirror)
    git("rev-list", "--all", "--objects", cwd=mirror)
    assert traces.hold()


def test_young_traces_are_not_taken(mirror: Path) -> None:
    """A change in the same clock tick as the look cannot be distinguished from a later one."""
    git("update-ref", "refs/heads/young", "main", cwd=mirror)
    assert take_traces(mirror, time.time()) is None
    assert take_traces(mirror, time.time() + 10) is not None


def test_a_clock_that_was_put_back_believes_nothing(mirror: Path) -> None:
    """Files from the future are young."""
    assert take_traces(mirror, LONG_PAST) is None


def test_too_many_directories_are_not_followed(mirror: Path) -> None:
    """A look at each would cost as much as asking git."""
    for number in range(MOST_DIRECTORIES):
        (mirror / "refs" / "heads" / f"d{number}").mkdir()
    assert take_traces(mirror, time.time() + 10) is None


_NAMES = st.sampled_from(["main", "topic", "dir/one", "dir/two", "dir/sub/three"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["set", "delete", "pack", "head"]), _NAMES, st.integers(0, 3)), max_size=4))
def test_traces_that_hold_mean_refs_that_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, generated_bare: Path, steps: list[tuple[str, str, int]]
) -> None:
    """Any sequence of updates, deletions, packing and moves of HEAD."""
    mirror = tmp_path_factory.mktemp("sequence") / "mirror"
    git("clone", "--quiet", "--mirror", str(generated_bare), str(mirror))
    first = git("rev-parse", "main", cwd=mirror)
    traces, before = settled(mirror), state(mirror)
    for kind, name, back in steps:
        if kind == "set":
            git("update-ref", f"refs/heads/{name}", f"{first}~{back}", cwd=mirror)
        elif kind == "delete":
            git("update-ref", "-d", f"refs/heads/{name}", cwd=mirror)
        elif kind == "pack":
            git("pack-refs", "--all", cwd=mirror)
        else:
            git("symbolic-ref", "HEAD", f"refs/heads/{name}", cwd=mirror)
        if traces.hold():
            assert state(mirror) == before
        else:
            traces, before = settled(mirror), state(mirror)


def test_traces_are_not_trusted_for_ever(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file damaged in place changes no trace, but is read again after TRUSTED_FOR."""
    traces = settled(mirror)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + TRUSTED_FOR - 1)
    assert traces.hold()
    monkeypatch.setattr(time, "monotonic", lambda: now + TRUSTED_FOR + 1)
    assert not traces.hold()
