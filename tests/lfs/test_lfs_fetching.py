"""Objects come from the upstream once, right or not at all, and a server that misbehaves costs its own objects only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.credentials import CredentialConfig
from appliance.core.errors import Forbidden, GitmirrorError, NoRoom, NotFound, TooLarge, TryLater
from appliance.core.lfs import objects as lfs_objects
from appliance.core.lfs import stock
from appliance.core.lfs.http_client import Line, NotAllowed, Reach, request
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Repo
from tests.lfs.lab import SECRET, WIDGETS, LfsLab, repo_of
from tests.support.lfs_server import LfsServer
from tests.support.tls import TlsFront, make_certificate

DATA = b"some large file\n" * 4_000
POINTER = Pointer(hashlib.sha256(DATA).hexdigest(), len(DATA))


def stored(server: LfsServer, name: str = WIDGETS, data: bytes = DATA) -> Repo:
    """A repository whose LFS server has an object."""
    server.add(name, data)
    return repo_of(server.url(name), name, 1 if name == WIDGETS else 2)


def failure(lab: LfsLab, repo: Repo, pointer: Pointer = POINTER) -> GitmirrorError:
    """Why an object cannot be had."""
    with pytest.raises(GitmirrorError) as raised:
        lab.run(lab.bytes_of(repo, pointer))
    assert lab.objects.path_if_here(repo, pointer.oid) is None
    assert not [path for path in lab.lab.layout.lfs.rglob("*") if path.is_file() and path.name != ".upstream"]
    return raised.value


def test_what_is_missing_is_fetched_once(lab: LfsLab, server: LfsServer) -> None:
    """`fetch` says what is here, without what the upstream does not have. The second time costs nothing."""
    repo, more = stored(server), b"another"
    other = Pointer(server.add(WIDGETS, more), len(more))
    gone = Pointer("0" * 64, 5)
    for _ in range(2):
        assert lab.run(lab.objects.fetch(repo, [POINTER, other, gone])) == {POINTER.oid, other.oid}
    assert server.count("batch") == 1 and server.count("object") == 2
    path = lab.objects.path_if_here(repo, POINTER.oid)
    assert path == lab.lab.layout.lfs / WIDGETS / POINTER.oid[:2] / POINTER.oid
    assert path.read_bytes() == DATA
    assert lab.objects.stock.bytes == len(DATA) + len(more)


def test_an_empty_object(lab: LfsLab, server: LfsServer) -> None:
    """An object of no bytes is one."""
    repo = stored(server, data=b"")
    empty = Pointer(hashlib.sha256(b"").hexdigest(), 0)
    assert lab.run(lab.objects.fetch(repo, [empty])) == {empty.oid}
    assert lab.run(lab.bytes_of(repo, empty)) == b""


def test_six_hundred_guests_ask_for_one_object(lab: LfsLab, server: LfsServer) -> None:
    """One question, one download, and everybody gets all of it."""
    repo = stored(server)
    server.faults.slow = len(DATA) * 4

    async def ask() -> list[bytes]:
        return await asyncio.gather(*(lab.bytes_of(repo, POINTER) for _ in range(600)))

    assert set(lab.run(ask())) == {DATA}
    assert server.count("batch") == 1 and server.count("object") == 1


def test_a_guest_gets_what_has_arrived(lab: LfsLab, server: LfsServer) -> None:
    """The first bytes come long before the last one."""
    repo = stored(server)
    server.faults.slow = len(DATA) // 2

    async def look() -> int:
        flight = await lab.objects.open(repo, POINTER.oid, POINTER.size, 20)
        assert not isinstance(flight, Path)
        ready = await flight.ready_beyond(0)
        await flight.ends()
        return ready

    assert 0 < lab.run(look()) < len(DATA) // 2
    assert lab.objects.path_if_here(repo, POINTER.oid) is not None


def test_wrong_bytes_are_never_here(lab: LfsLab, server: LfsServer) -> None:
    """Neither kept nor given as a whole; it is said, and remembered."""
    repo = stored(server)
    server.faults.mangle = lambda data: data[:-1] + b"X"
    assert "other bytes" in failure(lab, repo).message
    asked = len(server.requests)
    assert "other bytes" in failure(lab, repo).message
    assert len(server.requests) == asked


def test_a_guest_that_reads_along_never_gets_the_last_wrong_byte(lab: LfsLab, server: LfsServer) -> None:
    """It has to see that the object is not complete."""
    repo = stored(server)
    server.faults.mangle, server.faults.slow = lambda data: b"X" + data[1:], len(DATA) * 8
    with pytest.raises(GitmirrorError, match="other bytes"):
        lab.run(lab.bytes_of(repo, POINTER))


@pytest.mark.parametrize("size", [10 * 2**30, 1, len(DATA) - 1, len(DATA) + 1])
def test_a_size_that_is_a_lie(lab: LfsLab, server: LfsServer, size: int) -> None:
    """Who states a wrong size gets an error; nothing goes for it, and the others get the object."""
    lab.again(20 * 2**30)
    repo, kept = stored(server), b"kept"
    other = Pointer(server.add(WIDGETS, kept), len(kept))
    lab.run(lab.objects.fetch(repo, [other]))
    with pytest.raises(GitmirrorError, match="the upstream has"):
        lab.run(lab.bytes_of(repo, Pointer(POINTER.oid, size)))
    assert lab.objects.path_if_here(repo, other.oid) is not None and lab.objects.stock.reserved == 0
    assert lab.run(lab.bytes_of(repo, POINTER)) == DATA


def test_larger_than_the_store(lab: LfsLab, server: LfsServer) -> None:
    """It is not fetched at all."""
    lab.again(1000)
    assert isinstance(failure(lab, stored(server)), TooLarge)
    assert server.count("object") == 0


def test_an_object_that_is_cut_off_is_fetched_again(lab: LfsLab, server: LfsServer) -> None:
    """A connection that breaks is tried three times; then the guest is told to come again."""
    repo = stored(server)
    server.faults.cut_after = 1000
    assert lab.run(lab.objects.fetch(repo, [POINTER])) == set()
    assert server.count("object") == 3
    assert isinstance(failure(lab, repo), TryLater)


def test_a_guest_that_comes_between_two_attempts_gets_the_next(
    lab: LfsLab, server: LfsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the bytes of the one that failed, which were wrong and too few."""
    repo, upstreams = stored(server), lab.objects.upstreams
    monkeypatch.setattr(lfs_objects, "PAUSE", 0.5)
    server.faults.cut_after, server.faults.mangle = 1000, lambda data: b"X" * len(data)

    async def ask() -> None:
        fetch, has_failed = upstreams.fetch, asyncio.Event()

        async def noted(*arguments: Any) -> None:
            try:
                await fetch(*arguments)
            finally:
                has_failed.set()

        monkeypatch.setattr(upstreams, "fetch", noted)
        first = asyncio.create_task(lab.objects.fetch(repo, [POINTER]))
        await has_failed.wait()
        server.reset()
        assert await lab.bytes_of(repo, POINTER) == DATA
        assert await first == {POINTER.oid}
        assert server.count("object") == 2

    lab.run(ask())


