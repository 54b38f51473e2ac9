"""Pushes over HTTP: the guard, messages and log of git://, in every framing, whoever dies when."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import (
    SETTLED,
    Node,
    assert_log_is_true,
    assert_mirror_is_clean,
    entry_of,
    make_turn,
    wait_settled,
)
from tests.serving.fetch.conftest import metric
from tests.serving.fetch.wire import HttpGuest, Reply, ask, chunked, http_ask, post_headers, v2_request
from tests.support.gitutil import commit_files, fsck, git, git_result, refs, wait_until
from tests.support.pkt import EMPTY_PACK, FLUSH, ZERO, pkt, push_bytes
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

POST = f"/{WIDGETS}/git-receive-pack"
HEADERS = post_headers("git-receive-pack", version=0)


def url_of(serve: Serve) -> str:
    """Of the repository, for git."""
    return f"{serve.http_url}/{WIDGETS}"


@pytest.fixture
def guest(node: Node, tmp_path: Path) -> Path:
    """The workspace of a guest that cloned over HTTP, with a commit of its own."""
    work = node.serve.clone(tmp_path / "guest", WIDGETS, "--depth=1", "--filter=blob:none", http=True)
    commit_files(work, {"turn.txt": tmp_path.name}, "A turn")
    return work


def report_of(reply: Reply) -> tuple[str, dict[str, str], str]:
    """What a raw push was answered: `unpack`, each ref's `ok` or reason, and what the terminal shows."""
    assert reply.status == 200 and reply.complete, reply
    bands: dict[int, bytes] = {1: b"", 2: b""}
    at = 0
    while (size := int(reply.body[at : at + 4], 16)) > 4:
        band, data = reply.body[at + 4], reply.body[at + 5 : at + size]
        bands[band] = bands.get(band, b"") + data
        at += size
    lines, at = [], 0
    while (size := int(bands[1][at : at + 4] or b"0", 16)) > 4:
        lines.append(bands[1][at + 4 : at + size].decode().rstrip("\n"))
        at += size
    told = {}
    for line in lines[1:]:
        word, ref, *reason = line.split(" ", 2)
        told[ref] = word if word == "ok" else reason[0]
    return lines[0].removeprefix("unpack ") if lines else "", told, bands[2].decode()


def post(serve: Serve, body: bytes, **headers: str) -> Reply:
    """A raw push in one request."""
    return http_ask(serve.http_url + POST, "POST", HEADERS | {k.replace("_", "-"): v for k, v in headers.items()}, body)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_recorded_turn_is_there_at_once(node: Node, guest: Path, version: int) -> None:
    """Pushed, logged, seen by every guest; forced updates too, on a connection that is kept alive."""
    ref = f"refs/agents/http-{version}"
    options = ("-c", f"protocol.version={version}")
    for number in range(2):
        commit = commit_files(guest, {"turn.txt": f"{version} {number}"}, "A turn")
        git(*options, "push", "--quiet", "--force", "origin", f"HEAD:{ref}", cwd=guest)
        assert f"{commit} {ref}\n".encode() in ask(node.serve, WIDGETS, v2_request("ls-refs", [f"ref-prefix {ref}"]))
        entry = entry_of(node.serve, ref)
        assert (entry["verdict"], entry["outcome"], entry["new"]) == ("accepted", "applied", commit)
        assert (entry["session"], entry["client"]) == (f"http-{version}", "127.0.0.1")
        git("commit", "--quiet", "--amend", "-m", "Rewritten", cwd=guest)
    back = node.serve.clone(guest.parent / "back", WIDGETS, http=True)
    git("fetch", "--quiet", "origin", ref, cwd=back)
    assert git("rev-parse", "FETCH_HEAD", cwd=back) == commit


@pytest.mark.parametrize("size", [10, 2_000_000])
@pytest.mark.parametrize("buffer", [65536, 10_000_000], ids=["chunked", "in one"])
def test_pushes_of_every_size_and_framing(node: Node, guest: Path, size: int, buffer: int) -> None:
    """git probes and sends chunks when a push is larger than http.postBuffer, and else one body of known length."""
    ref = f"refs/agents/size-{size}-{buffer}"
    noise = random.Random(size + buffer).randbytes(size)
    commit = commit_files(guest, {"noise.bin": noise}, "A large turn")
    git("-c", f"http.postBuffer={buffer}", "push", "--quiet", "origin", f"HEAD:{ref}", cwd=guest)
    assert git("rev-parse", ref, cwd=node.mirror) == commit
    assert git("cat-file", "-s", f"{ref}:noise.bin", cwd=node.mirror) == str(size)


