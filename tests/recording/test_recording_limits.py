"""Limits of what guests record: a clear refusal and a row each; and packs made to hurt."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.recording import policy
from tests.conftest import WIDGETS, ServeFactory
from tests.recording import stingy
from tests.recording.conftest import AGENTS, TURNS, Book, new_session, record, record_turn, session_of
from tests.serving.conftest import SETTLED, Node, assert_mirror_is_clean, commit_turn, entry_of, make_turn
from tests.support.gitutil import commit_files, git, git_result, refs
from tests.support.pkt import ZERO, PushAnswer, PushConnection, raw_push
from tests.support.processes import processes_of
from tests.support.upstream import HttpUpstream


def refused(node: Node, guest: Path, name: str, reason: str) -> None:
    """A push is refused with words on the guest's terminal and the same words in its row."""
    before = refs(node.mirror)
    code, _, stderr = git_result("push", "--force", "origin", f"HEAD:{AGENTS}{name}", cwd=guest)
    assert code == 1 and reason in stderr, stderr
    entry = entry_of(node.serve, f"{AGENTS}{name}")
    assert (entry["verdict"], entry["outcome"]) == ("rejected", None) and reason in entry["reason"]
    assert refs(node.mirror) == before


@pytest.mark.slow
def test_new_sessions_a_minute(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """Beyond the limit new names are refused; existing sessions still accept turns."""
    node = make_node(max_new_sessions=2)
    guest = node.guest(tmp_path / "guest")
    for name in ("a", "b"):
        record_turn(guest, name, name)
    refused(node, guest, "c", "2 new sessions a minute are allowed; try again in a minute")
    record_turn(guest, "a", "a again")


@pytest.mark.slow
def test_turns_of_one_session(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A full session reports it and keeps its turns; another session can start."""
    node = make_node(max_turns=2)
    guest = node.guest(tmp_path / "guest")
    for number in range(2):
        record_turn(guest, "full", f"turn {number}")
    commit_turn(guest, "one more")
    refused(node, guest, "full", "the session full has 2 turns, no more are allowed; begin another session")
    record(guest, "next")


@pytest.mark.slow
def test_bytes_of_all_recordings_and_room_again_after_a_drop(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """Full is full, also over a restart; ending a session makes room at once."""
    node = make_node(max_bytes="64KiB")
    guest = node.guest(tmp_path / "guest")
    commit_files(guest, {"noise.bin": random.Random(1).randbytes(70_000)}, "large")
    record(guest, "large")
    commit_turn(guest, "small")
    refused(node, guest, "other", "no more is accepted until some are ended")
    node.serve.keep_ports()
    node.serve.restart()
    refused(node, guest, "other", "no more is accepted until some are ended")
    node.serve.cli("session", "drop", WIDGETS, "large", "--yes")
    git("reset", "--quiet", "--hard", "HEAD~2", cwd=guest)
    record_turn(guest, "other", "small")


@pytest.mark.slow
def test_objects_of_one_push(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """The number that the pack's head says is enough to refuse it: not a byte of it reaches git."""
    node = make_node(max_objects=10)
    guest = node.guest(tmp_path / "guest")
    commit_files(guest, {f"{number}.txt": str(number) for number in range(10)}, "many")
    refused(node, guest, "many", "12 objects in one push, at most 10 are allowed")


@pytest.mark.slow
def test_the_size_of_one_push(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A pack larger than max_push is cut off; the guest and the row both say why."""
    node = make_node(max_push="256KiB")
    guest = node.guest(tmp_path / "guest")
    commit_files(guest, {"noise.bin": random.Random(1).randbytes(3_000_000)}, "large")
    code, _, stderr = git_result("push", "origin", f"HEAD:{AGENTS}large", cwd=guest)
    assert code != 0 and "maximum allowed size" in stderr, stderr
    entry = entry_of(node.serve, f"{AGENTS}large")
    assert entry["outcome"] == "failed" and "larger than recording.max_push, 256 KiB" in entry["reason"]
    assert_nothing_came(node)


def assert_nothing_came(node: Node) -> None:
    """No quarantine, no turn of a failed push, every object whole."""
    assert_mirror_is_clean(node.mirror)
    kept = {int(ref.removeprefix(TURNS)) for ref in refs(node.mirror) if ref.startswith(TURNS)}
    with Book(node.serve) as book:
        assert kept == {entry["id"] for entry in book.stores.audit.entries() if entry["outcome"] == "applied"}


def test_each_process_of_a_push_has_bounded_memory_and_time(node: Node) -> None:
    """What a guest's pack may cost is set before its first byte is read, and inherited by all that git starts."""
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}"):
        limits = []
        for pid in processes_of(node.mirror):
            # Other processes on the mirror may end meanwhile; the push's waits for the guest.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"receive-pack" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    continue
                text = Path(f"/proc/{pid}/limits").read_text().splitlines()
                limits.append({line[:26].strip(): line[26:].split()[0] for line in text})
    assert limits
    for each in limits:
        assert (each["Max data size"], each["Max cpu time"]) == (str(2 * 2**30), "600")


# Packs by hand

COMMIT, TREE, BLOB, REF_DELTA = 1, 2, 3, 7


def pack_of(*objects: tuple[int, bytes, bytes]) -> bytes:
    """A pack of (type, what stands between head and content, content)."""
    data = struct.pack(">4sLL", b"PACK", 2, len(objects))
    for kind, between, content in objects:
        size = len(content)
        head = bytearray([(kind << 4) | (size & 15)])
        size >>= 4
        while size:
            head[-1] |= 0x80
            head.append(size & 0x7F)
            size >>= 7
        data += bytes(head) + between + zlib.compress(content, 1)
    return data + hashlib.sha1(data).digest()


def oid(kind: bytes, content: bytes) -> bytes:
    """The object id, as bytes."""
    return hashlib.sha1(b"%s %d\0%s" % (kind, len(content), content)).digest()


def commit_of(tree: bytes, parent: str) -> bytes:
    """A commit's content."""
    who = b"A Tester <tester@example.com> 1700000000 +0000"
    return b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\nbomb\n" % (tree.hex().encode(), parent.encode(), who, who)


def varint(number: int) -> bytes:
    """A size in a delta's head."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def push_tree(node: Node, name: str, trees: list[bytes], *others: tuple[int, bytes, bytes]) -> PushAnswer:
    """Push a commit of the last of `trees`, all of them and `others` in one pack."""
    commit = commit_of(oid(b"tree", trees[-1]), node.tip)
    pack = pack_of((COMMIT, b"", commit), *((TREE, b"", tree) for tree in trees), *others)
    command = (ZERO, oid(b"commit", commit).hex(), f"{AGENTS}{name}")
    return raw_push(*node.serve.git_address, f"/{WIDGETS}", [command], pack)


def assert_refused(node: Node, name: str, answer: PushAnswer, *words: str) -> None:
    """The guest read why, the row says that it failed, the mirror is as before."""
    assert not answer.accepted and answer.report[f"{AGENTS}{name}"] != "ok"
    assert any(word in answer.messages + answer.unpack for word in words), answer
    entry = entry_of(node.serve, f"{AGENTS}{name}")
    assert entry["outcome"] == "failed" and entry["reason"]
    assert session_of(node, name) is None
    assert_nothing_came(node)


BLOB_CONTENT = b"x"


@pytest.mark.parametrize("path", [".git", "..", ".", "a/b", ""])
def test_a_path_that_must_not_be_is_refused(node: Node, path: str) -> None:
    """fsck of what comes in: no checkout of a turn ever writes where it must not."""
    name = new_session()
    inner = b"100644 x\0" + oid(b"blob", BLOB_CONTENT)
    outer = b"40000 %s\0" % path.encode() + oid(b"tree", inner)
    answer = push_tree(node, name, [inner, outer], (BLOB, b"", BLOB_CONTENT))
    assert_refused(node, name, answer, "fsck error", "unpack-objects", "index-pack")


def test_a_tree_of_too_many_files(node: Node) -> None:
    """100,000 names for one blob are 4 MB of tree and would be 100,000 files in a checkout."""
    name, blob = new_session(), oid(b"blob", BLOB_CONTENT)
    wide = b"".join(b"100644 f%06d\0" % number + blob for number in range(100_000))
    answer = push_tree(node, name, [wide], (BLOB, b"", BLOB_CONTENT))
    assert_refused(node, name, answer, "name more than 99999 files")


def test_a_bomb_of_nested_trees(node: Node) -> None:
    """Ten trees that each name the one below ten times are ten thousand million files."""
    name, below = new_session(), oid(b"blob", BLOB_CONTENT)
    trees = []
    for mode in [b"100644", *[b"40000"] * 9]:
        trees.append(b"".join(b"%s d%d\0" % (mode, number) + below for number in range(10)))
        below = oid(b"tree", trees[-1])
    answer = push_tree(node, name, trees, (BLOB, b"", BLOB_CONTENT))
    assert_refused(node, name, answer, "name more than 99999 files")


@pytest.mark.parametrize("size", [3 * 2**30, 2**50])
def test_a_delta_that_asks_for_more_memory_than_there_is(node: Node, size: int) -> None:
    """A few bytes claim to unpack to gigabytes: only the process that unpacks them ends."""
    name = new_session()
    base = BLOB_CONTENT * 65536
    copy = bytes([0x80 | 0x40, 0xFF])
    delta = varint(len(base)) + varint(size) + copy * 100
    tree = b"100644 x\0" + oid(b"blob", base)
    answer = push_tree(node, name, [tree], (BLOB, b"", base), (REF_DELTA, oid(b"blob", base), delta))
    assert_refused(node, name, answer, "unpack-objects", "index-pack", "abnormal exit")


@pytest.mark.slow
def test_a_pack_of_kilobytes_that_unpacks_to_gigabytes(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Zeros in nine blobs, none of which is too much alone: unpacked all are, and the guest is told how much.

    What the hook does with the size is the same for every limit, and git takes a minute for the gigabytes of the true
    one: this node's is 16 MiB. The same blobs without the last are taken.
    """
    assert policy.MOST_UNPACKED == 4 * 2**30
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED)
    serve.command = [sys.executable, "-m", stingy.__name__]
    node = Node(serve.start(), upstream)
    serve.wait_for_repo(WIDGETS)
    zeros = bytes(stingy.MOST_UNPACKED // 9)
    blobs = [zeros + b"%d" % number for number in range(9)]

    def push_blobs(name: str, blobs: list[bytes]) -> tuple[int, PushAnswer]:
        tree = b"".join(b"100644 f%d\0" % number + oid(b"blob", blob) for number, blob in enumerate(blobs))
        size = sum(map(len, (*blobs, tree, commit_of(oid(b"tree", tree), node.tip))))
        return size, push_tree(node, name, [tree], *((BLOB, b"", blob) for blob in blobs))

    name, taken = new_session(), new_session()
    size, answer = push_blobs(name, blobs)
    words = f"its objects are {size} bytes unpacked, at most {stingy.MOST_UNPACKED} are allowed"
    assert_refused(node, name, answer, words)
    size, answer = push_blobs(taken, blobs[:8])
    assert size < stingy.MOST_UNPACKED and answer.accepted, answer


@pytest.mark.slow
def test_a_push_within_all_limits_is_taken(node: Node, tmp_path: Path) -> None:
    """A large, legitimate push succeeds, so the limits above refuse only what they should."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    files: dict[str, str | bytes | None] = {f"d{number % 50}/{number}.txt": str(number) for number in range(3000)}
    commit_files(guest, {**files, "noise.bin": random.Random(5).randbytes(5_000_000)}, "large")
    record(guest, name)
    row = session_of(node, name)
    assert row is not None and row["files_changed"] == 3001
    made = make_turn(node.mirror, "small")
    name = new_session()
    assert raw_push(
        *node.serve.git_address, f"/{WIDGETS}", [(ZERO, made.commit, f"{AGENTS}{name}")], made.pack
    ).accepted
