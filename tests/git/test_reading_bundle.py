"""Recorded work as a bundle: plain `git fetch FILE REF` takes it in a clone of the upstream, with nothing missing."""

from __future__ import annotations

import io
import random
from contextlib import aclosing
from pathlib import Path

import pytest
from dulwich.bundle import read_bundle

from appliance.core.errors import NotFound, UsageError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.session_bundle import bundle
from tests.git.lab import Lab
from tests.git.reads import left_early, whole
from tests.support.generate import add_commit, create_repository, force_push
from tests.support.gitutil import commit_files, fsck, git, git_bytes, git_result

REF = "refs/agents/s-1"


@pytest.fixture
def mirror(lab: Lab, widgets_bare: Path) -> Mirror:
    """A mirror of the generated repository."""
    lab.refresh(lab.repo(widgets_bare))
    return lab.mirror()


@pytest.fixture
def work(mirror: Mirror, tmp_path: Path) -> Path:
    """A guest's workspace."""
    git("clone", "--quiet", str(mirror.path), str(tmp_path / "work"))
    return tmp_path / "work"


def record(mirror: Mirror, work: Path, ref: str = REF) -> str:
    """Push the workspace's HEAD as a session."""
    git("push", "--quiet", "--force", str(mirror.path), f"HEAD:{ref}", cwd=work)
    return git("rev-parse", "HEAD", cwd=work)


def taken(lab: Lab, mirror: Mirror, tip: str, clone: Path, *, ref: str = REF) -> bytes:
    """Fetch the bundle of a commit in a clone, check that all of it is there, and return the bundle."""
    data = lab.run(_bundle(mirror, tip, ref))
    file = clone.with_suffix(".bundle")
    file.write_bytes(data)
    assert git_result("bundle", "verify", str(file), cwd=clone)[0] == 0
    git("fetch", "--quiet", str(file), ref, cwd=clone)
    assert git("rev-parse", "FETCH_HEAD", cwd=clone) == tip
    git("branch", "--force", "taken", tip, cwd=clone)
    fsck(clone)
    git("rev-list", "--objects", "taken", cwd=clone)
    return data


async def _bundle(mirror: Mirror, tip: str, ref: str = REF) -> bytes:
    return await whole(await bundle(mirror, tip, ref))


def head_of(data: bytes) -> list[bytes]:
    """The lines of the header, without the last, which is empty."""
    return data[: data.index(b"\n\n")].split(b"\n")


def objects_in(data: bytes) -> int:
    """How many objects the pack has."""
    pack = data[data.index(b"\n\n") + 2 :]
    assert pack[:8] == b"PACK\0\0\0\2"
    return int.from_bytes(pack[8:12], "big")


def clone_of(upstream: Path, path: Path) -> Path:
    """A person's clone of the upstream."""
    git("clone", "--quiet", f"file://{upstream}", str(path))
    return path


def test_a_session_of_two_commits(lab: Lab, mirror: Mirror, work: Path, widgets_bare: Path, tmp_path: Path) -> None:
    """Its own objects alone, as deltas; the base is the only prerequisite."""
    base = git("rev-parse", "main", cwd=mirror.path)
    commit_files(work, {"README.md": (work / "README.md").read_text() + "more\n"}, "One")
    commit_files(work, {"new/file": "new\n"}, "Two")
    tip = record(mirror, work)
    data = taken(lab, mirror, tip, clone_of(widgets_bare, tmp_path / "clone"))
    assert head_of(data) == [b"# v2 git bundle", b"-%s " % base.encode(), b"%s %s" % (tip.encode(), REF.encode())]
    # Two commits, three trees, two files.
    assert objects_in(data) == 7
    assert len(data) < 2000


def test_another_reader_takes_it(lab: Lab, mirror: Mirror, work: Path) -> None:
    """Dulwich reads the header."""
    base = git("rev-parse", "main", cwd=mirror.path)
    commit_files(work, {"new/file": "new\n"}, "One")
    tip = record(mirror, work)
    found = read_bundle(io.BytesIO(lab.run(_bundle(mirror, tip))))
    assert found.version == 2
    assert found.references == {REF.encode(): tip.encode()}
    assert [oid for oid, _ in found.prerequisites] == [base.encode()]


