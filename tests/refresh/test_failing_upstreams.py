"""Upstreams that refuse, fail, hang, demand a password or die in the middle: told in words, ended, retried, alone."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.git.lab import followed
from tests.refresh.node import Followed, Node, repo_status
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, refs, wait_until
from tests.support.serve import Serve
from tests.support.upstream import GitDaemonUpstream, HttpUpstream

Names = Callable[[], str]
Faults = dict[str, Any]

FAULTS: list[tuple[str, Faults, str]] = [
    ("error 500", {"fail": True}, r"500"),
    ("too many requests", {"status": 429, "retry_after": 1}, r"429"),
    ("not found", {"not_found": True}, r"not found"),
    ("password", {"require_password": True}, r"(?i)username|authentication"),
    ("cut in the answer", {"cut_after": 300}, r"(?i)early EOF|disconnect|hung up|expected|transfer closed|invalid"),
    ("cut in the pack", {"cut_after": 150_000}, r"(?i)early EOF|disconnect|hung up|expected|transfer closed|invalid"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "words"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_a_first_clone_that_fails_is_registered_told_and_retried(
    node: Node, names: Names, generated_bare: Path, faults: Faults, words: str
) -> None:
    """`add-repo` exits 1 and says why; the state is `failing`; once the upstream is well it clears by itself."""
    name = names()
    path = node.upstream.add(name, generated_bare)
    for fault, value in faults.items():
        setattr(node.upstream.on(name), fault, value)
    done = node.serve.cli("add-repo", node.upstream.url(name), "--interval", "1s", check=False)
    assert done.returncode == 1
    assert re.search(words, done.stderr) and "is registered, but its first clone failed" in done.stderr
    status = repo_status(node.serve, name)
    assert status["state"] == "failing" and re.search(words, status["last_error"])
    assert (status["tip"], status["lag"], status["verified_at"]) == (None, None, None)
    assert not node.serve.mirror(name).exists()
    assert node.serve.cli("status", check=False).returncode == 3
    node.upstream.on(name).reset()
    node.serve.wait_for_ref(name, "refs/heads/main", refs(path)["refs/heads/main"])
    status = node.serve.wait_for_repo(name)
    assert (status["last_error"], status["failures"]) == (None, 0)
    node.serve.cli("disable", name)


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "words"), [case[1:] for case in FAULTS[2:]], ids=[case[0] for case in FAULTS[2:]])
def test_a_mirror_outlives_its_upstreams_trouble(
    node: Node, names: Names, generated_bare: Path, tmp_path: Path, faults: Faults, words: str
) -> None:
    """Refs stay as they were, guests clone as ever, the error is told, and the next refresh catches up."""
    repo = node.follow(names(), generated_bare)
    before = followed(repo.mirror)
    _grow(repo.path)
    for fault, value in faults.items():
        setattr(node.upstream.on(repo.name), fault, value)
    [outcome] = repo.refresh_all([repo.name])
    assert outcome["result"] == "failed" and re.search(words, outcome["error"])
    assert followed(repo.mirror) == before
    assert re.search(words, repo.status()["last_error"]) and repo.status()["state"] == "fresh"
    guest = node.serve.clone(tmp_path / "guest", repo.name)
    assert git("rev-parse", "HEAD", cwd=guest) == before["refs/heads/main"]
    fsck(repo.mirror)
    node.upstream.on(repo.name).reset()
    # Or a retry of its own accord has done so by then.
    repo.refresh()
    assert followed(repo.mirror)["refs/heads/main"] != before["refs/heads/main"]
    assert repo.status()["last_error"] is None


@pytest.mark.slow
def test_a_slow_upstream_is_waited_for(node: Node, names: Names, generated_bare: Path) -> None:
    """Slow is not broken: the clone takes its time and others are refreshed meanwhile."""
    other = node.follow(names(), generated_bare)
    name = names()
    path = node.upstream.add(name, generated_bare)
    node.upstream.on(name).slow = 5_000
    node.serve.cli("add-repo", node.upstream.url(name), "--no-wait")
    node.serve.wait_for_repo(name, "cloning")
    tip = add_commit(other.path, "main", {"x": "1\n"})
    assert other.refresh()["refs/heads/main"][1] == tip
    assert repo_status(node.serve, name)["state"] == "cloning"
    # Slow until here, however long the others took.
    node.upstream.on(name).slow = 500_000
    node.serve.wait_for_ref(name, "refs/heads/main", refs(path)["refs/heads/main"])


@pytest.mark.slow
def test_a_dead_upstream_and_its_return(serve: Serve, upstream: HttpUpstream, tmp_path: Path) -> None:
    """Killed: clones still work, and the state becomes `failing`. Back: a commit arrives and all is well."""
    upstream.refuse()
    status = serve.wait_for_repo(WIDGETS, "failing")
    assert re.search(r"(?i)connect", status["last_error"]) and status["failures"] >= 3
    assert serve.cli("status", check=False).returncode == 3
    guest = serve.clone(tmp_path / "guest", WIDGETS)
    assert git("rev-parse", "HEAD", cwd=guest) == status["tip"]
    upstream.restore()
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    assert serve.wait_for_repo(WIDGETS)["failures"] == 0


@pytest.mark.slow
def test_a_commit_arrives_within_the_interval(serve: Serve, upstream: HttpUpstream) -> None:
    """Of several commits each: the first refresh that begins after it brings it, and refreshes begin each second."""
    made = []
    for number in range(3):
        before = time.time()
        tip = add_commit(upstream.path(WIDGETS), "main", {"x": f"{number}\n"})
        made.append((before, time.time()))
        serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    serve.terminate()
    rows = serve.cli_json("refreshes", WIDGETS)[::-1]
    begun = [datetime.fromisoformat(row["started_at"]).timestamp() for row in rows]
    # One that begins while a commit is made may or may not bring it.
    for (_, at), (until, _) in itertools.pairwise([*made, (math.inf, math.inf)]):
        results = [row["result"] for row, when in zip(rows, begun, strict=True) if at < when < until]
        assert "moved" not in results[1:], rows
    ended = [when + row["duration"] for row, when in zip(rows, begun, strict=True)]
    assert min(later - earlier for earlier, later in zip(ended, begun[1:], strict=False)) < 1.5, rows


@pytest.mark.slow
def test_no_ambient_credential_is_used(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path, git_env: dict[str, str]
) -> None:
    """A netrc, credential helpers and askpass programs of the user's lie ready, and none is looked at."""
    upstream.everywhere.require_password = True
    user, password = upstream.everywhere.user, upstream.everywhere.password
    asked = tmp_path / "asked"
    helper = tmp_path / "helper"
    helper.write_text(f'#!/bin/sh\necho "$0 $*" >>{asked}\necho username={user}\necho "password={password}"\n')
    helper.chmod(0o755)
    serve = serve_factory(
        refresh={"timeout": "20s"},
        env={
            "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "credential.helper",
            "GIT_CONFIG_VALUE_0": str(helper),
            "GIT_ASKPASS": str(helper),
            "SSH_ASKPASS": str(helper),
            "GIT_TERMINAL_PROMPT": "1",
        },
    )
    for place in (tmp_path / "gitconfig", serve.home / ".gitconfig", serve.home / ".config" / "git" / "config"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"[credential]\n\thelper = {helper}\n\thelper = store\n[core]\n\taskPass = {helper}\n")
    (serve.home / ".git-credentials").write_text(f"http://{user}:{password}@127.0.0.1:{upstream.port}\n")
    # What the traps are worth: the same git, with them, does get in.
    git("ls-remote", upstream.url(WIDGETS), env={**serve.env, "PATH": git_env["PATH"]})
    assert asked.exists()
    asked.unlink()
    (serve.home / ".netrc").write_text(f'machine 127.0.0.1 login {user} password "{password}"\n')
    (serve.home / ".netrc").chmod(0o600)
    git("ls-remote", upstream.url(WIDGETS), env={**serve.env, "GIT_CONFIG_COUNT": "0"})
    asked.unlink(missing_ok=True)
    upstream.forget()
    alone = serve.cli("add-repo", upstream.url(WIDGETS), check=False)
    serve.start()
    through = serve.cli("add-repo", upstream.url(WIDGETS), check=False)
    for done in (alone, through):
        assert done.returncode == 1 and re.search(r"(?i)username|authentication", done.stderr)
    assert upstream.requests and {request.user for request in upstream.requests} == {""}
    assert not asked.exists()
    assert password not in serve.log() + alone.stderr + through.stderr


