"""What guests and upstreams say, on the operator's terminal and in pipes: the bytes that each command writes."""

from __future__ import annotations

import contextlib
import copy
import os
import pty
import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import new_session, record
from tests.serving.conftest import SETTLED, Node
from tests.serving.fetch.wire import ask, error_of, fetch_request, open_v2
from tests.support.gitutil import commit_files, git, git_bytes, refs, run_process
from tests.support.pkt import EMPTY_PACK, ZERO, daemon_request, pkt, raw_push
from tests.support.serve import Serve
from tests.support.terminal import EVIL, unsafe, unsafe_bytes
from tests.support.upstream import HttpUpstream

BROKEN = "acme/broken"
SEEN = "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e\\u2066\\u061c\\x85\\u2028"
"""EVIL as it is to be shown."""


@dataclass(frozen=True)
class Hostile:
    """A node on which everything that can be is hostile: one session of it, and its last commit."""

    node: Node
    session: str
    commit: str

    @property
    def serve(self) -> Serve:
        """The appliance."""
        return self.node.serve


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Hostile]:
    """Content, names, subject, author, refs, fetches and requests of a guest, and an upstream's error page."""
    base = tmp_path_factory.mktemp("hostile")
    with HttpUpstream(base / "upstream") as upstream:
        for name in (WIDGETS, BROKEN):
            upstream.add(name, generated_bare)
        repos = [upstream.url(WIDGETS), upstream.url(BROKEN)]
        with Serve(base / "state", repos=repos, refresh=SETTLED).start() as serve:
            node = Node(serve, upstream)
            for name in (WIDGETS, BROKEN):
                serve.wait_for_repo(name)
            git("update-ref", "refs/heads/new\u202e\x9b", "main", cwd=upstream.path(WIDGETS))
            assert serve.cli("refresh", WIDGETS).returncode == 0
            guest = node.guest(base / "guest")
            files: dict[str, str | bytes | None] = {
                f"name {EVIL}\n.txt": "x\n",
                "content.txt": f"first\n{EVIL}\n\x0c\rover\n".encode(),
                "latin.txt": b"caf\xe9 \x93quoted\x94\n",
            }
            commit_files(guest, files, "first")
            author = f"--author=x{EVIL}x <a@b>"
            git("commit", "--quiet", "--amend", author, "-m", f"see {EVIL}x", cwd=guest)
            session = new_session()
            record(guest, session)
            fetch_hostile(node)
            for ref in (f"refs/heads/x{EVIL}", f"refs/agents/{EVIL}"):
                assert not raw_push(*serve.git_address, f"/{WIDGETS}", [(ZERO, node.tip, ref)], EMPTY_PACK).accepted
            page = f"\x1b]0;owned\x07\x1b[2Jgo away {EVIL}\nERROR forged: a line of its own\n".encode()
            upstream.on(BROKEN).status, upstream.on(BROKEN).page = 500, page
            assert serve.cli("refresh", BROKEN, check=False).returncode == 1
            yield Hostile(node, session, git("rev-parse", "HEAD", cwd=guest))


def fetch_hostile(node: Node) -> None:
    """Fetches whose parameters and agent are escape sequences, over git:// and over HTTP."""
    serve, evil = node.serve, EVIL.replace("\n", "")
    for argument in (f"deepen-not {evil}", f"filter {evil}", f"deepen-since {evil}"):
        capabilities = (f"agent=git/{evil}", "object-format=sha1")
        ask(serve, WIDGETS, fetch_request(node.tip, argument, capabilities=capabilities))
    with open_v2(serve, WIDGETS) as sock:
        sock.sendall(pkt(f"command={evil}\n") + b"0000")
        assert not unsafe(error_of(sock))
    request = urllib.request.Request(f"{serve.http_url}/{WIDGETS}/info/refs", headers={"User-Agent": "x\x9b31m\x85"})
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=60).read()


def piped(hostile: Hostile, *args: str) -> tuple[int, bytes, bytes]:
    """A command whose outputs are no terminal: its code and what it wrote."""
    serve = hostile.serve
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, open(os.devnull, "rb") as nothing:
        code = serve._popen(serve._argv(*args), nothing, stdout, stderr).wait(60)
        for file in (stdout, stderr):
            file.seek(0)
        return code, stdout.read(), stderr.read()


def on_a_terminal(hostile: Hostile, *args: str, **extra: str) -> bytes:
    """The same on a terminal: all that reached it."""
    ours, theirs = pty.openpty()
    serve = copy.copy(hostile.serve)
    serve.env = {**serve.env, "TERM": "xterm", "GITMIRROR_PAGER": "cat", **extra}
    with open(theirs, "r+b", buffering=0) as terminal:
        child = serve._popen(serve._argv(*args), terminal, terminal, terminal)
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    child.wait(60)
    # The terminal itself makes CR LF of each LF; the colours are those of errors and of diffs.
    return re.sub(rb"\x1b\[(?:1|31|32|36|0)?m", b"", shown.replace(b"\r\n", b"\n"))


