"""What somebody may try who writes to a repository, runs its LFS server, or sits in a guest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import GitmirrorError, TryLater
from appliance.core.lfs import objects, stock, upstream_lfs
from appliance.core.lfs import upstream as upstreams
from appliance.core.lfs.flight import Flight
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Health
from tests.lfs.lab import WIDGETS, LfsLab, repo_of
from tests.support.gitutil import git, wait_until
from tests.support.lfs_server import LfsServer

DATA = b"x" * 50_000
POINTER = Pointer(hashlib.sha256(DATA).hexdigest(), len(DATA))


def test_an_answer_without_end(lab: LfsLab, server: LfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch answer is read up to a bound."""
    server.add(WIDGETS, DATA)
    monkeypatch.setattr(upstream_lfs, "MOST_ANSWER", 1000)
    server.faults.header = {"X": "y" * 2000}
    with pytest.raises(GitmirrorError, match="too large"):
        lab.run(lab.bytes_of(repo_of(server.url(WIDGETS)), POINTER))


def test_an_object_without_end(lab: LfsLab, server: LfsServer) -> None:
    """What is longer than it should be is not read to its end, whatever length the server states."""
    server.add(WIDGETS, DATA)
    server.faults.mangle, server.faults.length = lambda data: data * 100, len(DATA)
    repo = repo_of(server.url(WIDGETS))
    assert lab.run(lab.bytes_of(repo, POINTER)) == DATA
    lab.objects.stock.purge(WIDGETS)
    server.faults.length = None
    with pytest.raises(GitmirrorError, match="the upstream has"):
        lab.run(lab.bytes_of(repo, POINTER))


def test_a_thousand_objects_that_are_not_there(lab: LfsLab, server: LfsServer) -> None:
    """Ten requests, no matter how often a guest asks."""
    repo = repo_of(server.url(WIDGETS))
    pointers = [Pointer(f"{number:064x}", 1) for number in range(1000)]
    for _ in range(3):
        found = lab.run(lab.objects.offer(repo, pointers, 20))
        assert all(found.values())
    assert server.count("batch") == 10


def test_a_thousand_objects_that_nobody_takes(lab: LfsLab, server: LfsServer) -> None:
    """None is fetched for a batch request alone."""
    repo = repo_of(server.url(WIDGETS))
    pointers = [Pointer(server.add(WIDGETS, str(number).encode()), len(str(number))) for number in range(1000)]
    assert not any(lab.run(lab.objects.offer(repo, pointers, 20)).values())
    assert server.count("object") == 0 and not lab.lab.layout.lfs.exists()


def test_a_guest_that_leaves_stops_nothing(lab: LfsLab, server: LfsServer) -> None:
    """The object is fetched to its end for the next one."""
    server.add(WIDGETS, DATA)
    server.faults.slow = len(DATA) * 5
    repo = repo_of(server.url(WIDGETS))

    async def leave() -> None:
        task = asyncio.create_task(lab.bytes_of(repo, POINTER))
        while not server.count("object"):
            await asyncio.sleep(0.005)
        task.cancel()
        flight = await lab.objects.open(repo, POINTER.oid, POINTER.size, 20)
        if isinstance(flight, Flight):
            await flight.ends()

    lab.run(leave())
    assert lab.objects.path_if_here(repo, POINTER.oid) is not None and server.count("object") == 1


def test_a_repository_that_goes_while_its_object_comes(lab: LfsLab, server: LfsServer) -> None:
    """The transfer ends, and nothing of it is left."""
    server.add(WIDGETS, DATA)
    server.faults.slow = len(DATA)
    repo = repo_of(server.url(WIDGETS))

    async def purge() -> None:
        task = asyncio.create_task(lab.bytes_of(repo, POINTER))
        while not server.count("object"):
            await asyncio.sleep(0.005)
        await lab.objects.purge(WIDGETS)
        with pytest.raises(TryLater):
            await task

    lab.run(purge())
    assert not (lab.lab.layout.lfs / WIDGETS).exists() and lab.objects.stock.reserved == 0


def test_a_link_in_the_place_of_an_object(lab: LfsLab, server: LfsServer, tmp_path: Path) -> None:
    """Somebody who can write to the state directory has won anyway; a start follows no link all the same."""
    server.add(WIDGETS, DATA)
    repo = repo_of(server.url(WIDGETS))
    lab.run(lab.objects.fetch(repo, [POINTER]))
    path = lab.objects.path_if_here(repo, POINTER.oid)
    assert path is not None
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert lab.again().path_if_here(repo, POINTER.oid) is None


def test_no_thread_and_no_descriptor_is_left(lab: LfsLab, server: LfsServer) -> None:
    """After a hundred transfers, good and bad ones."""
    repo = repo_of(server.url(WIDGETS))
    pointers = [
        Pointer(server.add(WIDGETS, f"{number}".encode() * 100), len(f"{number}") * 100) for number in range(50)
    ]
    pointers += [Pointer(f"{number:064x}", 3) for number in range(50)]
    lab.run(lab.objects.fetch(repo, pointers[:1]))
    before = len(os.listdir("/proc/self/fd"))
    assert len(lab.run(lab.objects.fetch(repo, pointers))) == 50
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, message="the descriptors are closed")