@pytest.fixture
def impatient(serve_factory: ServeFactory) -> Serve:
    """An appliance that gives a refresh five seconds."""
    return serve_factory(refresh={"interval": "1s", "timeout": "5s", "concurrency": 2}).start()


@pytest.mark.slow
@pytest.mark.parametrize("faults", [{"hang": True}, {"hang_after": 0}, {"hang_after": 100_000}])
def test_a_hung_upstream_is_ended_with_all_its_processes(
    impatient: Serve, upstream: HttpUpstream, faults: Faults
) -> None:
    """Before the answer, at its start and in the middle of the pack: the deadline leaves no git process."""
    for fault, value in faults.items():
        setattr(upstream.on(WIDGETS), fault, value)
    done = impatient.cli("add-repo", upstream.url(WIDGETS), "--interval", "1h", check=False)
    assert done.returncode == 1 and "took longer than 5s and was ended" in done.stderr
    wait_until(lambda: impatient.processes() == [impatient.pid], message="no git process is left")
    assert not list((impatient.state / "run" / "children").iterdir())
    assert repo_status(impatient, WIDGETS)["state"] == "failing"
    upstream.reset()
    assert impatient.cli_json("refresh", WIDGETS)[0]["error"] is None
    impatient.wait_for_repo(WIDGETS)