REFUSED = {
    "a branch": (("HEAD:refs/heads/main",), "branches and tags are the upstream's: push them there"),
    "a tag": (("HEAD:refs/tags/v99",), "branches and tags are the upstream's: push them there"),
    "another namespace": (("HEAD:refs/pull/1/head",), "only refs/agents/SESSION may be written"),
    "a deep session": (("HEAD:refs/agents/a/b",), "only refs/agents/SESSION may be written"),
    "a private ref": (("HEAD:refs/gitmirror/anchors/x",), "only refs/agents/SESSION may be written"),
    "a deletion": ((":refs/agents/kept",), "recorded sessions cannot be deleted"),
    "one bad of two": (("HEAD:refs/agents/fine", "HEAD:refs/heads/x"), "another ref of this push was refused"),
    "17 refs": (tuple(f"HEAD:refs/agents/s{number}" for number in range(17)), "at most 16 are allowed"),
}


@pytest.mark.parametrize(
    ("what", "size"), [*((what, 10) for what in REFUSED), ("a branch", 1_500_000), ("one bad of two", 1_500_000)]
)
def test_what_is_not_allowed_is_refused_in_words(node: Node, guest: Path, what: str, size: int) -> None:
    """The terminal names the ref and what is allowed, nothing moves, the log has it; small pushes and large ones."""
    specs, reason = REFUSED[what]
    git("push", "--quiet", "--force", "origin", "HEAD~0:refs/agents/kept", cwd=guest)
    commit_files(guest, {"noise.bin": random.Random(size).randbytes(size)}, "Noise")
    before = refs(node.mirror)
    code, _, said = git_result("push", "origin", *specs, cwd=guest)
    assert code == 1, said
    assert reason in said
    assert "remote: gitmirror: refused " in said and "allowed here: git push MIRROR HEAD:refs/agents/SESSION" in said
    assert ("pushInsteadOf" in said) == any(":refs/heads/" in spec or ":refs/tags/" in spec for spec in specs)
    assert refs(node.mirror) == before


def test_refusals_and_acceptances_are_counted_and_logged(node: Node, guest: Path) -> None:
    """By verdict in `/metrics`, one by one in the log, whose chain holds."""
    before = [metric(node.serve, "gitmirror_pushes_total", verdict=each) for each in ("accepted", "rejected")]
    git("push", "--quiet", "origin", "HEAD:refs/agents/counted", cwd=guest)
    assert git_result("push", "origin", "HEAD:refs/heads/counted", cwd=guest)[0] == 1
    after = [metric(node.serve, "gitmirror_pushes_total", verdict=each) for each in ("accepted", "rejected")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1]
    assert entry_of(node.serve, "refs/agents/counted")["outcome"] == "applied"
    assert node.serve.cli("audit", "verify").returncode == 0


def test_the_advertisement_of_a_push_is_gits(node: Node, guest: Path) -> None:
    """Branches as they are, so that what the mirror has is not sent again; nothing private but old tips."""
    git("push", "--quiet", "origin", "HEAD:refs/agents/shown", cwd=guest)
    body = http_ask(f"{url_of(node.serve)}/info/refs?service=git-receive-pack").body
    assert b" refs/heads/main" in body and b"refs/gitmirror/anchors" not in body and b"refs/gitmirror/turns" not in body
    assert b"report-status" in body
    # A deep clone that pushes one commit sends that alone.
    commit_files(guest, {"turn.txt": "one more"}, "One more")
    code, _, said = git_result("push", "--progress", "origin", "HEAD:refs/agents/shown", cwd=guest)
    assert code == 0 and "Total 3 " in said, said


# Raw bodies


def test_a_look_is_no_push(node: Node) -> None:
    """The probe that git sends before chunks, and a body of nothing, get an empty answer and no row."""
    rows = len(node.serve.cli_json("audit", "--limit", "100000"))
    assert post(node.serve, FLUSH).body == b""
    assert post(node.serve, b"").body == b""
    assert len(node.serve.cli_json("audit", "--limit", "100000")) == rows


