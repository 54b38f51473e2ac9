"""`sessions` and `session`: what operators read and do, and that guests cannot interfere."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, new_session, record, session_of
from tests.serving.conftest import Node
from tests.support.gitutil import commit_files, git, refs, wait_until
from tests.support.serve import CommandFailed

KEYS = {
    "repo",
    "session",
    "ref",
    "tip",
    "base",
    "turns",
    "commits",
    "files_changed",
    "insertions",
    "deletions",
    "first_at",
    "last_at",
    "client",
}
TURN_KEYS = {
    "turn",
    "id",
    "commit",
    "at",
    "subject",
    "files_changed",
    "insertions",
    "deletions",
    "client",
    "base",
    "commits",
    "since_last",
}


@dataclass(frozen=True)
class Recorded:
    """A session of two turns: the first adds a file of two lines, the second changes one and adds another file."""

    name: str
    base: str
    commits: tuple[str, str]


@pytest.fixture(scope="module")
def two_turns(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Recorded once for all tests that only read."""
    name, guest = f"two-{new_session()}", node.guest(tmp_path_factory.mktemp("two") / "guest")
    first = commit_files(guest, {"one.txt": "a\nb\n"}, "the first turn")
    record(guest, name)
    second = commit_files(guest, {"one.txt": "a\nc\n", "two.txt": "x\n"}, "the second turn")
    record(guest, name)
    return Recorded(name, node.tip, (first, second))


