"""Notes come with a push, attachments by PUT; both stand in the session, end with their turn and survive a kill."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.core.layout import Layout
from appliance.core.recording.attachments import LARGEST, OPEN_FOR
from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, Book, new_session, record_turn
from tests.serving.conftest import Node, commit_turn
from tests.support.gitutil import git, git_result, wait_until
from tests.support.serve import Serve

NOTE = "gitmirror.note="


@pytest.fixture(scope="module")
def guest(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest's workspace."""
    return node.guest(tmp_path_factory.mktemp("guest") / "work")


def put(
    serve: Serve,
    session: str,
    commit: str,
    name: str,
    body: bytes | Iterator[bytes] = b"",
    method: str = "PUT",
    **more: str,
) -> tuple[int, str]:
    """One request to attach; returns the status and the text."""
    split = urlsplit(serve.http_url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=30)
    headers = {key.replace("_", "-"): value for key, value in more.items()}
    connection.request(method, f"/{WIDGETS}/agents/{session}/{commit}/attachments/{name}", body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def files_of(serve: Serve) -> set[str]:
    """Every file of an attachment, and of an upload that is not finished."""
    layout = Layout(serve.state)
    found = [*layout.attachments.rglob("*"), *layout.uploads.rglob("*")]
    return {str(path.relative_to(serve.state)) for path in found if path.is_file()}


def shown(node: Node, session: str) -> list[dict[str, Any]]:
    """The turns in `session show --json`."""
    found: list[dict[str, Any]] = json.loads(node.serve.here("session", "show", WIDGETS, session, "--json"))["turns"]
    return found


def push_noted(guest: Path, session: str, *options: str, url: str = "origin") -> tuple[int, str]:
    """Pushes a new turn with push options; returns git's exit code and what it said."""
    commit_turn(guest, f"{session} {options[:1]}")
    words = [word for option in options for word in ("-o", option)]
    code, _, said = git_result("push", "--porcelain", *words, url, f"+HEAD:{AGENTS}{session}", cwd=guest)
    return code, said


@pytest.mark.parametrize("protocol", ["git", "http"])
@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_notes_go_with_a_push(node: Node, guest: Path, protocol: str, version: str) -> None:
    """Over both protocols, in each version; options that are no notes are ignored, the last of two counts."""
    session, address = new_session(), {"git": node.serve.git_url, "http": node.serve.http_url}[protocol]
    git("config", "protocol.version", version, cwd=guest)
    code, said = push_noted(
        guest, session, f"{NOTE}model=a", f"{NOTE}model=b=c", f"{NOTE}empty=", "ci.skip", f"{NOTE}x=ä \x1b[31m",
        url=f"{address}/{WIDGETS}",
    )  # fmt: skip
    assert code == 0, said
    assert shown(node, session)[0]["notes"] == {"empty": "", "model": "b=c", "x": "ä \x1b[31m"}
    text = node.serve.here("session", "show", WIDGETS, session)
    assert "turn 1  note model: b=c" in text and "\x1b" not in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([f"{NOTE}no-equals"], "is not KEY=VALUE"),
        ([f"{NOTE}a b=c"], "is not KEY=VALUE"),
        ([f"{NOTE}k={'x' * 4097}"], "k has 4097 bytes, at most 4096 are allowed"),
        ([f"{NOTE}k{number}=" for number in range(65)], "there are more than 64"),
        ([f"any{number}" for number in range(257)], "more than 256 push options"),
    ],
)
def test_notes_that_break_a_rule_are_refused(node: Node, guest: Path, options: list[str], reason: str) -> None:
    """With the reason, before anything is recorded."""
    session = new_session()
    code, said = push_noted(guest, session, *options)
    assert code == 1 and reason in said
    with Book(node.serve) as book:
        assert book.session(session) is None


def test_the_largest_notes_fit(node: Node, guest: Path) -> None:
    """64 of 4 KiB each."""
    session = new_session()
    code, said = push_noted(guest, session, *(f"{NOTE}k{number}={'x' * 4096}" for number in range(64)))
    assert code == 0, said
    assert set(shown(node, session)[0]["notes"].values()) == {"x" * 4096}