@pytest.mark.parametrize("how", ["gzip", "chunked", "gzip in chunks", "expect"])
def test_a_raw_push_in_every_framing(node: Node, how: str) -> None:
    """Compressed, in small chunks, and after `100 Continue`."""
    turn = make_turn(node.mirror, f"raw {how}", size=3000)
    ref = f"refs/agents/raw-{how.replace(' ', '-')}"
    body = push_bytes([(ZERO, turn.commit, ref)], turn.pack)
    headers = dict(HEADERS)
    if "gzip" in how:
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    with HttpGuest(node.serve.http_url) as guest:
        for _ in range(2):
            if "chunk" in how:
                guest.sock.sendall(
                    guest.head("POST", POST, headers | {"Transfer-Encoding": "chunked"}) + chunked(body, 100)
                )
            elif how == "expect":
                length = {"Content-Length": str(len(body)), "Expect": "100-continue"}
                guest.sock.sendall(guest.head("POST", POST, headers | length))
                assert guest.sock.recv(1024).startswith(b"HTTP/1.1 100 ")
                guest.sock.sendall(body)
            else:
                guest.send("POST", POST, headers, body)
            unpack, told, _ = report_of(guest.read("POST"))
            assert unpack == "ok" and ref in told
    assert git("rev-parse", ref, cwd=node.mirror) == turn.commit


@pytest.mark.parametrize("ending", ["length", "chunked", "gzip", "in the commands"])
def test_a_guest_that_is_killed_midway_leaves_nothing(node: Node, ending: str) -> None:
    """In the pack or in the list of refs: no ref moves, the log says so, the mirror is clean."""
    turn = make_turn(node.mirror, f"killed {ending}", size=200_000)
    ref = f"refs/agents/killed-{ending.replace(' ', '-')}"
    body = push_bytes([(ZERO, turn.commit, ref)], turn.pack)
    with HttpGuest(node.serve.http_url) as guest:
        headers = dict(HEADERS)
        if ending == "chunked":
            sent = (
                guest.head("POST", POST, headers | {"Transfer-Encoding": "chunked"})
                + chunked(body[:100_000], 5000)[:-5]
            )
        elif ending == "gzip":
            packed = gzip.compress(body)
            headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
            sent = guest.head("POST", POST, headers) + packed[:100_000]
        else:
            cut = 80 if ending == "in the commands" else 100_000
            sent = guest.head("POST", POST, headers | {"Content-Length": str(len(body))}) + body[:cut]
        guest.sock.sendall(sent)
        if ending != "in the commands":
            wait_until(lambda: ref in str(node.serve.cli_json("audit")), message="the attempt is logged")
    wait_settled(node.serve)
    if ending != "in the commands":
        assert (entry_of(node.serve, ref)["verdict"], entry_of(node.serve, ref)["outcome"]) == ("accepted", "failed")
    assert ref not in refs(node.mirror)
    wait_until(lambda: node.serve.processes() == [node.serve.pid], message="no process is left")
    assert_mirror_is_clean(node.mirror)


@pytest.mark.slow
def test_a_gzip_bomb_costs_no_memory(node: Node) -> None:
    """A gigabyte of zeros in a megabyte, behind a good head: refused by git, with the memory of one small piece."""
    turn = make_turn(node.mirror, "bomb")
    head = push_bytes([(ZERO, turn.commit, "refs/agents/bomb")], turn.pack[:12])
    status = Path(f"/proc/{node.serve.pid}/status")

    def resident() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))

    before = resident()
    zeros = gzip.compress(b"\0" * 2**24)
    body = gzip.compress(head) + zeros
    compressed = gzip.compress(head + b"\0" * 2**29, compresslevel=1)
    for each in (body, compressed):
        with HttpGuest(node.serve.http_url) as guest:
            try:
                guest.send("POST", POST, HEADERS | {"Content-Encoding": "gzip"}, each)
                unpack, told, _ = report_of(guest.read("POST"))
                assert unpack != "ok" and told["refs/agents/bomb"] != "ok"
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert resident() - before < 30_000, "KiB"
    assert entry_of(node.serve, "refs/agents/bomb")["outcome"] == "failed"
    assert_mirror_is_clean(node.mirror)