def test_what_is_not_there_is_remembered(lab: LfsLab, server: LfsServer) -> None:
    """A second guest costs no request."""
    repo = repo_of(server.url(WIDGETS))
    for _ in range(3):
        assert isinstance(failure(lab, repo), NotFound)
    assert server.count("batch") == 1


def test_a_server_that_is_busy_is_left_alone(lab: LfsLab, server: LfsServer) -> None:
    """Its Retry-After is kept for other objects, too."""
    repo = stored(server)
    server.faults.batch_status, server.faults.retry_after = 429, 30
    error = failure(lab, repo)
    assert isinstance(error, TryLater) and error.retry_after > 20
    assert isinstance(failure(lab, repo, Pointer("1" * 64, 1)), TryLater)
    assert server.count("batch") == 1


def test_an_address_that_has_expired_is_asked_for_again(lab: LfsLab, server: LfsServer) -> None:
    """Before it is used if it says so, and after a 403 if it does not."""
    repo = stored(server)
    server.faults.object_status = 403
    lab.run(lab.objects.fetch(repo, [POINTER]))
    assert server.count("batch") == 3 and server.count("object") == 3
    server.reset()
    server.forget()
    server.faults.expires_at = "2020-01-01T00:00:00Z"
    more = b"more"
    other = Pointer(server.add(WIDGETS, more), len(more))
    assert lab.run(lab.objects.fetch(repo, [other])) == {other.oid}
    assert server.count("batch") == 2 and server.count("object") == 1


