"""When the blob file goes on, and when a new one is begun: what upstream dropped is in no drive that is built later."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

import appliance
from appliance.core.errors import GitmirrorError
from appliance.core.workspace.disk import mirror_reader
from appliance.core.workspace.disk.build import WORKER
from appliance.core.workspace.disk.images import DiskForm, DiskImage
from appliance.core.workspace.disk.order import DiskOrder
from tests.support.gitutil import git, git_bytes
from tests.workspace.conftest import ROUNDS
from tests.workspace.disk.disk_lab import DiskLab, check, fast_import

SECRET = b"the password that was pushed by mistake"


def has_secret(lab: DiskLab, image: DiskImage) -> bool:
    """Whether the secret is in either drive of an image, in the clear or as an object."""
    data = lab.data(image) + lab.place.tree(image).read_bytes()
    return SECRET in data


def push(lab: DiskLab, branch: str, files: dict[bytes, bytes], onto: str | None = None) -> str:
    """Add a commit to a branch; with `onto`, move the branch there first."""
    if onto is not None:
        git("update-ref", f"refs/heads/{branch}", onto, cwd=lab.bare)
    [commit] = fast_import(lab.bare, [{path: (b"100644", data) for path, data in files.items()}], branch)
    return commit


def rewritten(lab: DiskLab) -> None:
    """Upstream drops the last commit, which had the secret, and goes on elsewhere."""
    push(lab, "main", {b"b": b"2\n"}, git("rev-parse", "main~1", cwd=lab.bare))


def branch_deleted(lab: DiskLab) -> None:
    """Upstream deletes a branch that had the secret."""
    git("update-ref", "-d", "refs/heads/side", cwd=lab.bare)


def tag_deleted(lab: DiskLab) -> None:
    """Upstream deletes an annotated tag with the secret in its message."""
    git("update-ref", "-d", "refs/tags/secret", cwd=lab.bare)


@pytest.mark.parametrize("history", ["full", "tip"])
@pytest.mark.parametrize("dropped", [rewritten, branch_deleted, tag_deleted])
def test_what_upstream_dropped_is_in_no_later_drive(
    lab: DiskLab, tmp_path: Path, history: str, dropped: Callable[[DiskLab], None]
) -> None:
    """A new generation is begun; the drives of the old one stay as they were for who has them."""
    if history == "tip" and dropped is tag_deleted:
        pytest.skip("a workspace without history has no tags")
    lab.history = history
    push(lab, "main", {b"a": b"1\n"})
    if dropped is rewritten:
        push(lab, "main", {b"secret": SECRET})
    elif dropped is branch_deleted:
        push(lab, "side", {b"secret": SECRET}, git("rev-parse", "main", cwd=lab.bare))
        old = lab.build("side")
    else:
        git("tag", "-m", SECRET.decode(), "secret", "main", cwd=lab.bare)
    old = lab.build("side" if dropped is branch_deleted else "main")
    assert dropped is tag_deleted or has_secret(lab, old)
    before = lab.data(old), lab.place.tree(old).read_bytes()
    dropped(lab)
    image = lab.build()
    assert old.generation < image.generation
    assert not has_secret(lab, image)
    assert (lab.data(old), lab.place.tree(old).read_bytes()) == before
    workspace = check(lab, image, tmp_path / "out")
    code, found, _ = git_bytes("cat-file", "--batch-all-objects", "--batch", cwd=workspace)
    assert code == 0 and SECRET not in found


@pytest.mark.parametrize("history", ["full", "tip"])
def test_a_disk_of_an_older_commit_does_not_hide_what_was_dropped_later(
    lab: DiskLab, tmp_path: Path, history: str
) -> None:
    """The blob file still has the newer tip, although the last image was of an older one."""
    lab.history = history
    older = push(lab, "main", {b"a": b"1\n"})
    push(lab, "main", {b"secret": SECRET})
    first = lab.build()
    assert has_secret(lab, first)
    check(lab, lab.build("main", older), tmp_path / "older")
    rewritten(lab)
    image = lab.build()
    assert image.generation > first.generation and not has_secret(lab, image)


@pytest.mark.parametrize("history", ["full", "tip"])
def test_a_branch_that_left_a_commit_to_another_ref_does_not_hide_that_it_was_dropped(
    lab: DiskLab, tmp_path: Path, history: str
) -> None:
    """First the branch moves off it, then the ref that still had it goes."""
    lab.history = history
    base = push(lab, "main", {b"a": b"1\n"})
    push(lab, "main", {b"secret": SECRET})
    first = lab.build()
    assert has_secret(lab, first)
    git("branch", "old", "main", cwd=lab.bare)
    push(lab, "main", {b"b": b"2\n"}, base)
    assert lab.build().generation == first.generation, "everything is still upstream's"
    git("update-ref", "-d", "refs/heads/old", cwd=lab.bare)
    image = lab.build()
    assert image.generation > first.generation and not has_secret(lab, image)
    check(lab, image, tmp_path / "out")


def test_a_tag_that_moved_does_not_hide_that_its_object_was_dropped(lab: DiskLab) -> None:
    """Another tag kept it for a while."""
    push(lab, "main", {b"a": b"1\n"})
    git("tag", "-m", SECRET.decode(), "moving", "main", cwd=lab.bare)
    git("update-ref", "refs/tags/other", "refs/tags/moving", cwd=lab.bare)
    first = lab.build().generation
    git("tag", "-f", "-m", "harmless", "moving", "main", cwd=lab.bare)
    assert lab.build().generation == first
    git("update-ref", "-d", "refs/tags/other", cwd=lab.bare)
    assert lab.build().generation > first


def test_what_a_killed_build_appended_is_cut_off_before_anybody_gets_the_drive(lab: DiskLab) -> None:
    """Upstream may have dropped it meanwhile, and the image of before is found without building anything."""
    push(lab, "main", {b"a": b"1\n"})
    image = lab.build()
    with (lab.place.generation(image.generation) / "data").open("ab") as data:
        data.write(SECRET)
    assert lab.build() == image
    assert not has_secret(lab, image)


def test_a_branch_that_goes_on_elsewhere_but_stays_reachable_drops_nothing(lab: DiskLab) -> None:
    """A merge, or a branch renamed: everything that is in the blob file is still upstream's."""
    push(lab, "main", {b"a": b"1\n"})
    push(lab, "side", {b"b": b"2\n"}, git("rev-parse", "main", cwd=lab.bare))
    first = lab.build("side")
    git("update-ref", "refs/heads/main", "refs/heads/side", cwd=lab.bare)
    git("update-ref", "-d", "refs/heads/side", cwd=lab.bare)
    assert lab.build().generation == first.generation