def test_an_old_turn(lab: Lab, mirror: Mirror, work: Path, widgets_bare: Path, tmp_path: Path) -> None:
    """A commit that the session's ref has left, held by the turn."""
    commit_files(work, {"first": "1\n"}, "First")
    first = record(mirror, work)
    git("update-ref", "refs/gitmirror/turns/1", first, cwd=mirror.path)
    git("reset", "--quiet", "--hard", "HEAD~1", cwd=work)
    commit_files(work, {"second": "2\n"}, "Second")
    record(mirror, work)
    clone = clone_of(widgets_bare, tmp_path / "clone")
    taken(lab, mirror, first, clone)
    assert git("show", "taken:first", cwd=clone) == "1"


def test_a_base_that_was_forced_away_is_inside(
    lab: Lab, mirror: Mirror, work: Path, widgets_bare: Path, tmp_path: Path
) -> None:
    """A clone made after the force-push lacks the old base."""
    commit_files(work, {"new": "new\n"}, "One")
    tip = record(mirror, work)
    base = git("rev-parse", f"{tip}~1", cwd=mirror.path)
    for branch in git("for-each-ref", "--format=%(refname:short)", "refs/heads", cwd=widgets_bare).splitlines():
        if git_result("merge-base", "--is-ancestor", base, branch, cwd=widgets_bare)[0] == 0:
            force_push(widgets_bare, branch, depth=2)
    lab.refresh(lab.repo(widgets_bare))
    clone = clone_of(widgets_bare, tmp_path / "clone")
    assert git_result("cat-file", "-e", base, cwd=clone)[0] != 0
    data = taken(lab, mirror, tip, clone)
    assert base.encode() not in data[: data.index(b"\n\n")]


def test_the_upstreams_own_commit(lab: Lab, mirror: Mirror, widgets_bare: Path, tmp_path: Path) -> None:
    """It is its own prerequisite, and the pack is empty: git takes that, and nothing is sent twice."""
    clone = clone_of(widgets_bare, tmp_path / "clone")
    for name in ("main", "main~3"):
        tip = git("rev-parse", name, cwd=mirror.path)
        data = taken(lab, mirror, tip, clone)
        assert head_of(data)[1:] == [b"-%s " % tip.encode(), b"%s %s" % (tip.encode(), REF.encode())]
        assert objects_in(data) == 0


def test_unrelated_history(lab: Lab, mirror: Mirror, widgets_bare: Path, tmp_path: Path) -> None:
    """Without a prerequisite, also an empty repository takes it."""
    tip = add_commit(mirror.path, "scratch", {"f": "x\n"})
    git("update-ref", REF, tip, cwd=mirror.path)
    git("update-ref", "-d", "refs/heads/scratch", cwd=mirror.path)
    empty = tmp_path / "empty"
    git("init", "--quiet", str(empty))
    assert len(head_of(taken(lab, mirror, tip, empty))) == 2
    taken(lab, mirror, tip, clone_of(widgets_bare, tmp_path / "clone"))


def test_a_merge_of_two_branches(lab: Lab, mirror: Mirror, work: Path, widgets_bare: Path, tmp_path: Path) -> None:
    """Both are prerequisites."""
    commit_files(work, {"new": "new\n"}, "One")
    git("merge", "--quiet", "--no-edit", "--strategy=ours", "origin/develop", cwd=work)
    tip = record(mirror, work)
    data = taken(lab, mirror, tip, clone_of(widgets_bare, tmp_path / "clone"))
    bases = {git("rev-parse", name, cwd=mirror.path) for name in ("main", "develop")}
    assert {line[1:-1].decode() for line in head_of(data)[1:-1]} == bases


def test_a_bundle_reaches_a_clone_that_is_a_little_behind(
    lab: Lab, mirror: Mirror, work: Path, widgets_bare: Path, tmp_path: Path
) -> None:
    """What the upstream got since is no prerequisite, for work that does not rest on it."""
    clone = clone_of(widgets_bare, tmp_path / "clone")
    commit_files(work, {"new": "new\n"}, "One")
    tip = record(mirror, work)
    add_commit(widgets_bare, "main", {"later": "x\n"})
    lab.refresh(lab.repo(widgets_bare))
    taken(lab, mirror, tip, clone)


def test_a_refresh_in_the_middle_takes_nothing_out(
    lab: Lab, mirror: Mirror, work: Path, widgets_bare: Path, tmp_path: Path
) -> None:
    """The upstream takes the work over between the header and the pack; a clone from before still gets it whole."""
    clone = clone_of(widgets_bare, tmp_path / "clone")
    commit_files(work, {"new": "new\n"}, "One")
    tip = record(mirror, work)

    async def interrupted() -> bytes:
        async with aclosing(await bundle(mirror, tip, REF)) as stream:
            header = await anext(stream)
            assert header.endswith(b"\n\n") and lab.running == 0
            git("update-ref", "refs/heads/main", tip, cwd=mirror.path)
            return header + b"".join([piece async for piece in stream])

    file = tmp_path / "file"
    file.write_bytes(lab.run(interrupted()))
    git("fetch", "--quiet", str(file), f"{REF}:refs/heads/taken", cwd=clone)
    fsck(clone)


