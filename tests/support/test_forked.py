"""What is forked is as good as what is started: its files, its environment, how it ends, and what it leaves open."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recording import stingy
from tests.support.forked import ROOT, ForkedProcess, can_fork, run_forked
from tests.support.gitutil import clean_env, kill_group, run_process
from tests.support.privileges import other_users_python

COMMAND = [sys.executable, "-m", "appliance"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a `serve` of the tests."""
    return {**clean_env(tmp_path), "PYTHONPATH": str(ROOT), "GITMIRROR_STATE": str(tmp_path / "state")}


@pytest.fixture
def serving(env: dict[str, str], tmp_path: Path) -> Iterator[ForkedProcess]:
    """A `serve` that has said that it is ready."""
    words = ["serve", "--git", "127.0.0.1:0", "--http", "", "--admin", "127.0.0.1:0"]
    read, write = os.pipe()
    with open(os.devnull, "rb") as nothing, open(write, "wb") as stdout, (tmp_path / "log").open("wb") as stderr:
        process = ForkedProcess(words, env=env, cwd=tmp_path, files=(nothing, stdout, stderr))
    with open(read) as lines:
        assert lines.readline().startswith("ready ")
        yield process
    kill_group(process)


@pytest.mark.parametrize(
    "words",
    [["--version"], ["repos", "--json"], ["no-such-command"], ["refresh", "no/such"]],
    ids=lambda words: words[0],
)
def test_a_command_says_and_returns_the_same(env: dict[str, str], words: list[str]) -> None:
    forked = run_forked(words, env=env, cwd=ROOT, input=None, timeout=60)
    started = run_process([*COMMAND, *words], env=env, cwd=ROOT)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_a_module_of_the_tests_is_run_as_a_program(env: dict[str, str]) -> None:
    """It changes something and then is `appliance`; a module of somebody else is started."""
    command = [*COMMAND[:2], stingy.__name__]
    assert can_fork(command, env) and not can_fork([*COMMAND[:2], "json.tool"], env)
    forked = run_forked(["no-such-command"], module=command[-1], env=env, cwd=ROOT, input=None, timeout=60)
    started = run_process([*command, "no-such-command"], env=env, cwd=ROOT)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)
    assert forked.returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_has_the_ids_that_were_asked_for(env: dict[str, str], tmp_path: Path) -> None:
    """And no other group, such as one of root's."""
    python, env["PYTHONPATH"] = other_users_python(61001)
    words, ids = ["serve", "--git", "127.0.0.1:0", "--http", "", "--admin", ""], (61001, 61002, [61003])
    state = Path(tempfile.mkdtemp(prefix="gitmirror-test-"))
    os.chown(state, 61001, 61002)
    read, write = os.pipe()
    try:
        env["GITMIRROR_STATE"] = str(state)
        with open(os.devnull, "rb") as nothing, open(write, "wb") as stdout, (tmp_path / "log").open("wb") as stderr:
            files = (nothing, stdout, stderr)
            process = ForkedProcess(words, env=env, cwd=Path("/"), files=files, python=[python], ids=ids)
        with open(read) as lines:
            assert lines.readline().startswith("ready "), (tmp_path / "log").read_text()
            found = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        kill_group(process)
    finally:
        shutil.rmtree(state)
    assert [set(found[name].split()) for name in ("Uid", "Gid", "Groups")] == [{"61001"}, {"61002"}, {"61003"}]


def test_serve_is_a_process_of_its_own(serving: ForkedProcess, tmp_path: Path) -> None:
    """It leads a session, is where it was started, and has no socket of the server's."""
    assert os.getsid(serving.pid) == serving.pid != os.getsid(0)
    assert Path(f"/proc/{serving.pid}/cwd").readlink() == tmp_path
    assert (tmp_path / "state" / "gitmirror.db").exists()
    assert serving.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        serving.wait(0.01)


def test_how_it_ends_is_told(serving: ForkedProcess) -> None:
    os.kill(serving.pid, signal.SIGTERM)
    assert serving.wait(60) == 0 and serving.poll() == 0


def test_a_kill_is_told_as_one(serving: ForkedProcess) -> None:
    os.kill(serving.pid, signal.SIGKILL)
    assert serving.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("given", [{"PYTHONHASHSEED": "1"}, {"LC_ALL": "C.UTF-8"}, {"PYTHONPATH": "/elsewhere"}])
def test_what_python_reads_at_its_start_is_started(env: dict[str, str], given: dict[str, str]) -> None:
    assert can_fork(COMMAND, env)
    assert not can_fork(COMMAND, env | given) and not can_fork(["setpriv", *COMMAND], env)
