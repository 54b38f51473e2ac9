"""`workspace.tar`, `freshness` and `guest.sh` over HTTP, while branches move, serve dies and files vanish."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from appliance.core.workspace.snapshot_place import LAYOUT_VERSION
from appliance.core.workspace.snapshot_registry import MOST_EXTRA
from tests.conftest import WIDGETS
from tests.support.generate import add_commit, delete_branch
from tests.support.gitutil import fsck, git, wait_until
from tests.workspace.conftest import Node
from tests.workspace.web import Reply, get, unpack


def assert_whole(reply: Reply, to: Path, commit: str) -> None:
    """Assert that a tar is a clean checkout of `commit`."""
    guest = unpack(reply, to)
    assert git("rev-parse", "HEAD", cwd=guest) == commit == reply.headers["x-gitmirror-commit"]
    assert git("status", "--porcelain", cwd=guest) == ""
    fsck(guest)


def places(node: Node) -> list[Path]:
    """The directories of the snapshots that are kept."""
    found = (node.serve.state / "workspaces" / WIDGETS).glob("b-*")
    return sorted(found)


def shape(node: Node) -> Path:
    """The directory of the only snapshot, which has the whole history."""
    [place] = places(node)
    return place / "full"


# What HTTP says of it


def test_a_snapshot_is_served_under_every_path(node: Node, tmp_path: Path) -> None:
    """All three path forms, and any branch; what is not there is a 404 with a reason."""
    host = urlsplit(node.upstream.url(WIDGETS)).netloc
    bodies = {
        get(f"{node.serve.http_url}/{path}/workspace.tar").body
        for path in (WIDGETS, f"{WIDGETS}.git", f"{host}/{WIDGETS}")
    }
    assert len(bodies) == 1
    reply = get(node.tar_url())
    assert_whole(reply, tmp_path / "main", node.tip)
    assert float(reply.headers["x-gitmirror-lag"]) >= 0 and reply.headers["x-gitmirror-tip"] == node.tip
    assert_whole(
        get(node.tar_url("feature/search")),
        tmp_path / "branch",
        git("rev-parse", "feature/search", cwd=node.serve.mirror(WIDGETS)),
    )
    missing = get(node.tar_url("no/such"))
    assert (missing.status, missing.text) == (404, "there is no branch no/such\n")
    assert get(f"{node.serve.http_url}/acme/other/workspace.tar").status == 404
    assert get(node.tar_url(), method="POST").status == 405


def test_conditions_and_ranges_are_those_of_http(node: Node) -> None:
    """ETag, 304, 206, 416, HEAD, and forms that are passed over."""
    whole = get(node.tar_url())
    etag, size = whole.headers["etag"], len(whole.body)
    assert whole.headers["content-length"] == str(size) and whole.headers["accept-ranges"] == "bytes"
    assert etag.startswith(f'"{node.tip}-')
    head = get(node.tar_url(), method="HEAD", range="bytes=0-9")
    assert (head.status, head.body) == (200, b"")
    assert {name: value for name, value in head.headers.items() if name != "x-gitmirror-lag"} == {
        name: value for name, value in whole.headers.items() if name != "x-gitmirror-lag"
    }
    for tag, status in ((etag, 304), (f"W/{etag}", 304), ("*", 304), (f'"x", {etag}', 304), ('"x"', 200)):
        reply = get(node.tar_url(), if_none_match=tag)
        assert reply.status == status, tag
        assert reply.headers["etag"] == etag and (status == 200 or reply.body == b"")
    for asked, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=100-", 100, size - 1),
        ("bytes=-100", size - 100, size - 1),
        (f"bytes=5-{size * 2}", 5, size - 1),
        (f"bytes=-{size * 2}", 0, size - 1),
    ):
        reply = get(node.tar_url(), range=asked)
        assert (reply.status, reply.headers["content-range"]) == (206, f"bytes {first}-{last}/{size}"), asked
        assert reply.body == whole.body[first : last + 1]
    for asked in (f"bytes={size}-", "bytes=-0"):
        reply = get(node.tar_url(), range=asked)
        assert (reply.status, reply.headers["content-range"]) == (416, f"bytes */{size}"), asked
    for asked in ("bytes=5-2", "bytes=x", "lines=1-2", "bytes=0-1,5-6", "bytes=-", f"bytes=0-{'9' * 5000}"):
        assert get(node.tar_url(), range=asked).status == 200, asked


def test_a_download_resumed_across_a_rebuild_never_mixes_two_tars(own_node: Node, tmp_path: Path) -> None:
    """With `If-Range` the second part is of the same tar, or all of the new one comes."""
    node = own_node
    old = get(node.tar_url())
    etag = old.headers["etag"]
    rest = get(node.tar_url(), range="bytes=1000-", if_range=etag)
    assert rest.status == 206 and old.body[:1000] + rest.body == old.body
    new = add_commit(node.upstream.path(WIDGETS), "main", {"new.txt": "x\n"})
    node.refresh()
    node.wait_for_snapshot(new)
    again = get(node.tar_url(), range="bytes=1000-", if_range=etag)
    assert again.status == 200 and again.headers["etag"] != etag
    assert_whole(again, tmp_path / "new", new)


def test_who_downloads_keeps_the_tar_it_began_with(own_node: Node, tmp_path: Path) -> None:
    """A rebuild in the middle of a slow download changes nothing of it, and the file goes when it is done with."""
    node = own_node
    old = node.tip
    parts = urlsplit(node.tar_url())
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    connection.request("GET", parts.path)
    answer = connection.getresponse()
    first = answer.read(1000)
    new = add_commit(node.upstream.path(WIDGETS), "main", {"new.txt": "x\n"})
    node.refresh()
    node.wait_for_snapshot(new)
    body = first + answer.read()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    assert_whole(Reply(200, headers, body), tmp_path / "old", old)
    assert_whole(get(node.tar_url()), tmp_path / "new", new)
    wait_until(lambda: len(list(shape(node).glob("*.tar"))) == 1, message="the old tar is removed")


@pytest.mark.slow
def test_guests_that_come_while_it_is_rebuilt_all_get_a_whole_one(own_node: Node, tmp_path: Path) -> None:
    """Some commits, and guests without a pause: each answer is one of the tars, never a 404."""
    node = own_node
    replies: list[Reply] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            replies.append(get(node.tar_url()))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    commits = {node.tip}
    try:
        for turn in range(3):
            commits.add(add_commit(node.upstream.path(WIDGETS), "main", {"turn.txt": f"{turn}\n"}))
            node.refresh()
            node.wait_for_snapshot()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {reply.status for reply in replies} == {200}
    assert {reply.headers["x-gitmirror-commit"] for reply in replies} <= commits
    by_tag = {reply.headers["etag"]: reply for reply in replies}
    assert len({(reply.headers["etag"], hash(reply.body)) for reply in replies}) == len(by_tag)


# Which branches


@pytest.mark.slow
def test_only_so_many_branches_are_kept(own_node: Node) -> None:
    """Of too many branches the least recently requested is dropped; the followed one stays."""
    node = own_node
    names = [f"topic/{number}" for number in range(MOST_EXTRA + 2)]
    for name in names:
        git("update-ref", f"refs/heads/{name}", node.tip, cwd=node.upstream.path(WIDGETS))
    node.refresh()
    for name in names:
        assert get(node.tar_url(name)).status == 200
    wait_until(lambda: len(places(node)) == MOST_EXTRA + 1, message="the oldest are gone")
    kept = " ".join(path.name for path in places(node))
    assert "b-topic_0-" not in kept and "b-topic_1-" not in kept and "b-main-" in kept
    assert get(node.tar_url(names[0])).status == 200
    node.serve.keep_ports()
    node.serve.restart()
    node.wait_for_snapshot()
    wait_until(lambda: len(places(node)) == 1, message="what nobody asked for since the start is gone")


def test_a_branch_follows_its_upstream_to_the_end(own_node: Node, tmp_path: Path) -> None:
    """One that was asked for is rebuilt when it moves, and is a 404 once it is deleted, with nothing left of it."""
    node = own_node
    bare = node.upstream.path(WIDGETS)
    get(node.tar_url("develop"))
    new = add_commit(bare, "develop", {"new.txt": "x\n"})
    node.refresh()
    wait_until(
        lambda: get(node.tar_url("develop"), "HEAD").headers["x-gitmirror-commit"] == new, message="develop moves"
    )
    assert_whole(get(node.tar_url("develop")), tmp_path / "develop", new)
    delete_branch(bare, "develop")
    node.refresh()
    wait_until(lambda: get(node.tar_url("develop")).status == 404, message="develop is gone")
    wait_until(lambda: len(places(node)) == 1, message="its snapshot is gone too")


def test_a_branch_of_any_name_is_found_by_its_query(own_node: Node, tmp_path: Path) -> None:
    """However long or odd."""
    names = ("a/" + "/".join("x" * 60 for _ in range(5)), "naïve☃", "a+b&c=%d#1")
    commits = [add_commit(own_node.upstream.path(WIDGETS), name, {"name.txt": name}) for name in names]
    own_node.refresh()
    for number, (name, commit) in enumerate(zip(names, commits, strict=True)):
        assert_whole(get(own_node.tar_url(quote(name))), tmp_path / f"guest{number}", commit)


@pytest.mark.slow
def test_switched_off_there_is_none_and_it_says_so(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """`[workspace] enabled = false`: a 404 with the reason, nothing on disk, and guests get theirs by git."""
    node = make_node(workspace={"enabled": False})
    reply = get(node.tar_url())
    assert (reply.status, reply.text) == (404, "snapshots are off here ([workspace] enabled)\n")
    assert not places(node)
    guest = node.guest(tmp_path / "home")
    assert guest.hydrate(guest.home / "ws").hydrated(via="mirror") == node.tip


# What may happen to it


@pytest.mark.slow
def test_what_is_broken_on_disk_is_built_again(own_node: Node, tmp_path: Path) -> None:
    """A missing or damaged tar, or an invalid description, is replaced at the next start or the next request."""
    node = own_node
    node.serve.keep_ports()
    for harm in ("tar", "garbage", "description", "everything"):
        place = shape(node)
        [tar] = place.glob("*.tar")
        if harm == "tar":
            # While it serves.
            tar.unlink()
        else:
            node.serve.terminate()
            if harm == "garbage":
                tar.write_bytes(b"x" * tar.stat().st_size)
            elif harm == "description":
                (place / "snapshot.json").write_text("[]")
            else:
                shutil.rmtree(place)
            node.serve.start()
        assert_whole(get(node.tar_url()), tmp_path / f"guest-{harm}", node.tip)
        wait_until(lambda place=place: len(list(place.glob("*.tar"))) == 1)  # type: ignore[misc]


@pytest.mark.slow
def test_a_snapshot_of_an_older_version_is_built_again(own_node: Node, tmp_path: Path) -> None:
    """One that is whole and at the tip, but laid out as before files had mtimes of their own: it is never served."""
    node = own_node
    place = shape(node)
    description = place / "snapshot.json"
    stored = json.loads(description.read_text())
    node.serve.keep_ports()
    node.serve.terminate()
    whole = (place / stored["file"]).read_bytes()
    old = tmp_path / "old.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as source, tarfile.open(old, "w", format=tarfile.GNU_FORMAT) as target:
        for entry in source:
            entry.mtime = 1_000_000_000
            target.addfile(entry, source.extractfile(entry) if entry.isfile() else None)
    etag = f"{stored['commit']}-{hashlib.sha256(old.read_bytes()).hexdigest()[:16]}"
    (place / stored["file"]).unlink()
    old.rename(place / f"{etag}.tar")
    size = (place / f"{etag}.tar").stat().st_size
    description.write_text(json.dumps(stored | {"version": 2, "etag": etag, "file": f"{etag}.tar", "size": size}))
    node.serve.start()
    reply = get(node.tar_url())
    assert_whole(reply, tmp_path / "new", node.tip)
    assert reply.headers["etag"] != f'"{etag}"'
    assert len({path.stat().st_mtime for path in (tmp_path / "new" / "src").rglob("*") if path.is_file()}) > 1
    assert json.loads(description.read_text())["version"] == LAYOUT_VERSION
    wait_until(lambda: len(list(place.glob("*.tar"))) == 1, message="the old tar is removed")


@pytest.mark.slow
def test_what_a_version_without_history_left_is_removed_and_built_again(own_node: Node, tmp_path: Path) -> None:
    """The snapshot, the tree and the packs of depth 1 that lay where the shapes of a branch are now."""
    node = own_node
    place, tip = shape(node), node.tip
    node.serve.terminate()
    branch = place.parent
    stored = json.loads((place / "snapshot.json").read_text())
    del stored["history"]
    (place / stored["file"]).rename(branch / stored["file"])
    (branch / "snapshot.json").write_text(json.dumps(stored | {"version": 3}))
    shutil.rmtree(place)
    (branch / "checkout").rename(branch / "work")
    node.serve.start()
    assert_whole(get(node.tar_url()), tmp_path / "new", tip)
    assert sorted(entry.name for entry in branch.iterdir()) == ["checkout", "full"]


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_build_does_no_harm(own_node: Node, tmp_path: Path) -> None:
    """kill -9 of serve while it archives, checks out, packs or writes the graph; the next start builds it right."""
    node = own_node
    node.serve.keep_ports()
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    real = shutil.which("git")
    # git that stops at one step of the build, which is in a file, until it is killed.
    gate, hit = tmp_path / "gate", tmp_path / "hit"
    (bin_ / "git").write_text(
        f'#!/bin/sh\nif [ -e "{gate}" ]; then read -r at <"{gate}"; case "$PWD $*" in */workspaces/*" $at "*)\n'
        f'    touch "{hit}"; exec sleep 60 ;; esac; fi\nexec {real} "$@"\n'
    )
    (bin_ / "git").chmod(0o755)
    node.serve.env["PATH"] = f"{bin_}:{node.serve.env['PATH']}"
    node.serve.restart()
    node.wait_for_snapshot()
    place = shape(node)
    work = place.parent / "checkout"
    for at in ("tar", "read-tree", "pack-objects", "commit-graph"):
        gate.write_text(f"{at}\n")
        if at == "tar":
            # A pipe in the place of the tar that grows: whoever opens it waits.
            os.mkfifo(place / "growing.tar")
        new = add_commit(node.upstream.path(WIDGETS), "main", {"new.txt": f"{at}\n"})
        node.refresh()
        if at == "tar":
            wait_until(lambda: not (work / "unfinished").exists() and (work / "guest").exists())
        else:
            wait_until(hit.exists, message=f"the build is at {at}")
        assert get(node.tar_url()).status == 200
        node.serve.kill()
        gate.unlink()
        hit.unlink(missing_ok=True)
        (place / "growing.tar").unlink(missing_ok=True)
        (place / "growing.tar").write_bytes(b"half of a tar")
        node.serve.start()
        node.wait_for_snapshot(new)
        assert_whole(get(node.tar_url()), tmp_path / f"guest-{at}", new)
        wait_until(lambda: len(list(place.glob("*.tar"))) == 1, message="no other tar is left")


# Freshness and the kit


def test_freshness_says_how_far_behind_the_mirror_is(own_node: Node) -> None:
    """The keys of the contract, and `has` for a commit that is wanted; one that is missing makes it look."""
    node = own_node
    url = f"{node.serve.http_url}/{WIDGETS}/freshness"
    document = json.loads(get(url).body)
    assert set(document) == {"name", "branch", "tip", "snapshot", "lag", "verified_at", "state"}
    assert (document["name"], document["branch"], document["state"]) == (WIDGETS, "main", "fresh")
    assert document["tip"] == document["snapshot"] == node.tip
    new = add_commit(node.upstream.path(WIDGETS), "main", {"new.txt": "x\n"})
    asked = json.loads(get(f"{url}?want={new}").body)
    assert asked["has"] is True and asked["tip"] == new
    node.upstream.forget()
    began = time.monotonic()
    nothing = [json.loads(get(f"{url}?want={'1' * 40}").body)["has"] for _ in range(5)]
    assert nothing == [False] * 5
    # It looks at most every two seconds, with two requests.
    assert node.upstream.count(WIDGETS) <= 2 * (1 + (time.monotonic() - began + 2) // 2)
    assert get(f"{url}?want=main").status == 400


def test_guests_that_miss_the_same_commit_wait_for_one_look(own_node: Node) -> None:
    """Ten at once: one refresh, and all of them are told that it is there now."""
    node = own_node
    new = add_commit(node.upstream.path(WIDGETS), "main", {"new.txt": "x\n"})
    node.upstream.forget()
    replies: list[Reply] = []
    url = f"{node.serve.http_url}/{WIDGETS}/freshness?want={new}"
    threads = [threading.Thread(target=lambda: replies.append(get(url))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b'"has": true' in reply.body for reply in replies] == [True] * 10
    asked = sum(each.path.endswith("/info/refs?service=git-upload-pack") for each in node.upstream.requests)
    assert asked <= 3, node.upstream.requests


def test_the_kit_is_the_same_by_command_and_by_http(node: Node) -> None:
    """`guest-kit` prints what `/guest.sh` serves, with this mirror's addresses and its repositories."""
    served = get(f"{node.serve.http_url}/guest.sh")
    assert served.status == 200 and served.headers["content-type"].startswith("text/x-shellscript")
    assert node.serve.cli("guest-kit").stdout == served.text
    for text in (node.serve.git_url, node.serve.http_url, f"{WIDGETS} {node.upstream.url(WIDGETS)}"):
        assert text in served.text
    assert "@" not in served.text.split("gitmirror__repositories=")[1].partition("\n")[0]
