"""The first packet and the head of a push, held against what a real git sends on a real socket."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.models import RefCommand
from appliance.core.recording.policy import MOST_REFS
from appliance.core.serving.wire.pktline import PacketError
from appliance.core.serving.wire.requests import (
    KEPT_COMMANDS,
    LONGEST_COMMAND,
    MOST_COMMAND_BYTES,
    MOST_COMMANDS,
    MOST_SHALLOW,
    DaemonRequest,
    PushRequest,
    RequestError,
    parse_daemon_request,
)
from tests.serving.wire.wire import at, fed, listening, read_first_packet, recorded_push
from tests.support.gitutil import clean_env, commit_files, git, git_result
from tests.support.pkt import DELIM, EMPTY_PACK, FLUSH, ZERO, pkt, push_bytes
from tests.support.upstream import GitDaemonUpstream

OID = "1" * 40
OIDS = st.sampled_from([ZERO, OID])
COMMANDS = st.tuples(
    OIDS, OIDS, st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1, max_size=30)
)


def first_packet_of(
    *args: str, version: str = "2", env: Mapping[str, str] | None = None, host: str = "127.0.0.1"
) -> bytes:
    """What git sends first on git:// when it runs `args`, in which URL stands for a listening port."""
    seen: list[bytes] = []

    def record(connection: socket.socket) -> None:
        seen.append(read_first_packet(connection))
        connection.sendall(pkt("ERR enough"))

    with listening(record) as port:
        argv = [each.replace("URL", f"git://{host}:{port}") for each in args]
        code, _, _ = git_result("-c", f"protocol.version={version}", *argv, env=env)
    assert code != 0
    return seen[0]


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_what_git_sends_for_a_clone_is_understood(version: str, tmp_path: Path) -> None:
    """Service, path and protocol version, by each protocol version."""
    sent = first_packet_of("clone", "URL/acme/widgets", str(tmp_path / "c"), version=version)
    assert parse_daemon_request(sent) == DaemonRequest("git-upload-pack", "/acme/widgets", int(version))


@pytest.mark.parametrize(
    "path", ["/acme/widgets.git", "/github.com/acme/widgets", "/acme/widgets/", "/a b/c", "/a/%62"]
)
def test_what_git_sends_as_path_is_understood(path: str) -> None:
    """git decodes the URL itself: what comes is the path and no URL."""
    sent = first_packet_of("ls-remote", f"URL{path}")
    assert parse_daemon_request(sent).path == path.replace("%62", "b")


def test_what_git_sends_to_a_name_is_understood() -> None:
    """A host by name, and the virtual host that a setting says."""
    assert parse_daemon_request(first_packet_of("ls-remote", "URL/a/b", host="localhost")).path == "/a/b"
    env = clean_env(Path("/nonexistent"), GIT_OVERRIDE_VIRTUAL_HOST="mirror.example")
    assert parse_daemon_request(first_packet_of("ls-remote", "URL/a/b", env=env)).path == "/a/b"


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_what_git_sends_for_a_push_is_understood(version: str, widgets_bare: Path) -> None:
    """A push asks for version 1 at most: there is no v2 of it. git archive is another service."""
    sent = first_packet_of("push", "URL/acme/widgets", "main:refs/agents/s1", version=version, env=at(widgets_bare))
    assert parse_daemon_request(sent) == DaemonRequest("git-receive-pack", "/acme/widgets", int(version) % 2)
    sent = first_packet_of("archive", "--remote=URL/acme/widgets", "main", version=version)
    with pytest.raises(RequestError, match="git-upload-archive is not served here"):
        parse_daemon_request(sent)


UP = b"git-upload-pack "