COMMANDS = {
    "sessions": "",
    "session show WIDGETS NAME": f"see {SEEN}",
    "session log WIDGETS NAME": f"x{SEEN}x  see {SEEN}x",
    "session diff WIDGETS NAME": f"+{SEEN}",
    "session diff WIDGETS NAME --stat": "content.txt",
    "session diff WIDGETS NAME --name-only": "latin.txt",
    "audit": "refs/heads/x\\x1b]0;owned",
    "audit --json": "owned",
    "audit export": "owned",
    "activity": "deepen-not \\x1b]0;owned\\x07",
    "activity --json": "owned",
    "repos": BROKEN,
    "status": "go away",
    "status --json": "go away",
    "refreshes": "new\\u202e",
    "refreshes --json": "new\\u202e",
    "refresh acme/broken": "go away",
    "doctor": BROKEN,
}
"""Each command that shows what others wrote, and words that its output has."""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_a_control_character_through(hostile: Hostile, command: str) -> None:
    """Neither into a pipe nor onto a terminal; and what a stranger wrote is there to be read, as escapes."""
    words = command.replace("WIDGETS", WIDGETS).replace("NAME", hostile.session).split()
    code, stdout, stderr = piped(hostile, *words)
    assert code in (0, 1, 3), stderr
    if command != "refreshes":
        assert COMMANDS[command] in (stdout + stderr).decode("utf-8", "replace")
    for each in (stdout, stderr, on_a_terminal(hostile, *words)):
        assert not unsafe_bytes(each, allowed="\n\t" if "diff" in words else "\n"), each


def test_what_moved_is_told_with_escapes(hostile: Hostile) -> None:
    """A branch upstream whose name turns words round, as `refresh` lists it."""
    name = f"refs/heads/two\u202e{new_session()}"
    git("update-ref", name, "main", cwd=hostile.node.upstream.path(WIDGETS))
    code, stdout, stderr = piped(hostile, "refresh", WIDGETS)
    assert code == 0 and b"two\\u202e" in stdout and not unsafe_bytes(stdout + stderr)