@pytest.mark.parametrize("change", [{"visibility": "private"}, {"url": "https://example.org/x/y"}, {"history": "tip"}])
def test_another_audience_or_shape_has_a_blob_file_of_its_own(lab: DiskLab, change: dict[str, str]) -> None:
    """What was private is never in a drive that is open, nor the other way round."""
    push(lab, "main", {b"a": b"1\n"})
    first = lab.build()
    for key, value in change.items():
        setattr(lab, key, value)
    second = lab.build()
    assert first.generation < second.generation
    assert lab.place.data(first) != lab.place.data(second)


def test_two_branches_share_the_blob_file(lab: DiskLab, tmp_path: Path) -> None:
    """Contents are there once, and each branch has its own packs' objects."""
    large = random.Random(1).randbytes(300_000)
    push(lab, "main", {b"large": large})
    first = lab.build()
    push(lab, "side", {b"b": b"2\n"}, git("rev-parse", "main", cwd=lab.bare))
    second = lab.build("side")
    assert second.generation == first.generation and second.data_size - first.data_size < 60_000
    check(lab, second, tmp_path / "side")
    check(lab, lab.build(), tmp_path / "main")


def test_a_blob_file_of_mostly_old_contents_is_left_behind(
    lab: DiskLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once over half of it is of no image that is kept. The old one serves its images as long as they are there."""
    monkeypatch.setattr("appliance.core.workspace.disk.worker.SLACK", 10)
    images = []
    for number in range(6):
        # Large in a checkout, and next to nothing in a pack.
        push(lab, "main", {b"large": b"%d" % number * 200_000})
        images.append(lab.build())
    assert len({image.generation for image in images}) == 1, "all images are kept, so all contents are of use"
    for image in images[:-1]:
        lab.place.remove(image)
    push(lab, "main", {b"a": b"1\n"})
    last = lab.build()
    assert last.generation > images[-1].generation
    assert last.data_size < images[-1].data_size / 3
    check(lab, last, tmp_path / "out")


@pytest.mark.slow
def test_packs_of_tips_are_replaced_by_one_of_what_the_tips_have(lab: DiskLab, tmp_path: Path) -> None:
    """Without history, objects that no tip has are of no use. Each branch keeps its own."""
    lab.history = "tip"
    push(lab, "main", {b"a": b"1\n", b"large": random.Random(6).randbytes(50_000)})
    push(lab, "side", {b"b": b"2\n"}, git("rev-parse", "main", cwd=lab.bare))
    first = lab.build("side")
    for number in range(22):
        push(lab, "main", {b"large": random.Random(number).randbytes(50_000)})
        last = lab.build()
    packs = [one for path, one in lab.read(last).items() if path.endswith(b".pack")]
    assert last.generation == first.generation and len(packs) < 20
    assert sum(len(one.content) for one in packs) < 450_000
    check(lab, last, tmp_path / "main")
    check(lab, lab.build("side"), tmp_path / "side")
    older = git("rev-parse", "main~15", cwd=lab.bare)
    for number in range(20):
        push(lab, "main", {b"large": random.Random(number).randbytes(5_000)})
        lab.build()
        image = lab.build("main", older)
        if number % 4 == 3:
            check(lab, image, tmp_path / f"older{number}")


@pytest.mark.parametrize("damage", ["short", "gone", "catalogue", "null", "end"])
def test_a_damaged_generation_is_left_behind(lab: DiskLab, tmp_path: Path, damage: str) -> None:
    """The next image is built anew from the mirror."""
    push(lab, "main", {b"a": b"1\n"})
    first = lab.build()
    data, catalogue = lab.newest / "data", lab.newest / "catalogue.db"
    before = data.read_bytes()
    if damage == "short":
        os.truncate(data, data.stat().st_size - 4096)
    elif damage == "gone":
        data.unlink()
    elif damage == "end":
        # Guests may have the drive: it must not be cut there.
        with sqlite3.connect(catalogue) as connection:
            connection.execute("UPDATE facts SET value = '1' WHERE key = 'end'")
        connection.close()
    elif damage == "null":
        with sqlite3.connect(catalogue) as connection:
            connection.execute("UPDATE facts SET value = 'x' WHERE key = 'end'")
        connection.close()
    else:
        catalogue.write_bytes(b"x" * 5000)
    push(lab, "main", {b"b": b"2\n"})
    image = lab.build()
    assert image.generation > first.generation
    assert damage in ("short", "gone") or data.read_bytes() == before
    check(lab, image, tmp_path / "out")


def start_worker(lab: DiskLab, wanted: DiskOrder | None = None, before: str = "") -> subprocess.Popen[bytes]:
    """Build the tip of main, or what is wanted, in a process, as `serve` does; `before` are statements of Python."""
    order = asdict(wanted or lab.order()) | {"place": str(lab.directory), "mirror": str(lab.bare)}
    package = str(Path(appliance.__file__).parents[1])
    worker = subprocess.Popen(
        [*WORKER[:-1], before + WORKER[-1]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": package},
        start_new_session=True,
    )  # fmt: skip
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(order).encode())
    worker.stdin.close()
    return worker


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_kill_at_any_moment_leaves_the_last_good_image(lab: DiskLab, tmp_path: Path, first: bool) -> None:
    """And the next build succeeds. The moments go from the start to past the end of a build."""
    rng = random.Random(3)
    push(lab, "main", {b"f%d" % number: rng.randbytes(rng.randrange(5_000)) for number in range(600)})
    kept = None if first else lab.build()
    before = (lab.place.tree(kept).read_bytes(), lab.data(kept)) if kept else None
    begun = time.monotonic()
    probe = lab.anew("probe")
    start_worker(probe).wait()
    whole = time.monotonic() - begun
    killed, rounds = 0, 24 * ROUNDS
    for number in range(rounds):
        if not first:
            push(lab, "main", {b"g%d" % number: rng.randbytes(30_000), b"f1": b"%d\n" % number})
        worker, begun = start_worker(lab), time.monotonic()
        try:
            worker.wait(whole * number / rounds * 1.2)
        except subprocess.TimeoutExpired:
            killed += 1
        else:
            # The machine was busier when that was measured.
            whole = time.monotonic() - begun
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        for image in lab.place.images():
            lab.read(image)
        if kept and before:
            assert lab.place.tree(kept).read_bytes() == before[0]
            assert lab.data(kept)[: len(before[1])] == before[1]
    assert killed > rounds / 3
    check(lab, lab.build(), tmp_path / "out")
    leftovers = [path.name for path in lab.directory.rglob("*") if path.name.endswith(".new")]
    assert leftovers == [] and not (lab.directory / "scratch").exists()


def test_a_first_build_that_fails_leaves_nothing(lab: DiskLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob file of a large repository is gigabytes."""
    push(lab, "main", {b"a": b"1\n"})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("appliance.core.workspace.disk.worker.write_tree_drive", full)
    with pytest.raises(OSError, match="No space left"):
        lab.build()
    assert list(lab.directory.iterdir()) == []


@pytest.mark.slow
def test_a_bomb_ends_its_own_build(lab: DiskLab) -> None:
    """A hundred kilobytes that name 10^9 paths, and a link whose target is 20 MB."""
    tree = git("mktree", cwd=lab.bare, input=f"100644 blob {git('hash-object', '-w', '--stdin', cwd=lab.bare)}\ta\n")
    for _ in range(9):
        tree = git("mktree", cwd=lab.bare, input="".join(f"040000 tree {tree}\t{name}\n" for name in "abcdefghij"))
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "x", tree, cwd=lab.bare), cwd=lab.bare)
    # Two million entries take ten seconds to count.
    assert mirror_reader.MOST_ENTRIES == 2_000_000
    fewer = "from appliance.core.workspace.disk import mirror_reader; mirror_reader.MOST_ENTRIES = 50_000; "
    worker = start_worker(lab, before=fewer)
    assert worker.stdout is not None
    assert "over 50,000 entries" in json.loads(worker.stdout.read())["error"]
    blob = git("hash-object", "-w", "--stdin", cwd=lab.bare, input=bytes(20_000_000).decode())
    tree = git("mktree", cwd=lab.bare, input=f"120000 blob {blob}\tlink\n")
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "x", tree, cwd=lab.bare), cwd=lab.bare)
    with pytest.raises(GitmirrorError, match="target"):
        lab.build()