def test_tags_hold_work_too_and_other_refs_do_not(lab: Lab, mirror: Mirror, work: Path) -> None:
    """What sessions and anchors hold is not the upstream's; what a tag holds is."""
    commit_files(work, {"new": "new\n"}, "One")
    first = record(mirror, work)
    commit_files(work, {"newer": "newer\n"}, "Two")
    tip = record(mirror, work, "refs/agents/s-2")
    git("update-ref", f"refs/gitmirror/anchors/{first}", first, cwd=mirror.path)
    assert objects_in(lab.run(_bundle(mirror, tip))) == 6
    git("update-ref", "refs/tags/taken-over", first, cwd=mirror.path)
    data = lab.run(_bundle(mirror, tip))
    assert objects_in(data) == 3
    assert head_of(data)[1] == b"-%s " % first.encode()


def test_a_repository_with_sha256(lab: Lab, tmp_path: Path) -> None:
    """The header names the format, as version 3 does."""
    upstream = tmp_path / "sha256.git"
    git("init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", str(upstream))
    stream = (
        b"commit refs/heads/main\ncommitter A <a@b> 1 +0000\ndata 1\nx\nM 100644 inline f\ndata 2\nhi\n"
        b"commit refs/agents/s-1\ncommitter A <a@b> 2 +0000\ndata 1\ny\nfrom refs/heads/main\n"
        b"M 100644 inline g\ndata 2\nho\n"
    )
    code, _, stderr = git_bytes("fast-import", "--quiet", cwd=upstream, input=stream)
    assert code == 0, stderr
    tip = git("rev-parse", REF, cwd=upstream)
    data = taken(lab, Mirror(upstream, lab.git), tip, clone_of(upstream, tmp_path / "clone"))
    assert head_of(data)[:2] == [b"# v3 git bundle", b"@object-format=sha256"]
    assert objects_in(data) == 3


def test_a_name_of_any_bytes(lab: Lab, mirror: Mirror) -> None:
    """As the list of refs shows it."""
    tip = git("rev-parse", "main", cwd=mirror.path)
    data = lab.run(_bundle(mirror, tip, "refs/agents/caf\\xe9"))
    assert head_of(data)[-1] == b"%s refs/agents/caf\xe9" % tip.encode()


@pytest.mark.parametrize("ref", ["HEAD", "main", "refs/agents/a b", "refs/agents/a\nPACK", "refs/agents/..", "", "-x"])
def test_a_name_that_is_no_ref(lab: Lab, mirror: Mirror, ref: str) -> None:
    """It would be a header that git reads otherwise."""
    with pytest.raises(UsageError, match="no full name of a ref"):
        lab.run(bundle(mirror, "main", ref))


def test_a_commit_that_is_not_there(lab: Lab, mirror: Mirror) -> None:
    """An error before anything is streamed."""
    with pytest.raises(NotFound):
        lab.run(bundle(mirror, "a" * 40, REF))
    with pytest.raises(UsageError):
        lab.run(bundle(mirror, "main..develop", REF))


def test_a_damaged_mirror_is_an_error(lab: Lab, mirror: Mirror) -> None:
    """The bundle does not end as if it were whole."""
    tip = add_commit(mirror.path, "scratch", {"f": "x\n"})
    blob = git("rev-parse", f"{tip}:f", cwd=mirror.path)
    git("update-ref", "-d", "refs/heads/scratch", cwd=mirror.path)
    (mirror.path / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(GitError, match="pack-objects"):
        lab.run(_bundle(mirror, tip))


def test_a_reader_that_leaves_ends_git(lab: Lab, tmp_path: Path) -> None:
    """In the middle of a pack of megabytes."""
    mirror = Mirror(create_repository(tmp_path / "large.git"), lab.git)
    rng = random.Random(3)
    files: dict[str, str | bytes | None] = {f"f{n}": rng.randbytes(2**14) for n in range(400)}
    tip = add_commit(mirror.path, "scratch", files)
    git("update-ref", "-d", "refs/heads/scratch", cwd=mirror.path)

    async def leave() -> None:
        stream = await bundle(mirror, tip, REF)
        assert (await anext(stream)).startswith(b"# v2 git bundle\n")
        assert (await left_early(stream)).startswith(b"PACK")
        assert lab.running == 0

    lab.run(leave())
