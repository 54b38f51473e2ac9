"""A known guest that wants to write another's session, or to be another: refused, told why, logged under its name."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.access.conftest import NOWHERE, OTHER, SECRET
from tests.conftest import WIDGETS
from tests.known.conftest import KnownNode, Road, from_address, work_of
from tests.serving.conftest import audit
from tests.serving.fetch.test_http_push import report_of
from tests.serving.fetch.wire import http_ask, post_headers
from tests.serving.push.test_hook import push_past_the_relay
from tests.support.gitutil import commit_files, git, git_result
from tests.support.pkt import CAPABILITIES, EMPTY_PACK, FLUSH, ZERO, daemon_request, pkt, push_bytes, raw_push, read_pkt

OWN, PATTERN, THEIRS = "refs/agents/fix-dns", "refs/agents/try-", "refs/agents/tidy-up"
MAY = "this guest may only write refs/agents/fix-dns, refs/agents/try-*"
ADDRESS = "127.0.0.7"
HEADERS = post_headers("git-receive-pack", version=0)
PROTOCOLS = pytest.mark.parametrize("protocol", ["git", "http"])


class Cast:
    """The guests: `vm-7` is who attacks, by a socket; `vm-8` is whose session it wants; `vm-9` comes by an address."""

    def __init__(self, node: KnownNode) -> None:
        self.node = node
        node.add("vm-7", sessions=["fix-dns", "try-*"], repos=[SECRET])
        self.token = node.add("vm-8", sessions=["tidy-up"], repos=[OTHER], token=True)["token"]
        node.add("vm-9", sessions=["by-address"], repos=[SECRET], only=True, address=ADDRESS)
        node.add("vm-10", sessions=["by-address-too"], address="127.0.0.10")
        self.road, self.address = node.by_socket("vm-7"), node.by_address(ADDRESS)
        self.open_address = node.by_address("127.0.0.10")
        self.stranger = node.by_address("127.0.0.1")

    def push(self, protocol: str, *commands: tuple[str, str, str], road: Any = None, **more: Any) -> Any:
        """A push by hand, of the attacker unless `road` is another's.

        Returns whether it was accepted, each ref's report, and what the terminal shows.
        """
        way: Road = road or self.road
        capabilities: str = more.pop("capabilities", CAPABILITIES)
        headers = HEADERS | {name.replace("_", "-"): text for name, text in more.items()}
        if protocol == "git":
            answer = raw_push(*way.git.address, f"/{WIDGETS}", commands, capabilities=capabilities)
            return answer.accepted, answer.report, answer.messages
        body = push_bytes(commands, EMPTY_PACK, capabilities)
        told = report_of(http_ask(f"{way.http_url}/{WIDGETS}/git-receive-pack", "POST", headers, body))
        return told[0] == "ok" and set(told[1].values()) == {"ok"}, told[1], told[2]


@pytest.fixture(scope="module")
def cast(node: KnownNode) -> Iterator[Cast]:
    """The guests of this module's node."""
    yield Cast(node)


def assert_refused(cast: Cast, told: Any, before: dict[str, str], who: str = "vm-7") -> None:
    accepted, _, messages = told
    assert not accepted
    assert f"this is the guest {who}" in messages, messages
    assert cast.node.refs_of_agents() == before
    # After the first twenty, refusals of a guest share a row.
    assert any((row["guest"], row["verdict"]) == (who, "rejected") for row in audit(cast.node.serve))
    assert not any(row["guest"] == "vm-8" for row in audit(cast.node.serve)), "nothing was logged as another's"


@PROTOCOLS
def test_its_own_sessions_are_written(cast: Cast, protocol: str) -> None:
    """So what is refused below is refused for its name alone."""
    for ref in (OWN, f"{PATTERN}{protocol}", PATTERN):
        old = cast.node.refs_of_agents().get(ref, ZERO)
        parent = git("rev-parse", "main~1", cwd=cast.node.mirror)
        new = cast.node.tip if old != cast.node.tip else parent
        assert cast.push(protocol, (old, new, ref))[0], ref
        row = cast.node.newest()
        assert (row["guest"], row["client"], row["verdict"], row["ref"]) == ("vm-7", "unix:vm-7", "accepted", ref)


