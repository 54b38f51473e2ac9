"""Packs that must not be kept: too large, broken, incomplete, hostile. Refused, logged, and nothing of them is left."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import (
    SETTLED,
    Node,
    assert_mirror_is_clean,
    entry_of,
    make_turn,
    wait_settled,
)
from tests.support.gitutil import clean_env, commit_files, git, git_result, refs, run_process
from tests.support.pkt import EMPTY_PACK, ZERO, PushAnswer, PushConnection, push_bytes, raw_push
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that takes packs of 256 KiB."""
    base = tmp_path_factory.mktemp("packs")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        repos = [upstream.url(WIDGETS)]
        with Serve(base / "state", repos=repos, refresh=SETTLED, recording={"max_push": "256KiB"}).start() as serve:
            serve.wait_for_repo(WIDGETS)
            yield Node(serve, upstream)


def assert_failed(node: Node, ref: str, *reasons: str) -> None:
    """The attempt was accepted, it failed for one of these reasons, and it left nothing behind."""
    wait_settled(node.serve)
    entry = entry_of(node.serve, ref)
    assert (entry["verdict"], entry["outcome"]) == ("accepted", "failed")
    assert any(reason in entry["reason"] for reason in reasons), entry["reason"]
    assert ref not in refs(node.mirror)
    assert f"refs/gitmirror/turns/{entry['id']}" not in refs(node.mirror)
    assert_mirror_is_clean(node.mirror)
    # It stays: serve would heal a recording that somebody deletes in the mirror, and not at once.
    assert raw_push(
        *node.serve.git_address, f"/{WIDGETS}", [(ZERO, node.tip, f"refs/agents/after-{entry['id']}")]
    ).accepted


def push(node: Node, commit: str, ref: str, pack: bytes) -> PushAnswer:
    """Push one new session by hand."""
    return raw_push(*node.serve.git_address, f"/{WIDGETS}", [(ZERO, commit, ref)], pack)


def test_a_pack_over_max_push_is_refused(node: Node, tmp_path: Path) -> None:
    """The guest reads that its pack is too large; the log has the attempt and why it failed."""
    guest = node.guest(tmp_path / "guest")
    commit_files(guest, {"noise": random.Random(1).randbytes(300_000)}, "noise")
    code, _, said = git_result("push", "origin", "HEAD:refs/agents/large", cwd=guest)
    assert code == 1
    assert "remote: fatal: pack exceeds maximum allowed size" in said
    assert "[remote rejected] HEAD -> refs/agents/large (unpacker error)" in said
    assert_failed(node, "refs/agents/large", "unpacker error")


@pytest.mark.slow
def test_an_endless_pack_is_cut_off(node: Node) -> None:
    """What comes past max_push is not kept on disk, however much it is."""
    turn = make_turn(node.mirror, "endless", size=20_000_000)
    answer = push(node, turn.commit, "refs/agents/endless", turn.pack)
    assert not answer.accepted
    assert_failed(node, "refs/agents/endless", "unpacker error")


@pytest.mark.parametrize("files", [1, 150])
@pytest.mark.parametrize("damage", ["a byte", "its end", "its checksum", "its count", "its head"])
def test_a_corrupt_pack_is_refused(node: Node, damage: str, files: int) -> None:
    """Small packs (unpacked) and large ones (indexed), damaged in every part."""
    turn = make_turn(node.mirror, f"corrupt {damage} {files}", size=1000, files=files)
    pack = bytearray(turn.pack)
    middle = len(pack) // 2
    if damage == "a byte":
        pack[middle] ^= 0xFF
    elif damage == "its end":
        del pack[middle:]
    elif damage == "its checksum":
        pack[-1] ^= 1
    elif damage == "its count":
        pack[11] += 1
    else:
        pack[:4] = b"KCAP"
    ref = f"refs/agents/corrupt-{damage.replace(' ', '-')}-{files}"
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(push_bytes([(ZERO, turn.commit, ref)], bytes(pack)))
        guest.half_close()
        assert not guest.read_report().accepted
    wait_settled(node.serve)
    entry = entry_of(node.serve, ref)
    assert entry["outcome"] in ("failed", None), entry
    assert ref not in refs(node.mirror)
    assert_mirror_is_clean(node.mirror)


def test_a_commit_that_the_pack_lacks_is_refused(node: Node) -> None:
    """A ref never points at what is not there."""
    turn = make_turn(node.mirror, "left at home")
    answer = push(node, turn.commit, "refs/agents/lacking", EMPTY_PACK)
    assert not answer.accepted
    assert_failed(node, "refs/agents/lacking", "missing necessary objects", "bad pack")