@pytest.mark.slow
def test_an_upstream_that_hangs_stops_nobody_else(lab: LfsLab, server: LfsServer, tmp_path: Path) -> None:
    """Thirty guests wait for it, each for a while; the others are served meanwhile."""
    with LfsServer(tmp_path / "hanging") as hanging:
        stuck = stored(hanging, SECRET)
        hanging.faults.hang_objects = True
        repo = stored(server)

        async def ask() -> float:
            waiting = [asyncio.create_task(lab.bytes_of(stuck, POINTER, 5.0)) for _ in range(30)]
            waiting += [asyncio.create_task(lab.bytes_of(stuck, Pointer(f"{n:064x}", 3), 0.3)) for n in range(30)]
            began = time.monotonic()
            assert await lab.bytes_of(repo, POINTER) == DATA
            seconds = time.monotonic() - began
            assert not all(each.done() for each in waiting)
            errors = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(error) for error in errors} <= {TryLater, NotFound}
            await lab.objects.stop()
            return seconds

        assert lab.run(ask()) < 10


def test_a_batch_that_hangs_is_waited_for_a_while(lab: LfsLab, server: LfsServer) -> None:
    """Then it is said that the object may be had."""
    repo = stored(server)
    server.faults.hang_batch = True

    async def ask() -> dict[Pointer, GitmirrorError | None]:
        found = await lab.objects.offer(repo, [POINTER], 0.1)
        await lab.objects.stop()
        return found

    assert lab.run(ask()) == {POINTER: None}


def test_a_full_disk(lab: LfsLab, server: LfsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and nothing is left; when there is room, the object comes."""
    repo = stored(server)
    monkeypatch.setattr(stock, "free_bytes", lambda _: len(DATA))
    assert isinstance(failure(lab, repo), NoRoom)
    monkeypatch.undo()
    assert lab.run(lab.bytes_of(repo, POINTER)) == DATA


def test_a_local_upstream(lab: LfsLab, tmp_path: Path) -> None:
    """Its directory has the objects."""
    path = tmp_path / "local.git" / "lfs" / "objects" / POINTER.oid[:2] / POINTER.oid[2:4] / POINTER.oid
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    repo = repo_of(f"file://{tmp_path}/local.git")
    assert lab.run(lab.bytes_of(repo, POINTER)) == DATA
    assert isinstance(lab.run(lab.objects.offer(repo, [Pointer("2" * 64, 1)], 5))[Pointer("2" * 64, 1)], NotFound)


# Credentials and addresses


def credential(lab: LfsLab, url: str, tmp_path: Path, *, make: bool = True) -> None:
    """The node has a credential for a URL."""
    file = tmp_path / "token"
    if make:
        file.touch(mode=0o600)
        file.write_text("sesame")
    lab.holder.use([CredentialConfig(url=url, token_file=str(file))])


def test_the_credential_goes_to_the_batch_alone(lab: LfsLab, server: LfsServer, tmp_path: Path) -> None:
    """Objects get what their action says, and that goes to them alone."""
    repo = stored(server)
    server.faults.password, server.faults.token, server.faults.elsewhere = "sesame", "of-the-action", True
    assert isinstance(failure(lab, repo), Forbidden)
    lab.again()
    credential(lab, server.url("acme"), tmp_path)
    assert lab.run(lab.bytes_of(repo, POINTER)) == DATA
    seen = {each.what: each.headers.get("authorization", "") for each in server.requests}
    assert seen["batch"].startswith("Basic ") and seen["object"] == "Bearer of-the-action"


def test_a_wrong_credential_is_named_in_the_log_alone(
    lab: LfsLab, server: LfsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the entry and its file, guests get neither, and nobody the token."""
    repo = stored(server)
    server.faults.password = "another"
    credential(lab, server.url("acme"), tmp_path)
    message = failure(lab, repo).message
    assert server.url("acme") in caplog.text and "sesame" not in caplog.text
    assert server.url("acme") not in message and str(tmp_path) not in message
    lab.again()
    credential(lab, server.url("acme"), tmp_path / "gone", make=False)
    assert str(tmp_path) not in failure(lab, repo).message and "cannot be read" in caplog.text


def test_no_credential_goes_along_a_redirect(lab: LfsLab, server: LfsServer, tmp_path: Path) -> None:
    """Neither the node's nor the action's, not even to another port."""
    repo = stored(server)
    credential(lab, server.url("acme"), tmp_path)
    other = f"http://127.0.0.1:{server.other_port}"
    server.faults.redirect_batch = f"{other}/{WIDGETS}.git/info/lfs/objects/batch"
    failure(lab, repo)
    led = [each for each in server.requests if each.is_other]
    assert led and not [each for each in led if "authorization" in each.headers]
    lab.again()
    server.reset()
    server.forget()
    server.faults.header = {"Authorization": "Bearer secret", "X-Key": "secret"}
    server.faults.redirect_objects = f"{other}/objects/{WIDGETS}/{POINTER.oid}"
    lab.run(lab.objects.fetch(repo, [POINTER]))
    led = [each for each in server.requests if each.is_other]
    assert led and not [each for each in led if {"authorization", "x-key"} & set(each.headers)]


@pytest.mark.parametrize(
    "href",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://0.0.0.0:1/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://2852039166/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user:pw@127.0.0.1/x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1/a\r\nX: y",
        "",
    ],
)
def test_an_address_that_is_not_asked(lab: LfsLab, server: LfsServer, href: str) -> None:
    """The link's own addresses, this machine's, and what is no URL."""
    repo = stored(server)
    server.faults.href = lambda *_: href
    assert "because of its address" in failure(lab, repo).message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::1]"])