ODD = {
    "empty": b"", "no path": b"git-upload-pack", "blank path": UP, "relative": UP + b"a/b\0host=h\0",
    "a newline in the path": UP + b"/a/b\n/c\0", "an escape": UP + b"/a/b\x1b[2J\0", "a DEL": UP + b"/a/\x7f\0",
    "Latin-1": UP + b"/caf\xe9\0host=h\0", "UTF-8": UP + "/café\0host=h\0".encode(), "no host": UP + b"/a\0port=1\0",
    "two hosts": UP + b"/a\0host=h\0host=i\0", "text behind the end": UP + b"/a\0host=h\0x", "four NULs": b"\0\0\0\0",
    "a newline at the end": UP + b"/a\0host=h\0\n", "NUL in the path": UP + b"/a\0/../b\0host=h\0",
    "capitals": b"GIT-UPLOAD-PACK /a\0", "no git": b"upload-pack /a\0",
    "HTTP": b"GET /a HTTP/1.1", "a tab": b"git-upload-pack\t/a\0", "two blanks": b"git-upload-pack  /a\0",
}  # fmt: skip


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD.keys())
def test_what_git_never_sends_is_refused(payload: bytes) -> None:
    """Reading is strict, because git daemon might read the same bytes differently."""
    with pytest.raises(RequestError, match="malformed request"):
        parse_daemon_request(payload)


SAID = {
    "nothing": b"", "a NUL": b"\0", "NULs": b"\0" * 20, "a host": b"\0host=h\0", "a host to the end": b"\0host=h",
    "no host": b"\0\0version=2\0", "no name": b"\0host=\0\0version=2\0", "capitals": b"\0HOST=h\0\0version=1\0",
    "two NULs at the end, as dulwich": b"\0host=h\0\0version=2\0\0", "five": b"\0host=h\0\0version=2\0\0\0\0\0",
    "NULs between": b"\0host=h\0\0\0\0version=2\0", "no NUL at the end": b"\0host=h\0\0version=2",
    "a host behind": b"\0host=h\0\0host=i\0version=1\0", "not ASCII": b"\0host=\xff\0\0version=2\0caf\xe9\0",
    "not quite": b"\0host=h\0\0version=2\xff\0", "by colons": b"\0host=h\0\0version=1:version=2\0",
    "a newline first": b"\n\0host=h\0\0version=2\0", "a newline alone": b"\n", "another": b"\0port=1\0",
    "two hosts": b"\0host=h\0host=i\0", "text behind": b"\0host=h\0x", "one NUL": b"\0host=h\0version=2\0",
    "newline behind": b"\0host=h\0\n", "another first": b"\0version=2\0host=h\0", "unknown": b"\0host=h\0\0version=9\0",
    "later ones": b"\0host=h\0\0object-format=sha1\0version=1\0", "twice": b"\0\0version=2\0version=1\0",
}  # fmt: skip


@pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())
def test_what_is_behind_the_path_is_read_as_git_daemon_reads_it(hub: GitDaemonUpstream, said: bytes) -> None:
    """Taken when git daemon takes it, in the same protocol version; refused when it closes the connection."""
    payload = UP + b"/acme/widgets" + said
    with socket.create_connection(("127.0.0.1", hub.port), timeout=60) as connection:
        connection.sendall(pkt(payload))
        answer = read_first_packet(connection)
    if not answer:
        with pytest.raises(RequestError, match="malformed request"):
            parse_daemon_request(payload)
        return
    version = int(answer[8:9]) if answer.startswith(b"version ") else 0
    assert parse_daemon_request(payload) == DaemonRequest("git-upload-pack", "/acme/widgets", version)


@pytest.mark.parametrize("service", ["git-upload-archive", "git-shell", "git-daemon", "git-x"])
def test_other_services_are_named_in_the_refusal(service: str) -> None:
    """What is served, so that the guest knows what to do instead."""
    with pytest.raises(RequestError, match=f"{service} is not served here, only fetch and push are"):
        parse_daemon_request(f"{service} /a/b\0host=h\0".encode())


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda rest: UP + b"/a\0host=h\0" + rest)))
@settings(max_examples=300)
def test_any_first_packet_is_understood_or_refused(payload: bytes) -> None:
    """Nothing else is raised; what is understood can be passed on in one packet, with one path and no NUL in it."""
    try:
        request = parse_daemon_request(payload)
    except RequestError:
        return
    assert request.path.startswith("/")
    assert request.path.isascii() and request.path.isprintable()
    assert request.version in (0, 1, 2)


