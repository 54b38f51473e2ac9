"""Leases of disks with submodules and LFS files: who may read what, and when they are built again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.models import Repo
from appliance.core.workspace.disk import disks as disks_module
from appliance.core.workspace.disk.build import build_disk
from tests.support.erofs_reader import Found, read_image
from tests.support.gitutil import git
from tests.workspace.disk.leasing import Bench, benches, paths, until
from tests.workspace.disk.whole_lab import LFS_ATTRIBUTES, commit, create, pointer, section

pytestmark = pytest.mark.slow

SECRET = b"the secret of the private submodule\n"
OPEN, PRIVATE = 2, 3


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose disks the real builder builds, with submodules and LFS files."""
    with benches(tmp_path) as bench:
        bench.build = build_disk
        bench.settings = WorkspaceConfig(submodules=True, lfs="content")
        bench.make()
        yield bench


def upstream(bench: Bench, name: str, files: dict[str, str | bytes], links: dict[str, str] | None = None) -> str:
    """Commits to the upstream of that name, which is created before the first commit."""
    bare = bench.top / f"{name}.git"
    if not bare.exists():
        create(bare)
    return commit(bare, files, links)


def registered(bench: Bench, name: str, repo_id: int) -> Repo:
    """Registers an upstream."""
    return bench.add(f"acme/{name}", repo_id=repo_id, upstream=bench.top / f"{name}.git")


async def prepare(bench: Bench, *, names: tuple[str, ...] = ("open", "hidden")) -> Repo:
    """A repository with an open submodule and a private one."""
    commits = {
        "open": upstream(bench, "open", {"file": "open\n"}),
        "hidden": upstream(bench, "hidden", {"secret": SECRET}),
    }
    modules = "".join(section(name, name, f"../{name}.git") for name in names)
    upstream(bench, "top", {".gitmodules": modules}, {name: commits[name] for name in names})
    bench.secrets = {PRIVATE}
    for name, repo_id in (("open", OPEN), ("hidden", PRIVATE)):
        await bench.sync(registered(bench, name, repo_id))
    repo = registered(bench, "top", 1)
    await bench.sync(repo)
    return repo


def read(document: dict[str, Any]) -> dict[bytes, Found]:
    """Everything in a leased disk."""
    tree, *data = paths(document)
    return read_image(tree, data[0] if data else None)


def raw(document: dict[str, Any]) -> bytes:
    """Every byte that a guest can read."""
    return b"".join(path.read_bytes() for path in paths(document))


def test_a_private_submodule_is_on_no_drive_of_somebody_who_may_not_read_it(whole: Bench) -> None:
    """Neither before nor after somebody got it who may; the raw drives do not have a byte of it."""

    async def test(bench: Bench) -> None:
        repo = await prepare(bench)
        bench.readers = {"vm-1": {PRIVATE}, "vm-2": {99}}
        before = await bench.lease(repo)
        assert [(each["path"], each["reason"]) for each in before["missing"]] == [
            ("hidden", "not readable for the guest of the lease")
        ]
        found = read(before)
        assert found[b"open/file"].content == b"open\n" and b"hidden/secret" not in found
        assert b".git/modules/hidden" not in found
        allowed = await bench.lease(repo, guest="vm-1")
        assert allowed["missing"] == [] and read(allowed)[b"hidden/secret"].content == SECRET
        other, after = await bench.lease(repo, guest="vm-2"), await bench.lease(repo)
        again = await bench.lease(repo, guest="vm-1")
        assert paths(again) == paths(allowed)
        for document in (before, other, after):
            assert SECRET not in raw(document) and paths(document)[1] != paths(allowed)[1]
        assert SECRET in raw(allowed)
        tip = git("rev-parse", "main", cwd=bench.top / "hidden.git")
        for document in (before, after):
            assert not any(
                tip.encode() in (one.content or b"") for name, one in read(document).items() if b"packed" in name
            )
        without = await bench.lease(repo, guest="vm-1", submodules=False)
        assert SECRET not in raw(without) and b"open/file" not in read(without) and without["submodules"] is False

    whole.run(test)


def test_a_submodule_that_becomes_private_leaves_the_next_drives(whole: Bench) -> None:
    """The data drive that has it goes to nobody any more."""

    async def test(bench: Bench) -> None:
        repo = await prepare(bench)
        bench.secrets = set()
        before = await bench.lease(repo)
        assert SECRET in raw(before)
        bench.secrets = {PRIVATE}
        after = await bench.lease(repo)
        assert SECRET not in raw(after) and [each["path"] for each in after["missing"]] == ["hidden"]
        bench.readers = {"vm-1": {PRIVATE}}
        allowed = await bench.lease(repo, guest="vm-1")
        assert SECRET in raw(allowed) and paths(allowed)[1] not in (paths(before)[1], paths(after)[1])
        await bench.disks.tidy()
        assert all(path.exists() for document in (before, after, allowed) for path in paths(document))
        for document in (before, after, allowed):
            await bench.disks.release(document["id"])
        await bench.disks.tidy()

    whole.run(test)