TRICKS = {
    "another's": [THEIRS],
    "beside its own": [OWN, THEIRS],
    "before its own": [THEIRS, f"{PATTERN}new"],
    "its own twice": [f"{PATTERN}twice", f"{PATTERN}twice"],
    "longer than its own": ["refs/agents/fix-dns-2"],
    "shorter than its own": ["refs/agents/fix-dn"],
    "shorter than its pattern": ["refs/agents/try"],
    "other case": ["refs/agents/Fix-dns"],
    "the pattern itself": ["refs/agents/try-*"],
    "a star": ["refs/agents/*"],
    "a space": ["refs/agents/fix-dns tidy-up"],
    "a line break": ["refs/agents/fix-dns\nrefs/agents/tidy-up"],
    "out of its own": ["refs/agents/fix-dns/../tidy-up"],
    "below its own": ["refs/agents/fix-dns/x"],
    "empty part": ["refs/agents//tidy-up"],
    "dots in its pattern": ["refs/agents/try-../tidy-up"],
    "two dots": ["refs/agents/try-..x"],
    "lock": ["refs/agents/fix-dns.lock"],
    "full width": ["refs/agents/try-\uff41"],
    "a branch": ["refs/heads/try-x"],
    "a turn": ["refs/gitmirror/turns/1"],
    "the archive": ["refs/gitmirror/archive/tidy-up"],
    "17 of its own": [f"{PATTERN}{number}" for number in range(17)],
}


@PROTOCOLS
@pytest.mark.parametrize("refs", TRICKS.values(), ids=TRICKS.keys())
def test_every_trick_is_refused(cast: Cast, protocol: str, refs: list[str]) -> None:
    """Whatever else is in the push; nothing of it is applied, and the guest reads what it may write."""
    before = cast.node.refs_of_agents()
    commands = [(before.get(ref, ZERO), cast.node.tip, ref) for ref in refs]
    told = cast.push(protocol, *commands)
    assert_refused(cast, told, before)
    assert "allowed here: git push MIRROR HEAD:REF, where REF is refs/agents/fix-dns, refs/agents/try-*" in told[2]


@PROTOCOLS
@pytest.mark.parametrize("more", ["atomic", "push-options", "atomic push-options"])
def test_no_capability_helps(cast: Cast, protocol: str, more: str) -> None:
    """Nor do push options that name a session or a guest."""
    before = cast.node.refs_of_agents()
    told = cast.push(protocol, (ZERO, cast.node.tip, THEIRS), capabilities=f"{CAPABILITIES} {more}")
    assert_refused(cast, told, before)


@PROTOCOLS
@pytest.mark.parametrize("version", [0, 1, 2])
def test_git_itself_is_refused_in_every_version(cast: Cast, tmp_path: Path, protocol: str, version: int) -> None:
    """On the guest's terminal, with chunks and with options; then its own session is written as before."""
    node, road = cast.node, cast.road
    work = work_of(road, tmp_path / "work", protocol)
    commit_files(work, {"turn.txt": f"{protocol} {version}"}, "A turn")
    before = node.refs_of_agents()
    options = ["-c", f"protocol.version={version}", "-c", "http.postBuffer=1024"]
    for more in ([], ["--force"], ["--atomic"]):
        targets = [f"HEAD:{THEIRS}", "HEAD:refs/agents/fix-dns-2"] if more else [f"HEAD:{THEIRS}"]
        code, _, said = git_result(*options, "push", *more, "origin", *targets, cwd=work)
        assert code == 1 and re.search(rf"remote: gitmirror: refused {THEIRS}: {re.escape(MAY)}", said), said
    assert node.refs_of_agents() == before
    # More than twenty refusals a minute share a row, so there may be none of this very push.
    assert {row["guest"] for row in audit(node.serve) if row["session"] == "tidy-up"} <= {"vm-7"}
    git(*options, "push", "--quiet", "--force", "origin", f"HEAD:{PATTERN}git-{version}", cwd=work)


