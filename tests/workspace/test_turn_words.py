"""`gitmirror_record` with a message, notes and attachments: what was said, and what could not be kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.workspace.conftest import BUSYBOX, CURL, EVERY_SHELL, GNU_WGET, NOTHING, Guest, Node, Result, quote


def workspace(node: Node, home: Path, *, shell: str = "dash", tools: tuple[str, ...] = CURL, **env: str) -> Guest:
    """A guest with a workspace in `ws`."""
    made = node.guest(home, shell=shell, tools=tools, **env)
    assert made.hydrate(made.home / "ws").code == 0
    return made


def record(guest: Guest, session: str, *words: str, change: str = "change") -> Result:
    """Changes a file and records, with more words."""
    if change:
        (guest.home / "ws" / "change.txt").write_text(f"{session} {change}\n")
    return guest.run(f"gitmirror_record {quote(session)} ws " + " ".join(map(quote, words)))


def turns(node: Node, session: str) -> list[dict[str, Any]]:
    """The turns of a session."""
    found: list[dict[str, Any]] = json.loads(node.serve.here("session", "show", WIDGETS, session, "--json"))["turns"]
    return found


def message_of(node: Node, commit: str) -> str:
    """The message of a recorded commit."""
    return git("log", "-1", "--format=%B", commit, cwd=node.serve.mirror(WIDGETS))


@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_everything_is_kept(node: Node, tmp_path: Path, shell: str) -> None:
    """In every shell: a message of lines, notes with odd values, files from the current directory."""
    tools = (*CURL, "printf") if shell == "mksh" else CURL
    guest, session = workspace(node, tmp_path / "home", shell=shell, tools=tools), f"all-{shell}"
    (guest.home / "transcript [1].json".replace(" [1]", "")).write_bytes(bytes(range(256)) * 4)
    (guest.home / "sub dir").mkdir()
    (guest.home / "sub dir" / "log.txt").write_text("log\n")
    said = record(
        guest, session, "--message", "-Fix `it` \\n $HOME\n\nWhy:\n  - that\n# kept", "--note", "model=a b=c '\"*\\n",
        "--note", "empty=", "--attach", "transcript.json", "--attach=sub dir/log.txt",
    )  # fmt: skip
    commit = said.recorded(session)
    assert said.err == ""
    assert message_of(node, commit) == "-Fix `it` \\n $HOME\n\nWhy:\n  - that\n# kept"
    [turn] = turns(node, session)
    assert turn["subject"] == "-Fix `it` \\n $HOME"
    assert turn["notes"] == {"empty": "", "model": "a b=c '\"*\\n"}
    digest = hashlib.sha256(bytes(range(256)) * 4).hexdigest()
    assert [(file["name"], file["size"]) for file in turn["attachments"]] == [("log.txt", 4), ("transcript.json", 1024)]
    assert turn["attachments"][1]["sha256"] == digest


def test_busybox_wget_cannot_attach(node: Node, tmp_path: Path) -> None:
    """It would send a file up to its first NUL: said, and the turn is recorded."""
    guest = workspace(node, tmp_path / "home", tools=BUSYBOX)
    (guest.home / "small").write_bytes(b"x\0y")
    said = record(guest, "busybox", "--attach", "small")
    said.recorded("busybox", 3)
    assert "small is not attached: this wget cannot send files: it takes curl or GNU wget" in said.err


@pytest.mark.slow
def test_wget_attaches_too(node: Node, tmp_path: Path) -> None:
    """That of GNU; and that the mirror refuses one is said."""
    guest, session = workspace(node, tmp_path / "home", tools=GNU_WGET), "wget"
    (guest.home / "small").write_bytes(b"x\0" * 500)
    (guest.home / "large").write_bytes(bytes(16 * 2**20 + 1))
    said = record(guest, session, "--attach", "small", "--attach", "large")
    said.recorded(session, 3)
    assert "large is not attached: " in said.err
    assert [(file["name"], file["size"]) for file in turns(node, session)[0]["attachments"]] == [("small", 1000)]


def test_for_a_file_that_is_not_there_no_turn_is_made(node: Node, tmp_path: Path) -> None:
    """It would be another one at each try."""
    guest = workspace(node, tmp_path / "home")
    said = record(guest, "nothing-there", "--attach", "missing", change="")
    assert (said.code, said.out.splitlines()[-1]) == (3, "recorded nothing")
    assert f"{guest.home}/missing is not attached: it is not a file that can be read" in said.err


def test_what_cannot_be_attached_is_said(node: Node, tmp_path: Path) -> None:
    """Missing, a directory, too large, a name that is none: the rest is recorded, with exit code 3."""
    guest = workspace(node, tmp_path / "home")
    (guest.home / "large").write_bytes(bytes(16 * 2**20 + 1))
    (guest.home / ".hidden").write_text("x")
    (guest.home / "good").write_text("good")
    words = [word for name in ("missing", "ws", "large", ".hidden", "good", "a\nb") for word in ("--attach", name)]
    said = record(guest, "lost", *words)
    said.recorded("lost", 3)
    for reason in (
        f"{guest.home}/missing is not attached: it is not a file that can be read",
        f"{guest.home}/ws is not attached: it is not a file",
        "large is not attached: an attachment may have 16.0 MiB",
        ".hidden is not attached: its name must be of",
        "b is not attached: its path has a line break",
    ):
        assert reason in said.err
    assert [file["name"] for file in turns(node, "lost")[0]["attachments"]] == ["good"]


def test_what_cannot_be_noted_is_said(node: Node, tmp_path: Path) -> None:
    """No value, no key, lines, too long, too many: the rest is recorded, with exit code 3."""
    guest = workspace(node, tmp_path / "home")
    bad = ["plain", "=x", "a b=c", "lines=a\nb", "long=" + "x" * 4097, "k" * 65 + "=x"]
    good = [f"k{number}=v" for number in range(64)]
    said = record(guest, "noted", *(word for note in [*bad, *good] for word in ("--note", note)))
    said.recorded("noted", 3)
    assert said.err.count("is not kept") == 6 + 3
    assert len(turns(node, "noted")[0]["notes"]) == 61


def test_without_an_address_for_attachments(node: Node, tmp_path: Path) -> None:
    """A mirror that is known by git:// alone, and a guest without curl and wget."""
    guest = workspace(node, tmp_path / "home", tools=NOTHING)
    (guest.home / "file").write_text("x")
    said = record(guest, "no-tool", "--attach", "file", "--note", "a=b")
    said.recorded("no-tool", 3)
    assert "is not attached: it takes curl, or a wget" in said.err
    said = record(guest.with_(GITMIRROR_HTTP=""), "git-only", "--attach", "file", "--note", "a=b")
    said.recorded("git-only", 3)
    assert "is not attached: the mirror has no HTTP address" in said.err
    assert turns(node, "git-only")[0]["notes"] == {"a": "b"}