def test_a_submodule_that_is_mirrored_later_comes_without_a_request(whole: Bench) -> None:
    """The followed branch is built again when it is there, once, and the next lease finds it."""

    async def test(bench: Bench) -> None:
        upstream(bench, "late", {"file": "late\n"})
        oid = git("rev-parse", "main", cwd=bench.top / "late.git")
        upstream(bench, "top", {".gitmodules": section("late", "late", "../late.git")}, {"late": oid})
        repo = registered(bench, "top", 1)
        await bench.sync(repo)
        first = await bench.lease(repo)
        assert [each["reason"] for each in first["missing"]] == ["not mirrored here"]
        await bench.sync(repo)
        known = bench.disks._repository(repo.name)
        await until(lambda: known.lacking)
        assert len(bench.commits(repo)) == 1
        await bench.sync(registered(bench, "late", OPEN))
        await until(lambda: len(bench.commits(repo)) == 2)
        built = bench.place(repo).images()
        lease = await bench.lease(repo)
        assert lease["missing"] == [] and read(lease)[b"late/file"].content == b"late\n"
        for _ in range(3):
            await bench.sync(repo)
            await until(lambda: known._following is not None and known._following.done())
        assert bench.place(repo).images() == built

    whole.run(test)


def test_a_commit_that_the_submodules_upstream_dropped_is_on_no_new_drive(whole: Bench) -> None:
    """Neither that of the tip, nor an earlier one that an earlier tip had."""

    async def test(bench: Bench) -> None:
        bare = bench.top / "open.git"
        old = upstream(bench, "open", {"file": SECRET})
        upstream(bench, "top", {".gitmodules": section("open", "open", "../open.git")}, {"open": old})
        module = registered(bench, "open", OPEN)
        repo = registered(bench, "top", 1)
        await bench.sync(module)
        await bench.sync(repo)
        first = await bench.lease(repo)
        assert SECRET in raw(first)
        git("update-ref", "-d", "refs/heads/main", cwd=bare)
        new = upstream(bench, "open", {"file": "instead\n"})
        await bench.sync(module)
        second = await bench.lease(repo)
        assert [each["reason"] for each in second["missing"]] == ["no branch or tag of its mirror has the commit"]
        assert SECRET not in raw(second)
        upstream(bench, "top", {".gitmodules": section("open", "open", "../open.git")}, {"open": new})
        await bench.sync(repo)
        third = await bench.lease(repo)
        assert read(third)[b"open/file"].content == b"instead\n"
        assert SECRET not in raw(third) and third["missing"] == []

    whole.run(test)


def test_lfs_objects_that_come_too_late_are_in_the_next_image(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease waits only so long. It says which files are pointers, and is built again when the objects are here."""

    async def test(bench: Bench) -> None:
        content = b"large\n" * 100_000
        oid = hashlib.sha256(content).hexdigest()
        text = pointer(content)
        upstream(bench, "top", {".gitattributes": LFS_ATTRIBUTES, "a.bin": text, "gone.bin": pointer(b"gone")})
        repo = registered(bench, "top", 1)
        await bench.sync(repo)
        objects = bench.objects
        objects.upstream, objects.gate = {oid: content}, asyncio.Event()
        monkeypatch.setattr(disks_module, "LFS_WAIT", 0.2)
        first = await bench.lease(repo)
        assert sorted(each["path"] for each in first["missing"]) == ["a.bin", "gone.bin"]
        assert read(first)[b"a.bin"].content == text.encode()
        objects.gate.set()
        await until(lambda: len(bench.commits(repo)) == 2)
        known = bench.disks._repository(repo.name)
        await until(lambda: known._following is not None and known._following.done())
        second = await bench.lease(repo)
        assert [each["path"] for each in second["missing"]] == ["gone.bin"]
        assert read(second)[b"a.bin"].content == content
        assert paths(first)[1] == paths(second)[1], "one data drive"
        assert len(bench.commits(repo)) == 2 and len(objects.asked) <= 4
        assert raw(second).count(content) == 1

    whole.run(test)


def test_a_pointer_with_another_size_stays_a_pointer(whole: Bench) -> None:
    """Whoever writes to a repository may name any size; with the contents in place, git would see a change."""

    async def test(bench: Bench) -> None:
        content = b"large\n" * 1000
        lie = pointer(content).replace(f"size {len(content)}", "size 7")
        upstream(bench, "top", {".gitattributes": LFS_ATTRIBUTES, "a.bin": pointer(content), "lie.bin": lie})
        repo = registered(bench, "top", 1)
        await bench.sync(repo)
        bench.objects.upstream = {hashlib.sha256(content).hexdigest(): content}
        lease = await bench.lease(repo)
        assert [each["path"] for each in lease["missing"]] == ["lie.bin"]
        assert read(lease)[b"a.bin"].content == content
        assert read(lease)[b"lie.bin"].content == lie.encode()

    whole.run(test)


def test_leases_of_the_version_before_survive(whole: Bench) -> None:
    """Their drives stay until the leases end; new ones get a new generation."""

    async def test(bench: Bench) -> None:
        repo = await prepare(bench)
        old = await bench.lease(repo, submodules=False)
        [image] = bench.place(repo).images()
        description = bench.place(repo).description(image)
        document = json.loads(description.read_text())
        del document["line"]
        description.write_text(json.dumps(document | {"version": 2}))
        catalogue = sqlite3.connect(bench.place(repo).generation(image.generation) / "catalogue.db")
        catalogue.execute("UPDATE facts SET value = '2' WHERE key = 'version'")
        catalogue.execute("DELETE FROM facts WHERE key = 'line'")
        catalogue.execute("ALTER TABLE packs DROP COLUMN member")
        catalogue.commit()
        catalogue.close()
        content = raw(old)
        await bench.disks.stop()
        bench.make()
        bench.disks.refresh(repo)
        await bench.disks.tidy()
        new = await bench.lease(repo, submodules=False)
        await bench.disks.tidy()
        assert raw(old) == content and paths(new)[1] != paths(old)[1]
        assert [each["id"] for each in await bench.disks.documents()] == [new["id"], old["id"]]
        await bench.disks.release(old["id"])
        await bench.disks.tidy()
        assert not paths(old)[1].exists() and paths(new)[1].exists()

    whole.run(test)
