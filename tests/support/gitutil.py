"""Real git for tests, isolated from the machine it runs on.

There is no system or global config, no credential helper and no proxy, and identity and dates are fixed, so that the
same commands give the same object ids everywhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol, TypeVar

DATE = "1700000000 +0000"
"""Author and committer date of every commit made with `clean_env` (git's raw form)."""

_T = TypeVar("_T")
_INTERVAL = 0.02


class GitFailed(RuntimeError):
    """A git command failed, or did not end in time. The message contains its stderr."""

    def __init__(self, args: tuple[str, ...], returncode: int, stderr: str) -> None:
        super().__init__(f"git {' '.join(args)} ended with {returncode}: {stderr.strip()}")
        self.returncode = returncode
        self.stderr = stderr


def clean_env(home: Path, **extra: str | None) -> dict[str, str]:
    """Return a complete environment for git that takes only PATH and TMPDIR from the machine.

    `extra` overrides it; a value of None removes the variable (`GIT_AUTHOR_NAME=None` for a guest without an identity).
    """
    env: dict[str, str | None] = {
        "PATH": os.environ.get("PATH", os.defpath),
        "TMPDIR": os.environ.get("TMPDIR"),
        "HOME": str(home),
        "LC_ALL": "C",
        "TZ": "UTC",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "A Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.com",
        "GIT_AUTHOR_DATE": DATE,
        "GIT_COMMITTER_NAME": "A Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.com",
        "GIT_COMMITTER_DATE": DATE,
        "no_proxy": "*",
        # The guest kit would find the drives that another test has attached at this moment.
        "GITMIRROR_DRIVES": "",
        **extra,
    }
    return {name: value for name, value in env.items() if value is not None}


def run_process(
    argv: list[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a session of its own and return its output.

    Kills the whole process group after `timeout` seconds (and raises `subprocess.TimeoutExpired`), or when the test is
    interrupted. `subprocess.run` would kill only the first process and wait for its children's pipes.
    """
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(input, timeout)
    except BaseException:
        kill_group(process)
        raise
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


class Leader(Protocol):
    """A process that leads its process group: a `subprocess.Popen`, or what the fork server started."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None

    def wait(self) -> int:
        """Wait for its exit code."""


def kill_group(process: Leader) -> None:
    """Kill the process group that `process` leads, even if it is stopped, and reap `process`."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def git_bytes(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | str | None = None,
    timeout: float = 60,
) -> tuple[int, bytes, bytes]:
    """Run git and return its exit code, stdout and stderr unchanged. `env` None means `clean_env` of $HOME.

    Raises GitFailed when it takes more than `timeout` seconds.
    """
    home = Path(os.environ.get("HOME", "/nonexistent"))
    data = input.encode() if isinstance(input, str) else input
    try:
        done = run_process(
            ["git", *args], cwd=cwd, env=clean_env(home) if env is None else env, input=data, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise GitFailed(args, -signal.SIGKILL, f"not done after {timeout} s") from error
    return done.returncode, done.stdout, done.stderr


def git_result(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | str | None = None,
    timeout: float = 60,
) -> tuple[int, str, str]:
    """Run git and return its exit code, stdout (stripped) and stderr, even when it fails."""
    code, stdout, stderr = git_bytes(*args, cwd=cwd, env=env, input=input, timeout=timeout)
    return code, _text(stdout).strip(), _text(stderr)


def git(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    input: bytes | str | None = None,
    timeout: float = 60,
) -> str:
    """Run git and return its stdout, stripped.

    Raises GitFailed, which shows stderr, when the exit code is not 0, unless `check` is False.
    """
    code, stdout, stderr = git_result(*args, cwd=cwd, env=env, input=input, timeout=timeout)
    if check and code:
        raise GitFailed(args, code, stderr)
    return stdout


def refs(repo: Path) -> dict[str, str]:
    """Return every ref of a repository with its object id (a tag's own id, not the commit's)."""
    listing = git("for-each-ref", "--format=%(refname) %(objectname)", cwd=repo)
    return dict(_pair(line) for line in listing.splitlines())


def read_ref(repo: Path, ref: str) -> str:
    """Return the object id of a full ref as the repository's files say, without a process, and "" if there is none.

    For those who look again and again. What is packed is in `packed-refs` before its own file goes.
    """
    with contextlib.suppress(OSError):
        return (repo / ref).read_text().strip()
    with contextlib.suppress(OSError):
        for line in (repo / "packed-refs").read_text(errors="replace").splitlines():
            oid, _, name = line.partition(" ")
            if name == ref:
                return oid
    return ""


def remote_refs(url: str, *, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what `git ls-remote` sees at `url`: HEAD, refs, and peeled tags as `REF^{}`."""
    listing = git("ls-remote", url, env=env)
    return {name: oid for oid, name in (line.split("\t", 1) for line in listing.splitlines())}


def fsck(repo: Path) -> None:
    """Assert that every object of the repository exists and is intact.

    Without `--strict`, because old commits of real repositories break its rules (zero-padded modes) without being
    damaged.
    """
    code, stdout, stderr = git_result("fsck", "--full", "--no-dangling", "--no-progress", cwd=repo, timeout=300)
    assert code == 0, f"git fsck of {repo} ended with {code}: {stdout} {stderr}"
    damage = [line for line in stdout.splitlines() if line.startswith(("missing", "broken", "error"))]
    assert not damage, f"git fsck of {repo}: {damage}"


def commit_files(worktree: Path, files: Mapping[str, str | bytes | None], message: str) -> str:
    """Write `files` below `worktree` (None deletes one), commit them all, and return the commit's id."""
    for name, content in files.items():
        path = worktree / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    git("add", "--all", "--", *files, cwd=worktree)
    # The tests make more than a thousand commits in a run. Each saves two processes: the one that checks whether to
    # repack, and the one that would be asked for the id.
    told = git("-c", "maintenance.auto=false", "-c", "core.abbrev=no", "commit", "--allow-empty", "-m", message,
               cwd=worktree)  # fmt: skip
    found = re.match(r"\[(?:detached HEAD|\S+)(?: \(root-commit\))? ([0-9a-f]{40,64})\] ", told)
    assert found, told
    return found[1]


def wait_until(
    predicate: Callable[[], _T | None], *, timeout: float = 60.0, interval: float = _INTERVAL, message: str = ""
) -> _T:
    """Call `predicate` every `interval` seconds until it is truthy and return that value.

    Half of the time is left to what is waited for, however long it takes to ask, and with `interval` as it is, what
    takes longer is asked more seldom, up to five times a second. Raises AssertionError with `message` (and the last
    value) after `timeout` seconds.
    """
    first = time.monotonic()
    while True:
        began = time.monotonic()
        value = predicate()
        if value:
            return value
        now = time.monotonic()
        if now >= first + timeout:
            raise AssertionError(f"not within {timeout} s: {message or predicate} (last value: {value!r})")
        patience = min((now - first) / 20, 0.2) if interval == _INTERVAL else interval
        time.sleep(max(interval, patience, min(now - began, 1.0)))


def _pair(line: str) -> tuple[str, str]:
    name, oid = line.rsplit(" ", 1)
    return name, oid


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