def test_what_is_sent_names_what_is_asked(lab: LfsLab, server: LfsServer) -> None:
    """The batch request of the node is one of the LFS API."""
    server.add(WIDGETS, DATA)
    lab.run(lab.objects.fetch(repo_of(server.url(WIDGETS)), [POINTER]))
    asked = server.requests[0]
    assert asked.headers["accept"] == asked.headers["content-type"] == "application/vnd.git-lfs+json"
    assert json.loads(asked.body) == {
        "operation": "download",
        "transfers": ["basic"],
        "objects": [{"oid": POINTER.oid, "size": POINTER.size}],
        "hash_algo": "sha256",
    }


def test_lfsconfig_includes_no_file_of_this_node(lab: LfsLab, server: LfsServer, tmp_path: Path) -> None:
    """Whoever writes to a repository learns nothing from the node's files, and does not make git read a pipe."""
    own = tmp_path / "gitconfig"
    own.write_text("[lfs]\n\turl = https://internal.example/lfs\n")
    bare = lab.lab.layout.mirror(WIDGETS)
    bare.mkdir(parents=True)
    git("init", "-q", "--bare", "-b", "main", ".", cwd=bare)
    blob = git("hash-object", "-w", "--stdin", cwd=bare, input=f"[include]\n\tpath = {own}\n")
    tree = git("mktree", cwd=bare, input=f"100644 blob {blob}\t.lfsconfig\n")
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "hostile", tree, cwd=bare), cwd=bare)
    lab.health = Health(head="refs/heads/main")
    endpoint = lab.run(lab.objects.upstreams.endpoint(repo_of(server.url(WIDGETS))))
    assert endpoint.url == f"{server.url(WIDGETS)}.git/info/lfs"


def test_one_guest_cannot_have_all_transfers(lab: LfsLab, server: LfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that it makes up wait for an upstream that hangs, and those of another repository do not."""
    monkeypatch.setattr(objects, "MOST_FLIGHTS", 8)
    server.add("acme/other", DATA)
    hanging, other = repo_of(server.url(WIDGETS)), repo_of(server.url("acme/other"), "acme/other", 2)

    async def attack() -> bytes:
        server.faults.hang_batch = True
        for number in range(20):
            with contextlib.suppress(TryLater):
                await lab.objects.open(hanging, f"{number:064x}", 5, 0.01)
        server.faults.hang_batch = False
        return await lab.bytes_of(other, POINTER)

    assert lab.run(attack()) == DATA


def test_what_waits_to_be_asked_for_is_bounded(lab: LfsLab, server: LfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that names new objects again and again fills no memory while the upstream hangs."""
    monkeypatch.setattr(objects, "MOST_ASKED", 300)
    repo = repo_of(server.url(WIDGETS))
    server.faults.hang_batch = True

    async def attack() -> int:
        for batch in range(10):
            names = [Pointer(f"{batch * 100 + number:064x}", 1) for number in range(100)]
            answers = await lab.objects.offer(repo, names, 0.01)
            # A batch fails for good, while an object is asked for again.
            assert all(fault is None or isinstance(fault, TryLater) for fault in answers.values())
        count = sum(task.get_name() == "LFS batch" for task in asyncio.all_tasks())
        server.faults.hang_batch = False
        await lab.objects.stop()
        return count

    assert lab.run(attack()) <= 3


def announcing(size: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Makes an answer that states another size for each object."""
    return lambda answer: {**answer, "objects": [{**each, "size": size} for each in answer["objects"]]}


def test_an_object_that_is_only_announced_evicts_nothing(
    tmp_path: Path, server: LfsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upstream that states a size and sends next to nothing has room for as much as it sends."""
    monkeypatch.setattr(stock, "PROTECTED", -1.0)
    monkeypatch.setattr(objects, "STEP", 1000)
    monkeypatch.setattr(objects, "PAUSE", 0.01)
    made = LfsLab(tmp_path / "lab", budget=2 * len(DATA))
    try:
        server.add("acme/other", DATA)
        other = repo_of(server.url("acme/other"), "acme/other", 2)
        assert made.run(made.bytes_of(other, POINTER)) == DATA
        announced = Pointer(server.add(WIDGETS, b"tiny"), 2 * len(DATA))
        server.faults.length, server.faults.answer = announced.size, announcing(announced.size)
        with pytest.raises(GitmirrorError):
            made.run(made.bytes_of(repo_of(server.url(WIDGETS)), announced))
        assert server.count("object") > 1 and made.objects.stock.reserved == 0
        assert made.objects.path_if_here(other, POINTER.oid) is not None
    finally:
        made.close()


def test_an_upstream_that_drips_is_given_up(lab: LfsLab, server: LfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the object is: a byte now and then would hold a transfer for days."""
    monkeypatch.setattr(upstream_lfs, "GRACE", 0.2)
    large = Pointer(server.add(WIDGETS, DATA), 2**29)
    server.faults.length, server.faults.answer = large.size, announcing(large.size)
    server.faults.slow = 200
    with pytest.raises(TryLater, match="too slow"):
        lab.run(lab.bytes_of(repo_of(server.url(WIDGETS)), large))


def test_a_head_that_drips_is_given_up(lab: LfsLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of it every so often keeps the thread from its own deadline."""
    monkeypatch.setattr(upstreams, "HEAD_SECONDS", 0.3)
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.02):
                connection.sendall(b"y")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            repo = repo_of(f"http://127.0.0.1:{listener.getsockname()[1]}/{WIDGETS}")
            (fault,) = lab.run(asyncio.wait_for(lab.objects.offer(repo, [POINTER], None), 20)).values()
            assert isinstance(fault, GitmirrorError)
        finally:
            ended.set()
            thread.join(20)