def test_a_connection_that_wrote_its_own_writes_no_other(cast: Cast) -> None:
    """HTTP keeps connections: each request is judged by itself, and no header of it says who sends it."""
    host, port = cast.road.http.address
    with socket.create_connection((host, port), 60) as sock:
        for ref, expected in (
            (f"{PATTERN}kept", b"ok refs/"),
            (THEIRS, b"ng refs/"),
            (f"{PATTERN}kept-2", b"ok refs/"),
        ):
            body = push_bytes([(cast.node.refs_of_agents().get(ref, ZERO), cast.node.tip, ref)])
            lines = [f"POST /{WIDGETS}/git-receive-pack HTTP/1.1", "Host: vm-8", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {text}" for name, text in HEADERS.items()]
            sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            assert expected in _answer(sock), ref
    assert THEIRS not in cast.node.refs_of_agents()


def _answer(sock: socket.socket) -> bytes:
    """One answer of a kept connection, sent in chunks or with its length."""
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


@pytest.mark.parametrize("sessions", ["", "fix-dns", "fix-dns try-*", "tidy", "Tidy-up", "*-up"])
def test_the_hook_alone_refuses_the_session_of_another(cast: Cast, sessions: str) -> None:
    """The second guard does not trust the first."""
    hooked: Any = cast.node
    before = cast.node.refs_of_agents()
    said = push_past_the_relay(hooked, THEIRS, GITMIRROR_SESSIONS=sessions)
    assert f"ng {THEIRS} pre-receive hook declined" in said
    assert cast.node.refs_of_agents() == before


def spoofs(cast: Cast) -> list[dict[str, str]]:
    """Headers that claim to be `vm-8`."""
    basic = base64.b64encode(f"vm-8:{cast.token}".encode()).decode()
    told = [{name: ADDRESS} for name in ("X_Forwarded_For", "X_Real_IP", "Client_IP", "True_Client_IP", "Remote_Addr")]
    told += [{"Forwarded": f"for={ADDRESS}"}, {"X_Gitmirror_Guest": "vm-8"}, {"Guest": "vm-8"}]
    return [*told, {"Authorization": f"Bearer {cast.token}"}, {"Authorization": f"Basic {basic}"}]


def test_no_header_makes_a_guest_another(cast: Cast) -> None:
    """Not even the token of another: the way that it came counts, by a socket and by an address."""
    before = cast.node.refs_of_agents()
    for headers in spoofs(cast):
        assert_refused(cast, cast.push("http", (ZERO, cast.node.tip, THEIRS), **headers), before)
        told = cast.push("http", (ZERO, cast.node.tip, THEIRS), road=cast.open_address, **headers)
        assert_refused(cast, told, before, "vm-10")


def test_no_header_makes_a_stranger_known(cast: Cast) -> None:
    """Without a token it stays unknown, and reads how it becomes known."""
    before = cast.node.refs_of_agents()
    tried: list[tuple[str, dict[str, str]]] = [("git", {}), ("http", {})]
    tried += [("http", headers) for headers in spoofs(cast) if "Authorization" not in headers]
    for protocol, headers in tried:
        accepted, _, said = cast.push(protocol, (ZERO, cast.node.tip, THEIRS), road=cast.stranger, **headers)
        assert not accepted and "the mirror does not know this guest" in said and "`guest add NAME" in said
    assert cast.node.refs_of_agents() == before


@pytest.mark.parametrize("user", ["vm-8", "vm-8:x"])
def test_no_name_in_a_url_makes_a_guest_another(cast: Cast, tmp_path: Path, user: str) -> None:
    """Nor does a user name, a path, or what the first packet of git:// says besides."""
    work = work_of(cast.road, tmp_path / "work")
    before = cast.node.refs_of_agents()
    host, port = cast.road.http.address
    for url in (f"http://{user}@{host}:{port}/{WIDGETS}", f"http://{host}:{port}/vm-8/{WIDGETS}"):
        code, _, said = git_result("push", url, f"HEAD:{THEIRS}", cwd=work, env=None)
        assert code != 0, said
    for extra in (["guest=vm-8"], ["version=1", "user=vm-8"], [f"remote_addr={ADDRESS}"]):
        answer = raw_push(*cast.road.git.address, f"/{WIDGETS}", [(ZERO, cast.node.tip, THEIRS)], extra=extra)
        assert not answer.accepted and MAY in answer.messages
    assert cast.node.refs_of_agents() == before


def test_a_line_of_the_proxy_protocol_is_no_request(cast: Cast) -> None:
    """Version 1 and 2 of it: whoever sends it gets an error, on both ports."""
    before = cast.node.refs_of_agents()
    first = f"PROXY TCP4 {ADDRESS} 127.0.0.1 1 9418\r\n".encode()
    second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x07\x7f\0\0\x01\0\1\x24\xca"
    request = pkt(f"git-receive-pack /{WIDGETS}\0host=x\0")
    for line in (first, second):
        for address in (cast.stranger.git.address, cast.stranger.http.address):
            with socket.create_connection(address, 60) as sock:
                sock.sendall(line + request)
                sock.shutdown(socket.SHUT_WR)
                data = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))  # type: ignore[misc]
                assert b"refs/heads/main" not in data and (b"ERR" in data or b"400" in data or not data)
    assert cast.node.refs_of_agents() == before


# What it reads