def test_notes_are_found_and_end_with_their_session(node: Node, guest: Path) -> None:
    """`sessions --grep` finds them; `session drop` removes them."""
    session = new_session()
    assert push_noted(guest, session, f"{NOTE}ticket=Zwiebel-{session}")[0] == 0

    def search() -> Any:
        return json.loads(node.serve.here("sessions", "--grep", f"zwiebel-{session}", "--json"))

    found = wait_until(search, message="the turn is indexed")
    assert [row["session"] for row in found] == [session]
    node.serve.cli("session", "drop", WIDGETS, session, "--yes")
    with Book(node.serve) as book, book.stores.database.reading() as connection:
        assert not list(connection.query("SELECT * FROM turn_notes WHERE value LIKE ?", [f"%{session}%"]))


def test_an_attachment_is_kept_and_read_back(node: Node, guest: Path, tmp_path: Path) -> None:
    """201, 200 for the same again, 409 for other bytes; in the listing, by the command, in the log."""
    session, body = new_session(), bytes(range(256)) * 1000
    commit = record_turn(guest, session, "one")
    digest = hashlib.sha256(body).hexdigest()
    assert put(node.serve, session, commit, "a.bin", body)[0] == 201
    assert put(node.serve, session, commit, "a.bin", body)[0] == 200
    status, text = put(node.serve, session, commit, "a.bin", b"other")
    assert status == 409 and "has another attachment a.bin" in text
    assert put(node.serve, session, commit, "chunked", iter([b"one", b"two"]))[0] == 201
    assert put(node.serve, session, commit, "empty", b"")[0] == 201
    [turn] = shown(node, session)
    assert turn["attachments"][0] == {"name": "a.bin", "size": 256_000, "sha256": digest}
    assert [file["name"] for file in turn["attachments"]] == ["a.bin", "chunked", "empty"]
    assert f"attachment a.bin: 250 KiB, sha256 {digest}" in node.serve.here("session", "show", WIDGETS, session)
    output = tmp_path / "out"
    node.serve.here("session", "attachment", WIDGETS, session, "a.bin", "-o", str(output))
    assert output.read_bytes() == body
    with Book(node.serve) as book:
        events = [event for event in book.stores.audit.events() if event["digest"] == digest]
        assert [(event["kind"], event["session"], event["new"]) for event in events] == [("note", session, commit)]
        assert book.stores.audit.verify().broken is None
        assert [entry["reason"] for entry in book.stores.audit.entries(session=session)] == [None]
    assert put(node.serve, session, commit, "a.bin", method="GET")[0] == 405


def test_a_later_turn_of_the_same_commit_takes_it(node: Node, guest: Path) -> None:
    """The newest turn with that commit; without --turn the command gives that of the newest turn that has one."""
    session = new_session()
    first = record_turn(guest, session, "one")
    record_turn(guest, session, "two")
    git("push", "--quiet", "--force", "origin", f"{first}:{AGENTS}{session}", cwd=guest)
    assert put(node.serve, session, first, "n", b"newest")[0] == 201
    assert [len(turn["attachments"]) for turn in shown(node, session)] == [0, 0, 1]


@pytest.mark.parametrize(
    "name", [".hidden", "..", "a%2Fb", "a%00b", "a%0Ab", "%2e%2e%2fx", "ä", "x" * 129, "%20", "a%5Cb"]
)
def test_a_name_is_plain(node: Node, guest: Path, name: str) -> None:
    """No path, nothing hidden, nothing long; and nothing is written."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    before = files_of(node.serve)
    split = urlsplit(node.serve.http_url)
    path = f"/{WIDGETS}/agents/{session}/{commit}/attachments/{name}".encode()
    with socket.create_connection((split.hostname or "", split.port or 0), timeout=10) as sock:
        sock.sendall(b"PUT %s HTTP/1.1\r\nHost: m\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx" % path)
        status = int(sock.makefile("rb").readline().split()[1])
    assert status in (400, 404)
    assert files_of(node.serve) == before


def test_only_to_a_turn_that_is_there(node: Node, guest: Path) -> None:
    """Not to another commit, nor in another session, nor in an invalid one."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    assert put(node.serve, session, "1" * 40, "n", b"x")[0] == 404
    assert put(node.serve, new_session(), commit, "n", b"x")[0] == 404
    assert put(node.serve, "a..b", commit, "n", b"x")[0] == 403
    assert put(node.serve, session, commit, "n", b"x")[0] == 201