def test_a_single_drive_is_made_from_the_same_blob_file(lab: DiskLab, tmp_path: Path) -> None:
    """It has what the image needs of it and no more."""
    push(lab, "main", {b"a": random.Random(4).randbytes(100_000)})
    two = lab.build()
    lab.form = DiskForm.SINGLE
    one = lab.build()
    assert (one.generation, one.data_size, lab.place.data(one)) == (two.generation, 0, None)
    assert lab.place.tree(one).stat().st_size == one.size <= two.size + two.data_size
    check(lab, one, tmp_path / "out")


def test_a_build_that_fails_leaves_the_blob_file_as_it_was(lab: DiskLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, what it wrote would otherwise stay until the next build."""
    push(lab, "main", {b"a": b"1\n"})
    image = lab.build()
    before = lab.data(image)
    push(lab, "main", {b"b": random.Random(7).randbytes(100_000)})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("appliance.core.workspace.disk.member.store_pack", full)
        with pytest.raises(OSError, match="No space left"):
            lab.build()
    assert lab.data(image) == before
    assert lab.data(lab.build()).startswith(before)


def test_the_worker_says_what_is_wrong(lab: DiskLab) -> None:
    """As JSON, for `serve` to pass on, and it leaves nothing behind."""
    push(lab, "main", {b"a": b"1\n"})
    worker = start_worker(lab, lab.order("main", "1" * 40))
    assert worker.stdout is not None
    assert "failed" in json.loads(worker.stdout.read())["error"]
    assert worker.wait() == 1
    assert list(lab.directory.iterdir()) == []