FETCH = pkt("command=ls-refs\n") + FLUSH
POST = "Content-Type: application/x-git-upload-pack-request\r\nContent-Length: {size}\r\nGit-Protocol: version=2\r\n"
ROUTES = [
    *[("GET", "/info/refs?service=git-upload-pack", f"Git-Protocol: version={version}\r\n", b"") for version in "02"],
    ("GET", "/info/refs?service=git-receive-pack", "", b""),
    ("POST", "/git-upload-pack", POST.format(size=len(FETCH)), FETCH),
    ("GET", "/workspace.tar", "", b""),
    ("GET", "/freshness", "", b""),
]


def raw(address: tuple[str, int], path: str, route: tuple[str, str, str, bytes], more: str = "") -> bytes:
    """All bytes of an answer."""
    method, rest, headers, body = route
    head = f"{method} {path}{rest} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n{headers}{more}\r\n"
    with socket.create_connection(address, 60) as sock:
        sock.sendall(head.encode() + body)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def git_error(address: tuple[str, int], path: str, version: list[str]) -> bytes:
    """The first packet of an answer over git://."""
    with daemon_request(*address, "git-upload-pack", path, version) as sock:
        return read_pkt(sock) or b""


@pytest.mark.slow
def test_a_guest_reads_what_it_was_given_and_no_other(cast: Cast) -> None:
    """Of the others it learns nothing: byte by byte as for what nobody registered. With --only, open ones too."""
    host = f"127.0.0.1:{cast.node.upstream.port}"
    for road, given, others in (
        (cast.road, (SECRET, WIDGETS), (OTHER,)),
        (cast.address, (SECRET,), (OTHER, WIDGETS)),
        (cast.stranger, (WIDGETS,), (OTHER, SECRET)),
    ):
        for form in ("/{}", "/{}.git", f"/{host}/{{}}", "/127.0.0.1/{}"):
            for name in given:
                for version in ([], ["version=2"]):
                    assert not git_error(road.git.address, form.format(name), version).startswith(b"ERR")
                for route in ROUTES:
                    assert b" 200 " in raw(road.http.address, form.format(name), route).splitlines()[0], (name, route)
            for name in others:
                nowhere = (NOWHERE + "xxx")[: len(name)]
                told = [
                    [raw(road.http.address, form.format(each), route).replace(each.encode(), b"N") for route in ROUTES]
                    + [git_error(road.git.address, form.format(each), []).replace(each.encode(), b"N")]
                    for each in (name, nowhere)
                ]
                assert told[0] == told[1], (name, form)
                assert not any(b" 200 " in answer.splitlines()[0] for answer in told[0][:-1])


def test_a_token_is_known_over_http_as_bearer_and_as_password(cast: Cast) -> None:
    """By whoever comes no known way. A token that nobody has changes nothing."""
    basic = base64.b64encode(f"anybody:{cast.token}".encode()).decode()
    other = ROUTES[0]
    for authorization in (f"Bearer {cast.token}", f"Basic {basic}", f"bearer  {cast.token}"):
        more = f"Authorization: {authorization}\r\n"
        assert b" 200 " in raw(cast.stranger.http.address, f"/{OTHER}", other, more).splitlines()[0]
        assert b" 404 " in raw(cast.stranger.http.address, f"/{SECRET}", other, more).splitlines()[0]
        # A guest that is known by its way stays itself: it does not read what the token's guest reads.
        assert b" 404 " in raw(cast.road.http.address, f"/{OTHER}", other, more).splitlines()[0]
        told = cast.push("http", (ZERO, cast.node.tip, f"{THEIRS}-x"), road=cast.stranger, Authorization=authorization)
        assert "this is the guest vm-8" in told[2]
    wrong = "Authorization: Bearer gmg_" + "A" * 43 + "\r\n"
    assert b" 404 " in raw(cast.stranger.http.address, f"/{OTHER}", other, wrong).splitlines()[0]
    old = cast.node.refs_of_agents().get(THEIRS, ZERO)
    new = cast.node.tip if old == ZERO else git("rev-parse", "main~1", cwd=cast.node.mirror)
    told = cast.push("http", (old, new, THEIRS), road=cast.stranger, Authorization=f"Bearer {cast.token}")
    assert told[0], told
    assert (cast.node.newest()["guest"], cast.node.newest()["client"]) == ("vm-8", "127.0.0.1")


def test_an_address_is_only_that_of_who_has_it(cast: Cast) -> None:
    """From another address of the same machine nobody is this guest."""
    port = cast.node.serve.git_address[1]
    for address, known in ((ADDRESS, True), ("127.0.0.70", False), ("127.0.0.1", False)):
        with from_address(address, port)() as sock:
            sock.sendall(pkt(f"git-upload-pack /{SECRET}\0host=x\0"))
            assert (read_pkt(sock) or b"").startswith(b"ERR") is not known, address