MALFORMED = {
    "no packets": b"hello, this is no push",
    "a huge length": b"ffff" + b"x" * 70_000,
    "a malformed ref command": pkt(b"hello\0report-status") + FLUSH + EMPTY_PACK,
    "no flush": pkt(f"{ZERO} {'a' * 40} refs/agents/x\0 report-status side-band-64k"),
    "endless commands": pkt(f"{ZERO} {'a' * 40} refs/agents/x\0 report-status") * 200_000,
    "no pack": push_bytes([(ZERO, "a" * 40, "refs/agents/x")], b""),
    "another thing than a pack": push_bytes([(ZERO, "a" * 40, "refs/agents/x")], b"PUCK" * 100),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_push_is_refused_and_moves_nothing(node: Node, body: bytes) -> None:
    """An answer in words or a report, at once, and the next guest is served."""
    before = refs(node.mirror)
    reply = post(node.serve, body)
    if reply.status == 200:
        assert "ok" not in report_of(reply)[1].values() if b"side-band" in body[:200] else b"ok refs" not in reply.body
    else:
        assert reply.status == 400 and reply.body
    assert refs(node.mirror) == before
    assert http_ask(f"{node.serve.http_url}/healthz").status == 200
    assert "Traceback" not in node.serve.log()


# What breaks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node with a small max_push."""
    base = tmp_path_factory.mktemp("small")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(
            base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED, recording={"max_push": "100KiB"}
        ).start() as serve:
            serve.wait_for_repo(WIDGETS)
            yield Node(serve, upstream)


def test_a_push_over_max_push_is_refused(small: Node, tmp_path: Path) -> None:
    """The guest reads why, the log says that it failed, and nothing of the pack is left."""
    work = small.serve.clone(tmp_path / "guest", WIDGETS, "--depth=1", http=True)
    commit_files(work, {"noise.bin": random.Random(1).randbytes(3_000_000)}, "Too large")
    code, _, said = git_result("push", "origin", "HEAD:refs/agents/large", cwd=work)
    assert code == 1 and "exceeds maximum allowed size" in said, said
    entry = entry_of(small.serve, "refs/agents/large")
    assert (entry["verdict"], entry["outcome"]) == ("accepted", "failed")
    assert_mirror_is_clean(small.mirror)
    assert_log_is_true(small)


def test_refs_are_not_stale_when_the_outcome_cannot_be_logged(small: Node) -> None:
    """The database goes in the middle of a push: its guest is told the truth, and everybody else sees it at once."""
    turn = make_turn(small.mirror, "the database goes", size=50_000)
    body = push_bytes([(ZERO, turn.commit, "refs/agents/truth")], turn.pack)
    request = v2_request("ls-refs", ["ref-prefix refs/agents/truth"])
    database, aside = small.serve.state / "gitmirror.db", small.serve.state / "aside.db"
    with HttpGuest(small.serve.http_url) as guest:
        guest.sock.sendall(guest.head("POST", POST, HEADERS | {"Content-Length": str(len(body))}) + body[:-100])
        wait_until(lambda: "refs/agents/truth" in str(small.serve.cli_json("audit")), message="the attempt is logged")
        database.rename(aside)
        database.mkdir()
        try:
            assert ask(small.serve, WIDGETS, request) == FLUSH
            guest.sock.sendall(body[-100:])
            assert report_of(guest.read("POST"))[:2] == ("ok", {"refs/agents/truth": "ok"})
            assert turn.commit.encode() in ask(small.serve, WIDGETS, request)
            # Pushes are off, fetches go on.
            _unpack, told, words = report_of(post(small.serve, push_bytes([(ZERO, turn.commit, "refs/agents/two")])))
            assert "the audit log cannot be written" in told["refs/agents/two"] and "pushes are off" in words
        finally:
            database.rmdir()
            aside.rename(database)
    assert "refs/agents/two" not in refs(small.mirror)


@pytest.mark.slow
def test_a_hook_that_was_touched_turns_pushes_off(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Not executable, or replaced: refused before git is asked, with what the operator has to do."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    node = Node(serve, upstream)
    hook = serve.state / "run" / "hooks" / "pre-receive"
    turn = make_turn(node.mirror, "hook")
    body = push_bytes([(ZERO, turn.commit, "refs/agents/hook")], turn.pack)
    os.chmod(hook, 0o644)
    _, told, words = report_of(post(serve, body))
    assert "pushes are off: the hook pre-receive was changed" in told["refs/agents/hook"]
    assert "the operator must fix it" in words
    assert refs(node.mirror).get("refs/agents/hook") is None
    assert http_ask(f"{url_of(serve)}/info/refs?service=git-upload-pack").status == 200
    shutil.rmtree(hook.parent)
    assert "pushes are off" in report_of(post(serve, body))[1]["refs/agents/hook"]
    fsck(node.mirror)