def test_what_is_too_large_is_refused(node: Node, guest: Path) -> None:
    """By its length before it is read, in chunks as soon as it is more; the turn's own limits too."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    split = urlsplit(node.serve.http_url)
    with socket.create_connection((split.hostname or "", split.port or 0), timeout=10) as sock:
        path = f"/{WIDGETS}/agents/{session}/{commit}/attachments/big"
        head = f"PUT {path} HTTP/1.1\r\nHost: m\r\nContent-Length: {LARGEST + 1}\r\nExpect: 100-continue\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")
    with socket.create_connection((split.hostname or "", split.port or 0), timeout=30) as sock:
        sock.sendall(f"PUT {path} HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(LARGEST // 2**20 + 1):
            sock.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
        assert sock.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")
    for number in range(4):
        assert put(node.serve, session, commit, f"n{number}", bytes([number]) * LARGEST)[0] == 201
    status, text = put(node.serve, session, commit, "more", b"x")
    assert status == 413 and "64.0 MiB together" in text
    assert not list(Layout(node.serve.state).uploads.iterdir())


def test_at_most_so_many_of_a_turn(node: Node, guest: Path) -> None:
    """64."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    assert {put(node.serve, session, commit, f"n{number}", b"x")[0] for number in range(64)} == {201}
    status, text = put(node.serve, session, commit, "one-more", b"x")
    assert status == 413 and "no more are accepted" in text


def test_two_at_once_for_one_name(node: Node, guest: Path) -> None:
    """One of them is kept, the other is refused, and nothing of it is left."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    ready, told = threading.Barrier(2), list[int]()

    def body(fill: bytes) -> Iterator[bytes]:
        yield fill * 1000
        ready.wait(20)
        yield fill

    threads = [
        threading.Thread(target=lambda fill=fill: told.append(put(node.serve, session, commit, "n", body(fill))[0]))
        for fill in (b"a", b"b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(told) == [201, 409]
    [turn] = shown(node, session)
    held = {path for path in files_of(node.serve) if f"/{turn['id']}/" in path}
    assert held == {f"attachments/{WIDGETS}/{turn['id']}/{turn['attachments'][0]['sha256']}"}


def test_one_that_breaks_off_leaves_nothing(node: Node, guest: Path) -> None:
    """A guest that is gone in the middle of its body."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    split = urlsplit(node.serve.http_url)
    with socket.create_connection((split.hostname or "", split.port or 0), timeout=10) as sock:
        path = f"/{WIDGETS}/agents/{session}/{commit}/attachments/half"
        sock.sendall(f"PUT {path} HTTP/1.1\r\nHost: m\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        wait_until(
            lambda: any("uploads" in path for path in files_of(node.serve)), message="the files are as they should be"
        )
    wait_until(
        lambda: not any("uploads" in path for path in files_of(node.serve)), message="the files are as they should be"
    )
    assert shown(node, session)[0]["attachments"] == []


def test_only_for_an_hour(node: Node, guest: Path) -> None:
    """After that a turn is what it is."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    with Book(node.serve) as book, book.stores.database.writing() as connection:
        connection.execute(
            "UPDATE turns SET at = strftime('%Y-%m-%dT%H:%M:%f', at, ?) || 'Z' WHERE session = ?",
            [f"-{OPEN_FOR + 1} seconds", session],
        )
    status, text = put(node.serve, session, commit, "n", b"x")
    assert status == 403 and "ago" in text


@pytest.mark.slow
def test_a_damaged_one_is_not_given(node: Node, guest: Path) -> None:
    """The command says so, and so does the API."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    put(node.serve, session, commit, "n", b"as it was")
    [turn] = shown(node, session)
    path = Layout(node.serve.state).attachments / WIDGETS / str(turn["id"]) / turn["attachments"][0]["sha256"]
    path.write_bytes(b"as it is.")
    done = node.serve.cli("session", "attachment", WIDGETS, session, "n", check=False)
    assert done.returncode == 1 and "is damaged" in done.stderr and done.stdout == ""
    route = f"/v1/repos/{WIDGETS}/sessions/{session}/turns/1/attachments/n"
    done = node.serve.cli("api", "GET", route, check=False)
    assert done.returncode == 1 and "is damaged" in done.stdout + done.stderr
    path.write_bytes(b"as it was")
    assert node.serve.cli("api", "GET", route).stdout == "as it was"
    assert node.serve.cli("session", "attachment", WIDGETS, session, "n").stdout == "as it was"


