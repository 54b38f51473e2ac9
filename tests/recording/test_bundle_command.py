"""`session bundle`: a person with a clone of the upstream and a file gets the work, and git finds it whole."""

from __future__ import annotations

import os
import pty
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import new_session, record
from tests.serving.conftest import Node
from tests.support.gitutil import commit_files, fsck, git, git_result
from tests.support.serve import Serve


@dataclass(frozen=True)
class Recorded:
    """A session of two turns, of which the second rewrote the first."""

    name: str
    commits: tuple[str, str]


@pytest.fixture(scope="module")
def rewritten(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Recorded once for all tests."""
    name, guest = f"bundled-{new_session()}", node.guest(tmp_path_factory.mktemp("bundled") / "guest")
    first = commit_files(guest, {"work.txt": "one\n"}, "the first turn")
    record(guest, name)
    git("reset", "--quiet", "--hard", "HEAD~1", cwd=guest)
    second = commit_files(guest, {"work.txt": "two\n"}, "the second turn")
    record(guest, name)
    return Recorded(name, (first, second))


def piped(serve: Serve, *args: str) -> tuple[int, bytes, str]:
    """Run a command with a pipe as stdout; return its exit code and its output, stdout unchanged."""
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config), *args]
    done = subprocess.run(argv, cwd=serve.cwd, env=serve.env, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def fetched(node: Node, bundle: Path, session: str, clone: Path) -> str:
    """Fetch from a bundle in a new clone of the upstream, and return the commit, with all that it needs."""
    git("clone", "--quiet", str(node.upstream.path(WIDGETS)), str(clone))
    git("fetch", "--quiet", str(bundle), f"refs/agents/{session}", cwd=clone)
    git("branch", "taken", "FETCH_HEAD", cwd=clone)
    fsck(clone)
    return git("rev-parse", "taken", cwd=clone)


def test_a_file_that_a_clone_of_the_upstream_takes(node: Node, rewritten: Recorded, tmp_path: Path) -> None:
    """The last turn, without the rewritten one; the message can be followed as it stands."""
    file = tmp_path / "work.bundle"
    done = node.serve.cli("session", "bundle", WIDGETS, rewritten.name, "-o", str(file))
    assert done.stdout == ""
    assert (
        f"`git fetch {file} refs/agents/{rewritten.name}`" in done.stderr and node.upstream.url(WIDGETS) in done.stderr
    )
    clone = tmp_path / "clone"
    assert fetched(node, file, rewritten.name, clone) == rewritten.commits[1]
    assert git_result("cat-file", "-e", rewritten.commits[0], cwd=clone)[0] != 0


def test_an_earlier_turn_into_a_pipe(node: Node, rewritten: Recorded, tmp_path: Path) -> None:
    """The session's name may be shortened; the ref has the whole name."""
    code, data, stderr = piped(node.serve, "session", "bundle", WIDGETS, rewritten.name[:-1], "--turn", "1")
    assert code == 0, stderr
    file = tmp_path / "work.bundle"
    file.write_bytes(data)
    assert fetched(node, file, rewritten.name, tmp_path / "clone") == rewritten.commits[0]


def test_it_needs_no_serve(node: Node, rewritten: Recorded, tmp_path: Path) -> None:
    """A copy of the node's state that nobody serves; nothing of it is left in the temporary directory."""
    import shutil

    state, room = tmp_path / "state", tmp_path / "tmp"
    shutil.copytree(node.serve.state, state, ignore=shutil.ignore_patterns("*.sock", "run"))
    room.mkdir()
    argv = [*node.serve.command, "--state", str(state), "--config", str(node.serve.config)]
    argv += ["session", "bundle", WIDGETS, rewritten.name]
    env = {**node.serve.env, "TMPDIR": str(room)}
    data = subprocess.run(argv, cwd=node.serve.cwd, env=env, capture_output=True, check=True).stdout
    assert data.startswith(b"# v2 git bundle\n") and list(room.iterdir()) == []


def test_it_is_not_written_to_a_terminal(node: Node, rewritten: Recorded) -> None:
    """A pack on a terminal helps nobody, and may change what the terminal shows."""
    serve = node.serve
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config)]
    ours, theirs = pty.openpty()
    argv += ["session", "bundle", WIDGETS, rewritten.name]
    done = subprocess.run(
        argv, cwd=serve.cwd, env=serve.env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, check=False
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2 and b"not for a terminal" in done.stderr and b"-o FILE" in done.stderr


@pytest.mark.slow
def test_no_file_is_overwritten_or_left(node: Node, rewritten: Recorded, tmp_path: Path) -> None:
    """What is there stays; a failure, at the session or in the middle of the mirror, leaves no file."""
    serve, there = node.serve, tmp_path / "there"
    there.write_text("mine")
    done = serve.cli("session", "bundle", WIDGETS, rewritten.name, "-o", str(there), check=False)
    assert done.returncode == 2 and "already exists" in done.stderr and there.read_text() == "mine"
    new = tmp_path / "new"
    for args, said in (
        ((WIDGETS, "nobody"), "has no session nobody"),
        ((WIDGETS, rewritten.name, "--turn", "3"), "its turns are 1 to 2"),
    ):
        done = serve.cli("session", "bundle", *args, "-o", str(new), check=False)
        assert done.returncode in (1, 2) and said in done.stderr and not new.exists()
    done = serve.cli("session", "bundle", WIDGETS, rewritten.name, "-o", str(tmp_path / "no" / "file"), check=False)
    assert done.returncode == 1 and "cannot be written: No such file" in done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config)]
            argv += ["session", "bundle", WIDGETS, rewritten.name]
            ended = subprocess.run(argv, cwd=serve.cwd, env=serve.env, stdout=full, stderr=subprocess.PIPE, check=False)
        assert ended.returncode == 1 and b"Traceback" not in ended.stderr, ended.stderr


def test_a_reader_that_leaves_is_no_error(node: Node, rewritten: Recorded) -> None:
    """As with `| head -1`: no traceback."""
    serve = node.serve
    reading, writing = os.pipe()
    os.close(reading)
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config)]
    argv += ["session", "bundle", WIDGETS, rewritten.name]
    done = subprocess.run(argv, cwd=serve.cwd, env=serve.env, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""
