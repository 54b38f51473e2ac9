"""Bundles of other nodes are unpacked as strictly as a push; one that lies leaves nothing in the mirror."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from nats.js import JetStreamContext

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.downloads import NotInFleet, ObjectRefused
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import TurnRow
from appliance.core.fleet.unpacking import NeedsCommits, unpack, unpack_file
from tests.git.lab import Lab
from tests.support.gitutil import commit_files, fsck, git, git_bytes
from tests.support.nats import NatsCluster

Result = TypeVar("Result")
REF = "refs/agents/s"


class Bench:
    """A mirror with one commit, a clone of it, and rows for bundles of what was committed in the clone."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(directory / "st:ate")
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        upstream = directory / "upstream"
        git("init", "-q", "-b", "main", str(upstream))
        self.first = commit_files(upstream, {"a.txt": "a\n" * 400}, "first")
        self.mirror = self.lab.mirror()
        self.lab.run(self.mirror.initialise(str(upstream)))
        git("fetch", "-q", "origin", cwd=self.mirror.path)
        self.clone = directory / "clone"
        git("clone", "-q", str(self.mirror.path), str(self.clone))
        self.before = self.state()

    def state(self) -> tuple[str, list[str]]:
        """The refs and the files below `objects` of the mirror."""
        files = sorted(str(path) for path in (self.mirror.path / "objects").rglob("*"))
        return git("for-each-ref", cwd=self.mirror.path), files

    def bundle(self, *refs: str, needs: str = "^origin/main") -> bytes:
        """A bundle that git made in the clone."""
        path = self.scratch / "made.bundle"
        git("bundle", "create", "-q", str(path), *(refs or (REF,)), *needs.split(), cwd=self.clone)
        data = path.read_bytes()
        path.unlink()
        return data

    def turn(self, files: dict[str, str | bytes] | None = None) -> str:
        """Commits in the clone, and points the session's ref there."""
        commit = commit_files(self.clone, files or {"a.txt": "a\n" * 399 + "b\n"}, "turn")
        git("update-ref", REF, commit, cwd=self.clone)
        return commit

    def row(self, commit: str, data: bytes, needs: tuple[str, ...] = ()) -> TurnRow:
        """The row that announces a bundle."""
        uid = hashlib.sha256(commit.encode()).hexdigest()
        return TurnRow(
            uid=uid, node="a", id=1, repo="acme/widgets", session="s", commit=commit, old=None, base=None,
            at="2026-01-01T00:00:00Z", subject="turn", commits=1, files_changed=1, insertions=1, deletions=0,
            client="10.0.0.1", guest=None, bytes=len(data), bundle=uid, bundle_size=len(data),
            bundle_sha256=hashlib.sha256(data).hexdigest(), needs=needs,
        )  # fmt: skip

    def unpack(self, commit: str, data: bytes) -> None:
        """Unpacks a bundle that is in a file."""
        path = self.scratch / "b"
        path.write_bytes(data)
        self.lab.run(unpack_file(self.mirror, self.row(commit, data), path))

    def refuses(self, commit: str, data: bytes, words: str) -> None:
        """Asserts that a bundle is refused, and that nothing of it stays."""
        with pytest.raises(ObjectRefused, match=words):
            self.unpack(commit, data)
        assert self.state() == self.before


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A mirror and a clone."""
    made = Bench(tmp_path)
    with contextlib.closing(made.lab):
        yield made


def head_of(data: bytes) -> tuple[bytes, bytes]:
    """The lines and the pack of a bundle."""
    head, _, pack = data.partition(b"\n\n")
    return head, pack


def pack_of(*objects: tuple[int, bytes]) -> bytes:
    """A pack with objects of these types (1 commit, 2 tree, 3 blob) and contents."""
    out = b"PACK" + struct.pack(">II", 2, len(objects))
    for kind, content in objects:
        size = len(content)
        byte, size = (kind << 4) | (size & 15), size >> 4
        while size:
            out += bytes([byte | 0x80])
            byte, size = size & 0x7F, size >> 7
        out += bytes([byte]) + zlib.compress(content)
    return out + hashlib.sha1(out, usedforsecurity=False).digest()


def oid_of(kind: str, content: bytes) -> str:
    """The id of an object."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def commit_text(tree: str, parent: str | None, author: str = "A <a@example.com> 1 +0000") -> bytes:
    """A commit object's content."""
    above = f"parent {parent}\n" if parent else ""
    return f"tree {tree}\n{above}author {author}\ncommitter A <a@example.com> 1 +0000\n\nm\n".encode()


def bundle_of(commit: str, pack: bytes, *needs: str) -> bytes:
    """A bundle of a pack that was made by hand."""
    lines = "".join(f"-{each} \n" for each in needs)
    return f"# v2 git bundle\n{lines}{commit} {REF}\n\n".encode() + pack


def test_a_thin_bundle_is_unpacked_and_moves_no_ref(bench: Bench) -> None:
    commit, refs = bench.turn(), bench.state()[0]
    bench.unpack(commit, bench.bundle())
    assert git("log", "-1", "--format=%s", commit, cwd=bench.mirror.path) == "turn"
    assert bench.state()[0] == refs
    assert not list((bench.mirror.path / "objects").glob("incoming-*"))
    fsck(bench.mirror.path)


def test_a_bundle_with_other_commits_or_refs_is_refused(bench: Bench) -> None:
    commit = bench.turn()
    data = bench.bundle()
    head, pack = head_of(data)
    bench.refuses("1" * 40, data, "other refs")
    bench.refuses(commit, head + b"\n" + b"2" * 40 + b" refs/heads/main\n\n" + pack, "other refs")
    bench.refuses(commit, b"# v2 git bundle\n-" + bench.first.encode() + b" \n\n" + pack, "other refs")
    bench.refuses(commit, data.replace(b"v2 git", b"v9 git"), "does not begin as one")
    bench.refuses(commit, head + b"\n\nPACX" + pack[4:], "no pack")