@pytest.mark.parametrize("args", [("activity", "--follow"), ("audit", "--follow")], ids=lambda args: args[0])
def test_following_lets_none_through_either(hostile: Hostile, args: tuple[str, ...]) -> None:
    """Line by line, as it comes."""
    argv = hostile.serve._argv(*args)
    with subprocess.Popen(argv, cwd=hostile.serve.cwd, env=hostile.serve.env, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        try:
            seen = b""
            while b"owned" not in seen:
                line = follower.stdout.readline()
                assert line, "it ended"
                seen += line
        finally:
            follower.kill()
    assert not unsafe_bytes(seen)


def test_checkout_says_the_subject_with_escapes(hostile: Hostile, tmp_path: Path) -> None:
    """And lays out the files as they are."""
    _, stdout, stderr = piped(hostile, "session", "checkout", WIDGETS, hostile.session, str(tmp_path / "replay"))
    assert f"see {SEEN}".encode() in stderr and not unsafe_bytes(stdout + stderr)
    assert b"caf\xe9" in (tmp_path / "replay" / "latin.txt").read_bytes()


def test_a_diff_says_that_it_is_no_patch_and_git_takes_the_raw_one(hostile: Hostile, tmp_path: Path) -> None:
    """git refuses the escaped one rather than write escapes into files; `--raw` gives every byte."""
    place = hostile.node.guest(tmp_path / "place", "--depth=1")
    _, stdout, stderr = piped(hostile, "session", "diff", WIDGETS, hostile.session)
    assert b"--raw" in stderr
    applied = run_process(["git", "apply"], cwd=place, input=stdout)
    assert applied.returncode != 0 and b"patch" in applied.stderr
    assert git("status", "--porcelain", cwd=place) == ""
    _, raw, said = piped(hostile, "session", "diff", WIDGETS, hostile.session, "--raw")
    assert said == b"" and EVIL.encode() in raw
    assert run_process(["git", "apply", "--index"], cwd=place, input=raw).returncode == 0
    assert git("write-tree", cwd=place) == git("rev-parse", f"{hostile.commit}^{{tree}}", cwd=hostile.node.mirror)


def test_a_diff_without_control_characters_is_gits_own(hostile: Hostile, tmp_path: Path) -> None:
    """Byte for byte, with tabs, CRLF and Latin-1 in it: `session diff | git apply` goes on working."""
    guest, name = hostile.node.guest(tmp_path / "guest", "--depth=1"), new_session()
    files: dict[str, str | bytes | None] = {
        "crlf.txt": b"a\r\nb\tc\r\n",
        "latin.txt": b"caf\xe9\n",
        "utf8.txt": "naïve 👩\u200d💻\n",
        "end.txt": "no end",
    }
    commit = commit_files(guest, files, "harmless")
    record(guest, name)
    _, stdout, stderr = piped(hostile, "session", "diff", WIDGETS, name)
    assert stderr == b""
    assert stdout == git_bytes("diff", f"{commit}~", commit, cwd=guest)[1]
    git("checkout", "--quiet", f"{commit}~", cwd=guest)
    assert run_process(["git", "apply", "--index"], cwd=guest, input=stdout).returncode == 0
    assert git("write-tree", cwd=guest) == git("rev-parse", f"{commit}^{{tree}}", cwd=guest)


@pytest.mark.slow
def test_a_pager_gets_no_control_character_but_our_colours(hostile: Hostile, tmp_path: Path) -> None:
    """It gets the whole of it; `less -R` would obey what it gets. One that is not there is none."""
    words, kept = ("session", "diff", WIDGETS, hostile.session), tmp_path / "paged"
    on_a_terminal(hostile, *words, GITMIRROR_PAGER=f"cat > {kept}")
    paged = kept.read_bytes()
    assert b"\x1b[32m+first\x1b[m" in paged
    assert not unsafe_bytes(re.sub(rb"\x1b\[(?:1|31|32|36)?m", b"", paged), allowed="\n\t")
    assert b"+first" in on_a_terminal(hostile, *words, GITMIRROR_PAGER="no-such-pager --at-all")
    assert b"--raw" in on_a_terminal(hostile, *words, GITMIRROR_PAGER="true")
    kept.unlink()
    on_a_terminal(hostile, *words, GITMIRROR_PAGER=f"cat > {kept}", NO_COLOR="1")
    assert not unsafe_bytes(kept.read_bytes(), allowed="\n\t")


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_failure(hostile: Hostile, tmp_path: Path) -> None:
    """`session diff | head -1` ends without a complaint, however much there is."""
    guest, name = hostile.node.guest(tmp_path / "guest", "--depth=1"), new_session()
    commit_files(guest, {"long.txt": "a line of it\n" * 200_000}, "long")
    record(guest, name)
    for more in ((), ("--raw",)):
        argv = hostile.serve._argv("session", "diff", WIDGETS, name, *more)
        with subprocess.Popen(
            argv, cwd=hostile.serve.cwd, env=hostile.serve.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            assert child.stdout.read(10) == b"diff --git"
            child.stdout.close()
            assert child.stderr.read() == b""
            assert child.wait(60) == 0


def test_the_log_of_serve_has_one_line_a_record(hostile: Hostile) -> None:
    """Neither an upstream's page nor a guest's ref gets a control character or a line of its own into it."""
    log = hostile.serve._stderr.read_bytes()
    assert b"go away" in log and b"refs/heads/x\\x1b" in log
    assert not unsafe_bytes(log)
    assert all(re.match(rb"\d{4}-\d\d-\d\d |  ", line) for line in log.splitlines()), log.decode()


def test_answers_to_guests_have_none(hostile: Hostile) -> None:
    """A path is quoted in a 404 and in an ERR packet, a ref in the lines behind `remote: `."""
    serve = hostile.serve
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(f"{serve.http_url}/a%1b%5d0%3bx%07/b%E2%80%AE%C2%9B/info/refs", timeout=60)
    body = found.value.read()
    assert b"a\\x1b]0;x\\x07/b\\u202e\\x9b is not mirrored here" in body and not unsafe_bytes(body)
    with daemon_request(*serve.git_address, "git-upload-pack", "/acme/none\x1b[2J", []) as sock:
        assert not unsafe_bytes(sock.recv(4096))
    answer = raw_push(*serve.git_address, f"/{WIDGETS}", [(ZERO, hostile.node.tip, f"refs/heads/{EVIL}")], EMPTY_PACK)
    assert "refused refs/heads/\\x1b" in answer.messages and not unsafe(answer.messages)


def test_git_names_files_by_itself(hostile: Hostile) -> None:
    """The names in a diff's heads are quoted by git, so what is shown of them is what git apply takes."""
    _, stdout, _ = piped(hostile, "session", "diff", WIDGETS, hostile.session, "--name-only")
    assert b'"name \\033]0;owned' in stdout
    assert any("new\u202e" in ref for ref in refs(hostile.node.mirror))