@pytest.mark.parametrize(
    ("extra", "version"),
    [(b"", 0), (b"\0version=1\0", 1), (b"\0version=2\0", 2), (b"\0version=1\0version=2\0", 2), (b"\0version=3\0", 0),
     (b"\0version=22\0", 0), (b"\0color=red\0version=1\0", 1), (b"\0object-format=sha256\0", 0)],
)  # fmt: skip
def test_the_highest_version_that_is_known_holds(extra: bytes, version: int) -> None:
    """As git daemon does; other parameters are for later gits and do no harm."""
    assert parse_daemon_request(UP + b"/a\0host=h\0" + extra).version == version


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_replayed_packet_asks_for_the_mirrors_own_path(version: int) -> None:
    """The guest's path and host go no further. Extra parameters stand behind a second NUL (gitprotocol-pack)."""
    replayed = DaemonRequest("git-upload-pack", "/github.com/a/b", version).replay("/state/mirrors/a/b.git")
    extra = f"\0version={version}\0" if version else ""
    assert replayed == pkt(f"git-upload-pack /state/mirrors/a/b.git\0{extra}")


# The head of a push.


@pytest.mark.parametrize("depth", [(), ("--depth=1",)], ids=["full", "shallow"])
def test_what_git_sends_for_a_push_is_read_in_any_pieces(
    hub: GitDaemonUpstream, tmp_path: Path, depth: tuple[str, ...]
) -> None:
    """Commands, capabilities, what is passed on and what is left over: the same byte by byte and in one."""
    work = tmp_path / "work"
    git("clone", "--quiet", *depth, f"file://{hub.path('acme/widgets')}", str(work))
    tip = commit_files(work, {"new.txt": "new\n"}, "A turn")
    recorded = recorded_push(hub, work, "HEAD:refs/agents/s1", "HEAD:refs/agents/s2")
    whole = fed(recorded.up, len(recorded.up))
    assert whole.done and whole.fault is None and whole.total == 2
    assert whole.commands == [RefCommand(ZERO, tip, "refs/agents/s1"), RefCommand(ZERO, tip, "refs/agents/s2")]
    assert {"report-status-v2", "side-band-64k"} <= whole.capabilities
    assert whole.rest.startswith(b"PACK")
    assert bytes(whole.raw) + whole.rest == recorded.up
    assert (b"shallow " in whole.raw) == bool(depth)
    for size in (1, 3, 7, 64):
        request = fed(recorded.up, size)
        assert (request.commands, request.capabilities, request.raw) == (whole.commands, whole.capabilities, whole.raw)
        assert recorded.up.startswith(bytes(request.raw) + request.rest)


@pytest.mark.slow
@given(st.lists(COMMANDS, min_size=1, max_size=20), st.binary(max_size=50), st.integers(1, 100))
def test_any_commands_in_any_pieces_are_the_same(commands: list[tuple[str, str, str]], pack: bytes, size: int) -> None:
    """With odd ref names too: those are for the policy to refuse, not to be misread."""
    data = push_bytes(commands, pack)
    request = fed(data, size)
    assert [(each.old, each.new, each.ref) for each in request.commands] == commands
    assert request.total == len(commands)
    assert request.fault is None
    assert data.startswith(bytes(request.raw) + request.rest)


@given(st.binary(max_size=120), st.integers(1, 20))
@settings(max_examples=300)
def test_garbage_is_a_packet_error_or_a_fault(garbage: bytes, size: int) -> None:
    """Nothing else is raised, and nothing faultless comes out of what is no ref command."""
    try:
        request = fed(garbage, size)
    except PacketError:
        return
    assert not request.commands or request.fault or len(request.commands[0].ref) > 0


@pytest.mark.parametrize(
    "line",
    [b"hello", b"push-cert\0caps", b"a b", b"%s %s" % (OID.encode(), OID.encode()), b"x" * (LONGEST_COMMAND + 1)],
    ids=["a word", "a certificate", "two words", "no ref", "far too long"],
)
def test_what_is_no_ref_command_is_a_fault_that_can_be_refused(line: bytes) -> None:
    """It has commands all the same, so that there is something to log; certificates are not advertised."""
    request = fed(pkt(line) + FLUSH + EMPTY_PACK, 1000)
    assert request.done
    assert request.fault == "malformed ref command"
    assert request.total == len(request.commands) == 1


def test_a_delimiter_ends_the_commands_as_a_flush_does() -> None:
    """And a flush is what is passed on: receive-pack sees what was ruled on."""
    request = fed(pkt(f"{ZERO} {OID} refs/agents/a\0 report-status") + DELIM + EMPTY_PACK, 5000)
    assert request.done
    assert request.raw.endswith(FLUSH)