def test_files_end_with_their_session(node: Node, guest: Path) -> None:
    """`session drop` removes them at once."""
    session = new_session()
    commit = record_turn(guest, session, "one")
    put(node.serve, session, commit, "n", b"x")
    [turn] = shown(node, session)
    assert any(f"/{turn['id']}/" in path for path in files_of(node.serve))
    node.serve.cli("session", "drop", WIDGETS, session, "--yes")
    assert not any(f"/{turn['id']}/" in path for path in files_of(node.serve))


@pytest.mark.slow
def test_a_full_store_takes_no_more(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """`max_bytes` counts attachments, and a restart counts them again."""
    node = make_node(max_bytes="1MiB")
    guest = node.guest(tmp_path / "guest")
    commit = record_turn(guest, "s", "one")
    assert put(node.serve, "s", commit, "n", bytes(2**20))[0] == 507
    assert put(node.serve, "s", commit, "n", bytes(2**19))[0] == 201
    assert node.serve.status()["storage"]["by"]["recordings"] >= 2**19
    node.serve.restart()
    assert put(node.serve, "s", commit, "m", bytes(2**19))[0] == 507
    node.serve.cli("remove-repo", WIDGETS, "--purge", "--yes", check=False)


@pytest.mark.slow
def test_a_kill_leaves_nothing_half(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """kill -9 in the middle of a body, and a file whose row was never written: gone after the start."""
    node = make_node()
    guest = node.guest(tmp_path / "guest")
    commit_turn(guest, "one")
    git("push", "--quiet", "-o", f"{NOTE}k=v", "origin", f"+HEAD:{AGENTS}s", cwd=guest)
    commit = git("rev-parse", "HEAD", cwd=guest)
    put(node.serve, "s", commit, "kept", b"kept")
    split = urlsplit(node.serve.http_url)
    with socket.create_connection((split.hostname or "", split.port or 0), timeout=10) as sock:
        path = f"/{WIDGETS}/agents/s/{commit}/attachments/half"
        sock.sendall(f"PUT {path} HTTP/1.1\r\nHost: m\r\nContent-Length: 1000\r\n\r\nhalf".encode())
        wait_until(
            lambda: any("uploads" in path for path in files_of(node.serve)), message="the files are as they should be"
        )
        node.serve.kill()
    [turn] = shown(node, "s")
    stray = Layout(node.serve.state).attachments / WIDGETS / str(turn["id"]) / ("0" * 64)
    stray.write_bytes(b"stray")
    node.serve.start()
    expected = {f"attachments/{WIDGETS}/{turn['id']}/{hashlib.sha256(b'kept').hexdigest()}"}
    wait_until(lambda: files_of(node.serve) == expected, message="the files are as they should be")
    [turn] = shown(node, "s")
    assert turn["notes"] == {"k": "v"} and [file["name"] for file in turn["attachments"]] == ["kept"]
    assert put(node.serve, "s", commit, "half", b"whole")[0] == 201


@pytest.mark.slow
def test_other_guests_may_not(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A turn of a known guest takes attachments of that guest alone, and its session is its own."""
    node = make_node(writers="guests")
    token = json.loads(
        node.serve.cli(
            "api",
            "POST",
            "/v1/guests",
            "--input",
            "-",
            input=json.dumps({"name": "vm-7", "sessions": ["mine"], "token": True}),
        ).stdout
    )["token"]
    other = json.loads(
        node.serve.cli(
            "api",
            "POST",
            "/v1/guests",
            "--input",
            "-",
            input=json.dumps({"name": "vm-8", "sessions": ["mine", "other"], "token": True}),
        ).stdout
    )["token"]
    guest = node.guest(tmp_path / "guest")
    commit = commit_turn(guest, "one")
    git(
        "-c",
        f"http.extraHeader=Authorization: Bearer {token}",
        "push",
        "--quiet",
        f"{node.serve.http_url}/{WIDGETS}",
        f"+HEAD:{AGENTS}mine",
        cwd=guest,
    )
    assert put(node.serve, "mine", commit, "n", b"x")[0] == 403
    status, text = put(node.serve, "mine", commit, "n", b"x", Authorization=f"Bearer {other}")
    assert status == 403 and "another guest" in text
    status, text = put(node.serve, "other", commit, "n", b"x", Authorization=f"Bearer {token}")
    assert status == 403 and "may not write" in text
    assert put(node.serve, "mine", commit, "n", b"x", Authorization=f"Bearer {token}")[0] == 201