def test_this_machine_is_asked_only_if_the_upstream_is_there(server: LfsServer, host: str) -> None:
    """An upstream elsewhere cannot make the node ask itself, nor by a redirect."""
    url = f"http://{host}:{server.port}/x"
    with pytest.raises(NotAllowed), request("GET", url, {}, Reach("192.0.2.1", False), Line(), seconds=5):
        pass
    assert not server.requests


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "a.localhost.", "[::1]"])
def test_a_proxy_is_not_asked_for_this_machine_either(
    server: LfsServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """It resolves what it is given, and may be on this machine."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    reach = Reach("192.0.2.1", False)
    with pytest.raises(NotAllowed), request("GET", f"http://{host}/x", {}, reach, Line(), seconds=5):
        pass


def test_nothing_without_tls_for_an_upstream_with_tls(server: LfsServer) -> None:
    """An http address is refused, whoever names it."""
    reach = Reach("127.0.0.1", is_secure=True)
    with pytest.raises(NotAllowed), request("GET", f"http://127.0.0.1:{server.port}/", {}, reach, Line(), seconds=5):
        pass


def test_an_answer_that_is_none(lab: LfsLab, server: LfsServer) -> None:
    """Objects that are missing, malformed or of another size are errors of theirs."""
    repo = stored(server)
    answers: list[Any] = [[], {}, {"objects": 3}, {"objects": [3]}, {"objects": [{"oid": POINTER.oid, "actions": []}]}]
    for answer in answers:

        def instead(_: object, answer: Any = answer) -> Any:
            return answer

        server.faults.answer = instead
        lab.again()
        failure(lab, repo)
    server.faults.answer = None
    server.faults.header = {"X": "a\nb"}
    lab.again()
    assert "malformed header" in failure(lab, repo).message


def test_certificates_are_checked_as_git_does(
    lab: LfsLab, server: LfsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority that the environment names for git is trusted here, too; others are not."""
    stored(server)
    certificate = make_certificate(tmp_path, "own")
    with TlsFront(server.port, certificate) as front:
        repo = repo_of(front.url(WIDGETS))
        server.faults.href = lambda name, oid: front.url(f"objects/{name}/{oid}")
        assert "certificate" in failure(lab, repo).message
        lab.again()
        monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate.cert))
        assert lab.run(lab.bytes_of(repo, POINTER)) == DATA
        lab.objects.stock.purge(WIDGETS)
        server.faults.href = None
        assert "without TLS" in failure(lab, repo).message


# Whose it is


def test_an_object_is_only_where_it_belongs(lab: LfsLab, server: LfsServer) -> None:
    """What a private repository has cannot be had through an open one."""
    secret, repo = stored(server, SECRET), repo_of(server.url(WIDGETS))
    lab.run(lab.objects.fetch(secret, [POINTER]))
    assert lab.objects.path_if_here(secret, POINTER.oid) is not None
    assert isinstance(failure_of_open(lab, repo), NotFound)


def failure_of_open(lab: LfsLab, repo: Repo) -> GitmirrorError:
    """Why an object cannot be had that another repository has."""
    with pytest.raises(GitmirrorError) as raised:
        lab.run(lab.bytes_of(repo, POINTER))
    return raised.value


def test_a_name_that_got_another_upstream(lab: LfsLab, server: LfsServer) -> None:
    """What was kept under the name is of the other one, and goes."""
    before = stored(server)
    lab.run(lab.objects.fetch(before, [POINTER]))
    now = repo_of(server.url("acme/elsewhere"))
    for objects in (lab.objects, lab.again()):
        assert objects.path_if_here(now, POINTER.oid) is None
    assert not os.path.exists(lab.lab.layout.lfs / WIDGETS)