def test_a_history_with_a_hole_is_refused(node: Node, tmp_path: Path) -> None:
    """A commit whose tree does not come along, and is not here, is not connected."""
    env = scratch_env(node, tmp_path)
    blob = git("hash-object", "-w", "--stdin", env=env, input="hole")
    tree = git("mktree", env=env, input=f"100644 blob {blob}\thole.txt\n")
    commit = git("commit-tree", "-p", node.tip, "-m", "hole", tree, env=env)
    for number, objects in enumerate(((commit,), (commit, tree), (commit, blob))):
        ref = f"refs/agents/hole{number}"
        assert not push(node, commit, ref, pack_of(env, *objects)).accepted
        assert_failed(node, ref, "missing necessary objects", "unpacker error")


HOSTILE = {
    "a .git entry": ("100644", b".git"),
    "a .git directory": ("40000", b".git"),
    "a .GIT entry": ("100644", b".GIT"),
    "a .git for HFS": ("100644", ".g\u200cit".encode()),
    "a .git for NTFS": ("100644", b"git~1"),
    "dot dot": ("40000", b".."),
    "dot": ("40000", b"."),
    "a path with a slash": ("100644", b"a/b"),
    "a symlink for .gitmodules": ("120000", b".gitmodules"),
}


@pytest.mark.parametrize(("mode", "name"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_tree_that_would_attack_its_checkout_is_refused(node: Node, tmp_path: Path, mode: str, name: bytes) -> None:
    """fsck of the pack: nobody who replays a session is to be attacked by its files."""
    env = scratch_env(node, tmp_path)
    blob = git("hash-object", "-w", "--stdin", env=env, input="[core]\n\tfsmonitor = touch /tmp/owned\n")
    inner = git("mktree", env=env, input=f"100644 blob {blob}\tconfig\n")
    entry = bytes.fromhex(inner if mode == "40000" else blob)
    raw = mode.encode() + b" " + name + b"\0" + entry
    argv = ["git", "hash-object", "-t", "tree", "--literally", "-w", "--stdin"]
    tree = run_process(argv, env=env, input=raw).stdout.decode().strip()
    commit = git("commit-tree", "-p", node.tip, "-m", "hostile", tree, env=env)
    ref = f"refs/agents/hostile-{hashlib.sha1(name).hexdigest()[:8]}"
    answer = push(node, commit, ref, pack_of(env, blob, inner, tree, commit))
    assert not answer.accepted
    assert "fsck" in answer.messages or "error" in answer.messages
    assert_failed(node, ref, "unpacker error", "fsck")


def test_a_malformed_commit_is_refused(node: Node, tmp_path: Path) -> None:
    """fsck of commits too: no author, no session."""
    env = scratch_env(node, tmp_path)
    tree = git("rev-parse", "main^{tree}", cwd=node.mirror)
    argv = ["git", "hash-object", "-t", "commit", "--literally", "-w", "--stdin"]
    commit = run_process(argv, env=env, input=f"tree {tree}\n\nno author\n".encode()).stdout.decode().strip()
    assert not push(node, commit, "refs/agents/no-author", pack_of(env, commit)).accepted
    assert_failed(node, "refs/agents/no-author", "unpacker error")


def test_the_wrong_old_value_is_refused(node: Node) -> None:
    """A guest that believes the ref elsewhere is told so; the ref stays."""
    parent = git("rev-parse", "main~1", cwd=node.mirror)
    ref = "refs/agents/wrong-old"
    answer = raw_push(*node.serve.git_address, f"/{WIDGETS}", [(parent, node.tip, ref)])
    assert not answer.accepted
    # In the words of git up to 2.50, and since.
    assert_failed(node, ref, "failed to update ref", "reference does not exist")


def scratch_env(node: Node, path: Path) -> dict[str, str]:
    """For making objects beside the mirror that it does not have."""
    (path / "objects").mkdir()
    return clean_env(
        path,
        GIT_DIR=str(node.mirror),
        GIT_OBJECT_DIRECTORY=str(path / "objects"),
        GIT_ALTERNATE_OBJECT_DIRECTORIES=str(node.mirror / "objects"),
    )


def pack_of(env: dict[str, str], *objects: str) -> bytes:
    """A pack of exactly these objects."""
    argv = ["git", "pack-objects", "--stdout", "--quiet"]
    done = run_process(argv, env=env, input="".join(f"{each}\n" for each in objects).encode())
    assert done.returncode == 0, done.stderr
    return done.stdout