def test_notes_over_http(node: Node, tmp_path: Path) -> None:
    """With HTTP alone."""
    guest = workspace(node, tmp_path / "home", GITMIRROR_GIT="")
    record(guest, "http-only", "--note", "a=b").recorded("http-only")
    assert turns(node, "http-only")[0]["notes"] == {"a": "b"}


def test_an_older_mirror_takes_no_notes(node: Node, tmp_path: Path) -> None:
    """Its git does not advertise push options: the turn is recorded, and that is said."""
    guest = workspace(node, tmp_path / "home")
    bare = tmp_path / "old" / "acme" / "widgets"
    git("clone", "--quiet", "--bare", str(node.serve.mirror(WIDGETS)), str(bare))
    said = record(guest.with_(GITMIRROR_GIT=f"file://{tmp_path}/old", GITMIRROR_HTTP=""), "old", "--note", "a=b")
    said.recorded("old", 3)
    assert "the notes are not kept: this mirror or this git does not take them" in said.err


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_message_is_none(node: Node, tmp_path: Path, text: str) -> None:
    """The turn gets the usual one."""
    guest, session = workspace(node, tmp_path / "home"), f"empty-{len(text)}"
    commit = record(guest, session, "--message", text).recorded(session)
    assert message_of(node, commit) == f"Turn of {session}"
    assert record(guest, session, "--message", text, change="").out == "recorded nothing\n"


def test_words_without_a_change_get_an_empty_commit(node: Node, tmp_path: Path) -> None:
    """A message, a note or an attachment is never dropped; the agent's own commit keeps its message below it."""
    guest = workspace(node, tmp_path / "home")
    (guest.home / "file").write_text("x")
    assert record(guest, "words", change="").out == "recorded nothing\n"
    record(guest, "words", "--attach", "file", change="").recorded("words")
    record(guest, "words", "--note", "a=b", change="").recorded("words")
    record(guest, "words", "--message", "said", change="").recorded("words")
    (guest.home / "ws" / "own.txt").write_text("own\n")
    guest.git("add", "-A", cwd=guest.home / "ws")
    guest.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "own", cwd=guest.home / "ws")
    commit = record(guest, "words", "--message", "said again", change="").recorded("words")
    assert [turn["subject"] for turn in turns(node, "words")] == ["Turn of words"] * 2 + ["said", "said again"]
    assert message_of(node, f"{commit}~1") == "own"
    guest.git(
        "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-qm", "mine", cwd=guest.home / "ws"
    )
    assert message_of(node, record(guest, "words", "--note", "a=b", change="").recorded("words")) == "mine"


@pytest.mark.slow
def test_a_try_that_failed_is_not_repeated_as_a_commit(node: Node, tmp_path: Path) -> None:
    """The commit of a turn that could not be pushed is pushed by the next try."""
    guest = workspace(node, tmp_path / "home")
    away = guest.with_(GITMIRROR_GIT="git://127.0.0.1:1", GITMIRROR_HTTP="", GITMIRROR_DEADLINE="2")
    assert record(away, "again", "--message", "once\n\nmore  ").code == 1
    record(guest, "again", "--message", "once\n\nmore  ", change="").recorded("again")
    assert turns(node, "again")[0]["commits"] == 1


@pytest.mark.parametrize("words", [["--message"], ["--unknown", "x"], ["three", "four"], ["--note"], [""]])
def test_a_wrong_call_records_nothing(node: Node, tmp_path: Path, words: list[str]) -> None:
    """Usage, with exit code 2."""
    guest = node.guest(tmp_path / "home", tools=NOTHING)
    said = guest.run("gitmirror_record s " + ("ws " if words != [""] else "") + " ".join(map(quote, words)))
    assert said.code == 2 and "usage: gitmirror_record SESSION [DIR] [--message TEXT]" in said.err


def test_files_are_attached_beside_lfs(node: Node, tmp_path: Path) -> None:
    """Where git-lfs keeps contents, which the kit looks for when it commits and when it pushes."""
    guest = workspace(node, tmp_path / "home")
    (guest.home / "ws" / ".git" / "lfs" / "objects").mkdir(parents=True)
    (guest.home / "file").write_text("x")
    record(guest, "beside-lfs", "--attach", "file").recorded("beside-lfs")
    assert [file["name"] for file in turns(node, "beside-lfs")[0]["attachments"]] == ["file"]