@pytest.mark.slow
def test_an_update_that_hangs_is_ended_with_all_its_processes(impatient: Serve, upstream: HttpUpstream) -> None:
    """In the middle of a fetch: refs as before, no process, no lock, and the next one succeeds."""
    impatient.cli("add-repo", upstream.url(WIDGETS), "--interval", "1h")
    before = followed(impatient.mirror(WIDGETS))
    _grow(upstream.path(WIDGETS))
    upstream.on(WIDGETS).hang_after = 100_000
    [outcome] = impatient.cli_json("refresh", WIDGETS, codes=(1,))
    assert "longer than 5s" in outcome["error"]
    wait_until(lambda: impatient.processes() == [impatient.pid], message="no git process is left")
    assert followed(impatient.mirror(WIDGETS)) == before
    upstream.reset()
    assert impatient.cli_json("refresh", WIDGETS)[0]["result"] == "moved"


@pytest.mark.slow
def test_a_stopped_git_daemon(impatient: Serve, generated_bare: Path, tmp_path: Path) -> None:
    """The kernel accepts and nobody answers: ended, told, and followed again once it goes on."""
    with GitDaemonUpstream(tmp_path / "daemon") as daemon:
        path = daemon.add(WIDGETS, generated_bare)
        impatient.cli("add-repo", daemon.url(WIDGETS))
        daemon.hang()
        wait_until(lambda: repo_status(impatient, WIDGETS)["last_error"], message="the hang is told", interval=0.2)
        assert "longer than 5s" in repo_status(impatient, WIDGETS)["last_error"]
        daemon.resume()
        tip = add_commit(path, "main", {"x": "1\n"})
        impatient.wait_for_ref(WIDGETS, "refs/heads/main", tip)
        impatient.wait_for_repo(WIDGETS)


@pytest.fixture
def crowd(serve_factory: ServeFactory, upstream: HttpUpstream) -> Iterator[Callable[[list[str]], Followed]]:
    """Serve `acme/widgets`, healthy, every second beside repositories that are not; two places for all."""

    def make(others: list[str]) -> Followed:
        repos = [upstream.url(name) for name in [*others, WIDGETS]]
        serve = serve_factory(repos=repos, refresh={"interval": "1s", "timeout": "60s", "concurrency": 2}).start()
        serve.wait_for_repo(WIDGETS)
        return Followed(Node(upstream, serve), WIDGETS, upstream.path(WIDGETS))

    yield make
    upstream.reset()


@pytest.mark.slow
def test_first_clones_that_hang_delay_nobody(
    crowd: Callable[[list[str]], Followed], upstream: HttpUpstream, generated_bare: Path
) -> None:
    """Six of them with two places: a healthy repository is registered, cloned and followed all the same."""
    others = [f"hung/repo-{number}" for number in range(6)]
    for name in others:
        upstream.add(name, generated_bare)
        upstream.on(name).hang = True
    healthy = crowd(others)
    _hold_lag_small(healthy, seconds=2, most=3.0)
    assert {repo_status(healthy.node.serve, name)["state"] for name in others} <= {"new", "cloning"}
    assert upstream.hanging >= 2


@pytest.mark.slow
def test_mirrors_whose_upstream_goes_quiet_delay_the_healthy_little(
    crowd: Callable[[list[str]], Followed], upstream: HttpUpstream
) -> None:
    """Six that were healthy hang at once, with two places for all; the healthy one goes on within seconds."""
    others = [f"hung/repo-{number}" for number in range(6)]
    for name in others:
        upstream.add(name)
    healthy = crowd(others)
    for name in others:
        healthy.node.serve.wait_for_repo(name)
    for name in others:
        upstream.on(name).hang = True
    wait_until(lambda: upstream.hanging >= 2, message="two hang")
    _hold_lag_small(healthy, seconds=3, most=5.0)
    wait_until(lambda: upstream.hanging >= 6, message="all six hang at once", timeout=60)
    _hold_lag_small(healthy, seconds=1, most=2.5)


def _hold_lag_small(repo: Followed, *, seconds: float, most: float) -> None:
    """Commit again and again for some seconds; each commit must reach the mirror in `most`."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        tip = add_commit(repo.path, "main", {"x": f"{number}\n"})
        repo.node.serve.wait_for_ref(repo.name, "refs/heads/main", tip, timeout=most)


def _grow(path: Path) -> None:
    """Add a commit with enough in it that a fetch can be cut in the middle."""
    add_commit(path, "main", {f"noise-{number}": _noise(number) for number in range(40)})


def _noise(seed: int) -> bytes:
    import random

    return random.Random(seed).randbytes(10_000)