def on_a_terminal(node: Node, *args: str) -> bytes:
    """Run a command with a terminal as stdout; return all that reached it."""
    serve = node.serve
    ours, theirs = pty.openpty()
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config), *args]
    env = {**serve.env, "TERM": "xterm", "GITMIRROR_PAGER": "cat"}
    child = subprocess.Popen(argv, cwd=serve.cwd, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert child.wait(60) == 0, shown
    return shown


def test_the_listing_has_the_keys_of_the_contract(node: Node, two_turns: Recorded) -> None:
    """Exactly the promised keys and types; `--repo` shows one repository only."""
    [row] = [row for row in node.serve.cli_json("sessions", "--repo", WIDGETS) if row["session"] == two_turns.name]
    assert set(row) >= KEYS
    expected = {
        "repo": WIDGETS, "session": two_turns.name, "ref": f"{AGENTS}{two_turns.name}", "tip": two_turns.commits[1],
        "base": two_turns.base, "turns": 2, "commits": 2, "files_changed": 2, "insertions": 3, "deletions": 0,
        "client": "127.0.0.1",
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert row["first_at"] < row["last_at"] and row["last_at"].endswith("Z")
    assert node.serve.cli("sessions", "--repo", "acme/none", check=False).returncode == 2
    assert two_turns.name in node.serve.cli("sessions").stdout


def test_show_tells_each_turn_and_how_it_differs_from_the_one_before(node: Node, two_turns: Recorded) -> None:
    """Time, commit, subject, numbers and client of each turn, by a beginning of the session's name."""
    shown = node.serve.cli_json("session", "show", WIDGETS, two_turns.name[:-1] + two_turns.name[-1])
    assert set(shown) >= KEYS
    first, second = shown["turns"]
    assert all(set(turn) >= TURN_KEYS for turn in (first, second))
    assert (first["turn"], first["commit"], first["subject"]) == (1, two_turns.commits[0], "the first turn")
    assert (first["files_changed"], first["insertions"], first["since_last"]) == (1, 2, None)
    assert (second["turn"], second["commit"], second["client"]) == (2, two_turns.commits[1], "127.0.0.1")
    assert second["since_last"] == {"files_changed": 2, "insertions": 2, "deletions": 1}
    text = node.serve.cli("session", "show", WIDGETS, "two-").stdout
    assert two_turns.base in text and "the second turn" in text and "2 files, +2 -1" in text


@pytest.mark.slow
def test_diff_of_the_session_and_of_one_turn(node: Node, two_turns: Recorded) -> None:
    """The whole session against its base, a turn against the one before; a patch that applies, a stat, or names."""
    serve, name = node.serve, two_turns.name
    whole = serve.cli("session", "diff", WIDGETS, name).stdout
    assert whole.count("diff --git") == 2 and "+c\n" in whole and "-b\n" not in whole and "\x1b" not in whole
    second = serve.cli("session", "diff", WIDGETS, name, "--turn", "2").stdout
    assert "-b\n+c\n" in second
    assert serve.cli("session", "diff", WIDGETS, name, "--turn", "1", "--name-only").stdout == "one.txt\n"
    assert "2 files changed, 3 insertions(+)" in serve.cli("session", "diff", WIDGETS, name, "--stat").stdout
    log = serve.cli("session", "log", WIDGETS, name).stdout.splitlines()
    assert [line.split()[0] for line in log] == [commit[:12] for commit in reversed(two_turns.commits)]


def test_a_diff_is_coloured_on_a_terminal(node: Node, two_turns: Recorded) -> None:
    """As git does it."""
    assert b"\x1b[32m+" in on_a_terminal(node, "session", "diff", WIDGETS, two_turns.name)


@pytest.mark.slow
def test_checkout_lays_a_turn_out_to_run_or_to_push(node: Node, two_turns: Recorded, tmp_path: Path) -> None:
    """A repository of its own at that turn with `origin` at the upstream: a real branch can be pushed from it."""
    for turn, text in ((1, "a\nb\n"), (2, "a\nc\n")):
        place = tmp_path / f"replay-{turn}"
        node.serve.cli("session", "checkout", WIDGETS, two_turns.name, str(place), "--turn", str(turn))
        assert (place / "one.txt").read_text() == text
        assert git("rev-parse", "HEAD", cwd=place) == two_turns.commits[turn - 1]
        assert git("status", "--porcelain", cwd=place) == ""
        assert git("config", "remote.origin.url", cwd=place) == node.upstream.url(WIDGETS)
    git("push", "--quiet", "origin", "HEAD:refs/heads/from-replay", cwd=place)
    assert refs(node.upstream.path(WIDGETS))["refs/heads/from-replay"] == two_turns.commits[1]
    git("update-ref", "-d", "refs/heads/from-replay", cwd=node.upstream.path(WIDGETS))


@pytest.mark.slow
def test_checkout_touches_no_directory_that_is_not_empty(node: Node, two_turns: Recorded, tmp_path: Path) -> None:
    """A non-empty directory stays as it was; an empty one is used; a failed checkout leaves nothing."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        done = node.serve.cli("session", "checkout", WIDGETS, two_turns.name, str(tmp_path / place), check=False)
        assert done.returncode == 2 and "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    node.serve.cli("session", "checkout", WIDGETS, two_turns.name, str(tmp_path / "empty"))
    assert (tmp_path / "empty" / "two.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "diff", "log"])
def test_what_is_not_there_is_said(node: Node, two_turns: Recorded, command: str) -> None:
    """An unknown session, a prefix that fits several, an unknown repository, a turn past the last."""
    serve = node.serve

    def said(*args: str, code: int) -> str:
        done = serve.cli("session", command, *args, check=False)
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "has no session nobody" in said(WIDGETS, "nobody", code=1)
    assert "acme/none" in said("acme/none", "nobody", code=2)
    if command == "diff":
        assert "its turns are 1 to 2" in said(WIDGETS, two_turns.name, "--turn", "3", code=2)


@pytest.mark.slow
def test_a_prefix_of_several_sessions_is_refused(node: Node, tmp_path: Path) -> None:
    """No session is guessed; a whole name is never ambiguous, even when another begins with it."""
    guest = node.guest(tmp_path / "guest")
    for name in ("pre-a", "pre-ab"):
        record(guest, name)
    done = node.serve.cli("session", "show", WIDGETS, "pre-", check=False)
    assert done.returncode == 2 and "pre-a, pre-ab" in done.stderr.replace("pre-ab, pre-a", "pre-a, pre-ab")
    assert node.serve.cli_json("session", "show", WIDGETS, "pre-a")["session"] == "pre-a"


@pytest.mark.slow
def test_no_control_character_of_a_guest_reaches_the_terminal(node: Node, tmp_path: Path) -> None:
    """A subject, an author and a refused ref with escapes are shown without them, also on a terminal."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
    git("-c", f"user.name=x{evil}", "commit", "--quiet", "--allow-empty", "-m", f"see {evil}", cwd=guest)
    git("commit", "--quiet", "--amend", "--allow-empty", f"--author=x{evil} <a@b>", "-m", f"see {evil}", cwd=guest)
    record(guest, name)
    for args in (("session", "show", WIDGETS, name), ("session", "log", WIDGETS, name), ("sessions",), ("audit",)):
        shown = on_a_terminal(node, *args)
        assert shown and b"\x1b" not in shown and b"\x07" not in shown
        assert "\u202e".encode() not in shown and "\x9b".encode() not in shown
    done = node.serve.cli("session", "checkout", WIDGETS, name, str(tmp_path / "replay"))
    assert "\x1b" not in done.stderr and "see" in done.stderr


@pytest.mark.slow
def test_a_session_that_is_dropped_is_gone_and_its_rows_stay(node: Node, tmp_path: Path) -> None:
    """Ref, turns and listing go at once; the log keeps its rows and gets a note; the name can be used again."""
    serve, name, guest = node.serve, new_session(), node.guest(tmp_path / "guest")
    for number in range(2):
        commit = commit_files(guest, {f"{number}.txt": "x\n"}, f"turn {number}")
        record(guest, name)
    before, rows = refs(node.mirror), len(serve.cli_json("audit", "--session", name))
    assert len(git("ls-remote", "origin", f"{AGENTS}{name}", cwd=guest)) > 40
    assert serve.cli("session", "drop", WIDGETS, name, input="n\n", check=False).returncode == 1
    assert refs(node.mirror) == before
    serve.cli("session", "drop", WIDGETS, name, "--yes")
    assert len(before) - len(refs(node.mirror)) == 3
    assert git("ls-remote", "origin", f"{AGENTS}{name}", cwd=guest) == "", "the refs that guests are shown are old"
    assert session_of(node, name) is None
    assert len(serve.cli_json("audit", "--session", name)) == rows
    notes = [line for line in serve.cli("audit", "export").stdout.splitlines() if '"kind": "note"' in line]
    assert "ended by an operator" in notes[-1] and name in notes[-1]
    assert serve.cli("audit", "verify").returncode == 0
    record(guest, name)
    row = session_of(node, name)
    assert row is not None and (row["turns"], row["tip"]) == (1, commit)


def test_drop_needs_serve(node: Node) -> None:
    """Without it nothing is changed, and the exit code says why."""
    with pytest.raises(CommandFailed):
        node.serve.cli("session", "drop", WIDGETS, "nobody", "--yes")


@pytest.mark.slow
def test_the_log_by_time_verdict_and_live(node: Node, tmp_path: Path) -> None:
    """`--verdict`, `--since` and `export --since` filter rows; `--follow` prints new ones."""
    serve, guest, name = node.serve, node.guest(tmp_path / "guest"), new_session()
    record(guest, name)
    with contextlib.suppress(Exception):
        git("push", "--quiet", "origin", "HEAD:refs/heads/no", cwd=guest)
    assert {row["verdict"] for row in serve.cli_json("audit", "--verdict", "rejected")} == {"rejected"}
    newest = serve.cli_json("audit")[0]
    assert serve.cli_json("audit", "--since", newest["at"])[-1]["at"] >= newest["at"]
    assert serve.cli_json("audit", "--since", "2999-01-01") == []
    assert serve.cli("audit", "export", "--since", "2999-01-01").stdout == ""
    exported = serve.cli("audit", "export", "--since", "1h").stdout.splitlines()
    assert len(exported) == len(serve.cli("audit", "export").stdout.splitlines())
    assert serve.cli("audit", "--since", "yesterday", check=False).returncode == 2
    out = (tmp_path / "follow").open("w+b")
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config)]
    follower = subprocess.Popen([*argv, "audit", "--follow", "--limit", "1"], cwd=serve.cwd, env=serve.env, stdout=out)
    try:
        seen = tmp_path / "follow"
        wait_until(lambda: b"refs/heads/no" in seen.read_bytes(), message="the newest row is shown")
        live = new_session()
        record(guest, live)
        wait_until(lambda: f"{AGENTS}{live}".encode() in seen.read_bytes(), message="a new row is shown")
        assert f"{AGENTS}{name} ".encode() not in seen.read_bytes()
        assert b"pending" not in seen.read_bytes()
    finally:
        follower.kill()
        follower.wait()
        out.close()