def test_fifty_thousand_refs_are_counted_and_not_kept() -> None:
    """The first ones are there to be refused by name; nothing of the rest, and nothing to be passed on."""
    request = fed(push_bytes([(ZERO, OID, f"refs/agents/s{n}") for n in range(50_000)]), 65536)
    assert (request.total, len(request.commands)) == (50_000, KEPT_COMMANDS)
    assert KEPT_COMMANDS > MOST_REFS
    assert request.raw == b""
    assert request.done


COMMAND = pkt(f"{ZERO} {OID} refs/agents/s\0 report-status")
WORDS = " ".join(f"{number:x}" for number in range(12_000))
HEADS = {
    "empty packets": b"0004" * 20_000,
    "small packets": pkt("a b c") * 20_000,
    "the largest packets": pkt("x" * 65_516) * 127,
    "the longest commands": pkt(f"{ZERO} {OID} refs/heads/".ljust(LONGEST_COMMAND, "y")) * 2000,
    "a good one, then others": COMMAND + pkt(f"{ZERO} {OID} refs/agents/t") * 20_000,
    "shallow lines": COMMAND + pkt(f"shallow {OID}") * (MOST_SHALLOW + 1),
    "shallow lines that say much": COMMAND + pkt("shallow ".ljust(65_516, "1")) * 127,
    "capabilities": pkt(f"{ZERO} {OID} refs/agents/s\0{WORDS}") * 127,
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
def test_what_is_held_of_a_head_is_bounded(data: bytes) -> None:
    """Megabytes, which gzip makes of 10 KB, are read and counted; one of them is held at most."""
    request = PushRequest()
    tracemalloc.start()
    try:
        for at in range(0, len(data), 65536):
            if not request.done:
                request.feed(data[at : at + 65536])
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert request.total <= MOST_COMMANDS + 1
    assert held < 1.1 * 2**20, held
    assert peak < 5 * 2**20, peak


@pytest.mark.parametrize("line", [b"x" * 40, OID.encode() + b" ", b"1", OID.encode() * 2], ids=len)
def test_a_shallow_line_without_an_object_id_breaks_off(line: bytes) -> None:
    """It is not passed on, and what it comes with is refused."""
    request = fed(COMMAND + pkt(b"shallow " + line) + FLUSH, 100)
    assert (request.fault, len(request.raw), request.done) == ("malformed shallow line", 0, True)
    with pytest.raises(PacketError, match="malformed shallow line"):
        fed(pkt(b"shallow " + line) + COMMAND + FLUSH, 100)


def test_commands_without_end_break_off() -> None:
    """What came so far can be refused and logged; more is not read, be it few bytes in many packets."""
    assert fed(b"0004" * (MOST_COMMANDS + 1), 65536).fault == f"more than {MOST_COMMANDS} ref commands"
    line = pkt(f"{ZERO} {OID} refs/agents/" + "s" * 900)
    request = fed(line * (MOST_COMMAND_BYTES // len(line) + 100), 65536)
    assert request.done
    assert "bytes of ref commands" in (request.fault or "")


def test_shallow_lines_without_end_break_off() -> None:
    """Without a command there is nothing to refuse; with one it is refused."""
    shallow = pkt(f"shallow {OID}") * (MOST_SHALLOW + 1)
    with pytest.raises(PacketError, match="too many shallow lines"):
        fed(shallow, 65536)
    assert fed(pkt(f"{ZERO} {OID} refs/agents/a\0 report-status") + shallow, 65536).fault == "too many shallow lines"


def test_a_push_that_breaks_off_keeps_what_it_said() -> None:
    """The refs it named are refused and logged; one that said nothing is no push."""
    request = fed(pkt(f"{ZERO} {OID} refs/heads/main\0 report-status") + b"00", 100)
    assert not request.done
    request.break_off("the guest left")
    assert (request.done, request.fault, request.commands[0].ref) == (True, "the guest left", "refs/heads/main")
    with pytest.raises(PacketError, match="the guest left"):
        PushRequest().break_off("the guest left")


def test_capabilities_come_from_the_first_command_behind_shallow_lines() -> None:
    """As git sends them."""
    request = fed(
        pkt(f"shallow {OID}") + push_bytes([(ZERO, OID, "refs/agents/a")], capabilities="report-status side-band"), 9
    )
    assert request.capabilities == {"report-status", "side-band"}