def test_a_pack_without_the_commit_or_without_its_tree_is_refused(bench: Bench) -> None:
    blob = b"a blob alone\n"
    bench.refuses("1" * 40, bundle_of("1" * 40, pack_of((3, blob))), "refused")
    text = commit_text("3" * 40, bench.first)
    bench.refuses(oid_of("commit", text), bundle_of(oid_of("commit", text), pack_of((1, text)), bench.first), "refused")
    assert bench.state() == bench.before


def test_a_damaged_pack_and_one_that_is_cut_off_are_refused(bench: Bench) -> None:
    commit = bench.turn()
    data = bench.bundle()
    bench.refuses(commit, data[:-30], "refused")
    bench.refuses(commit, data[:-10] + bytes(10), "refused")


def test_what_fsck_refuses_in_a_push_is_refused(bench: Bench) -> None:
    tree = git("rev-parse", f"{bench.first}^{{tree}}", cwd=bench.clone)
    text = commit_text(tree, bench.first, author="nobody at all")
    oid = oid_of("commit", text)
    bench.refuses(oid, bundle_of(oid, pack_of((1, text)), bench.first), "fsck error|missingEmail|missingSpace")
    blob = git("rev-parse", f"{bench.first}:a.txt", cwd=bench.clone)
    evil = b"100644 .git\0" + bytes.fromhex(blob)
    text = commit_text(oid_of("tree", evil), bench.first)
    oid = oid_of("commit", text)
    bench.refuses(oid, bundle_of(oid, pack_of((2, evil), (1, text)), bench.first), "hasDotgit")


def test_a_tree_bomb_is_refused(bench: Bench) -> None:
    blob = b"x"
    trees = [b"".join(b"100644 %d\0" % n + bytes.fromhex(oid_of("blob", blob)) for n in range(10))]
    for _ in range(6):
        below = bytes.fromhex(oid_of("tree", trees[-1]))
        trees.append(b"".join(b"40000 %d\0" % n + below for n in range(10)))
    text = commit_text(oid_of("tree", trees[-1]), bench.first)
    oid = oid_of("commit", text)
    pack = pack_of((3, blob), *((2, tree) for tree in trees), (1, text))
    bench.refuses(oid, bundle_of(oid, pack, bench.first), "name more than")


def test_a_pack_that_unpacks_to_too_much_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.core.recording.policy.MOST_UNPACKED", 100_000)
    commit = bench.turn({"zeros": bytes(2_000_000)})
    data = bench.bundle()
    assert len(data) < 10_000
    bench.refuses(commit, data, "unpacked")
    head, pack = head_of(data)
    many = pack[:8] + struct.pack(">I", 2**31) + pack[12:]
    bench.refuses(commit, head + b"\n\n" + many, "2147483648 objects")


def test_commits_that_are_missing_are_named(bench: Bench) -> None:
    first = bench.turn()
    second = bench.turn({"b.txt": "b"})
    with pytest.raises(NeedsCommits) as raised:
        bench.unpack(second, bench.bundle(needs=f"^{first}"))
    assert raised.value.missing == (first,)
    assert bench.state() == bench.before


def in_fleet(
    bench: Bench, cluster: NatsCluster, work: Callable[[FleetLink, JetStreamContext], Awaitable[Result]]
) -> Result:
    """Does something with a link of a fleet of the test's own."""

    async def linked() -> Result:
        link = FleetLink(FleetConfig(servers=tuple(cluster.urls), name=bench.scratch.parent.name[:32], node="b"))
        running = asyncio.create_task(link.run())
        try:
            await asyncio.wait_for(link.wait_up(), 60)
            return await work(link, link.context)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return asyncio.run(linked())


def test_a_bundle_comes_from_the_store_checked_by_size_and_hash(bench: Bench, module_nats: NatsCluster) -> None:
    commit = bench.turn({"big.bin": b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(20_000))})
    data = bench.bundle()
    row = bench.row(commit, data, (bench.first,))

    async def work(link: FleetLink, js: JetStreamContext) -> None:
        async def refuses(words: str, wrong: TurnRow = row) -> None:
            with pytest.raises((ObjectRefused, NotInFleet), match=words):
                await unpack(link, bench.mirror, wrong, bench.scratch)
            assert bench.state() == bench.before
            assert not list(bench.scratch.iterdir())

        await refuses("does not have")
        store = await js.object_store(link.names.objects)
        await store.put(row.uid, data[:-1] + b"x")
        await refuses("SHA-256")
        await store.put(row.uid, data + b"x")
        await refuses("bytes, not")
        await store.put(row.uid, data)
        await refuses("SHA-256", replace(row, bundle_sha256="0" * 64))
        with pytest.raises(NeedsCommits):
            await unpack(link, bench.mirror, replace(row, needs=("1" * 40,)), bench.scratch)
        with pytest.raises(NeedsCommits):
            await unpack(link, bench.mirror, replace(row, bundle=None, bundle_sha256=None), bench.scratch)
        await unpack(link, bench.mirror, row, bench.scratch)
        await store.delete(row.uid)
        # The mirror has it now, so nothing is asked of the store.
        await unpack(link, bench.mirror, row, bench.scratch)

    in_fleet(bench, module_nats, work)
    assert git_bytes("cat-file", "-e", f"{commit}:big.bin", cwd=bench.mirror.path)[0] == 0
    fsck(bench.mirror.path)
    assert not list(bench.scratch.iterdir())
