"""`kill -9` of serve at any moment: it serves again, every mirror is whole, the log is true, nothing runs on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.process.children import start_time
from tests.chaos.storm import Cloner, Mover, Push, Pusher, Worker
from tests.conftest import WIDGETS, ServeFactory
from tests.git.lab import anchored, followed
from tests.support.generate import add_commit, force_push, rename_branch
from tests.support.gitutil import fsck, git, refs, remote_refs, wait_until
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

KILLS = 30
SEED = 20240517
OTHER = "acme/other"


@pytest.mark.slow
def test_thirty_kills_in_the_middle_of_everything(
    serve_factory: ServeFactory, upstream: HttpUpstream, generated_bare: Path, tmp_path: Path
) -> None:
    """Clones, fetches and pushes are under way, the upstream moves, force pushes included, and serve dies thirty times.

    After each restart it serves. At the end: every mirror equals its upstream and passes fsck, a push that its guest
    saw succeed is in the log as applied and in the mirror, the chain holds, nothing is pending, no process is left.
    """
    rng = random.Random(SEED)
    upstream.add(OTHER, generated_bare)
    serve = serve_factory(
        repos=[upstream.url(WIDGETS), upstream.url(OTHER)], refresh={"interval": "1s", "timeout": "30s"}
    ).start()
    serve.keep_ports()
    for name in (WIDGETS, OTHER):
        serve.wait_for_repo(name)
    mover = Mover({name: upstream.path(name) for name in (WIDGETS, OTHER)}, random.Random(SEED + 1))
    pushers = [Pusher(serve, name, tmp_path / f"work-{n}", f"s{n}") for n, name in enumerate((WIDGETS, OTHER))]
    cloner = Cloner(serve.git_url, [WIDGETS, OTHER], tmp_path, random.Random(SEED + 2))
    for pusher in pushers:
        pusher.prepare()
    steps = [(mover.step, 0.1), *((pusher.step, 0.1) for pusher in pushers), (cloner.step, 0.2)]
    workers = [Worker(step, pause) for step, pause in steps]
    for worker in workers:
        worker.start()
    registered, heads = [WIDGETS, OTHER], list[str]()
    try:
        for kill in range(KILLS):
            if kill % 5 == 0:
                registered.append(f"new/repo-{kill}")
                upstream.add(registered[-1], generated_bare)
                serve.cli("add-repo", upstream.url(registered[-1]), "--no-wait")
            left = _kill_and_list(serve, after=rng.uniform(0.05, 0.6))
            heads.append(_audit_head(serve))
            if rng.random() < 0.25:
                _start_and_kill(serve, after=rng.uniform(0.05, 0.4))
            serve.start()
            assert not [pid for pid, started in left if start_time(pid) == started], "the old serve's children live"
            assert "HEAD" in remote_refs(f"{serve.git_url}/{WIDGETS}")
    finally:
        for worker in workers:
            worker.finish()
    pushes = [push for pusher in pushers for push in pusher.pushes]
    assert mover.count > 30 and cloner.cloned > 0
    assert any(push.seen for push in pushes) and not all(push.seen for push in pushes)
    _settle(serve, upstream, registered)
    for name in registered:
        fsck(serve.mirror(name))
    _hold_log_true(serve, pushes)
    logged = {json.loads(line)["hash"] for line in serve.cli("audit", "export").stdout.splitlines()}
    assert {head for head in heads if head} <= logged, "rows of the log are lost"
    wait_until(lambda: serve.processes() == [serve.pid], message="serve is alone")
    assert serve.terminate() == 0


def _kill_and_list(serve: Serve, *, after: float) -> list[tuple[int, int | None]]:
    """Kill serve after a while and return (pid, start time) of the processes that it left."""
    time.sleep(after)
    serve.kill()
    return [(pid, start_time(pid)) for pid in serve.processes() if start_time(pid) is not None]


def _audit_head(serve: Serve) -> str:
    """Return the newest hash of the log, as a dead serve left it; "" when there is none."""
    with contextlib.closing(sqlite3.connect(serve.state / "gitmirror.db")) as database:
        found = database.execute("SELECT hash FROM audit_events ORDER BY id DESC LIMIT 1").fetchone()
    return str(found[0]) if found else ""


def _start_and_kill(serve: Serve, *, after: float) -> None:
    """Start serve and kill it a moment later, ready or not."""
    timer = threading.Timer(after, lambda: os.kill(serve.pid, signal.SIGKILL))
    timer.start()
    with contextlib.suppress(AssertionError):
        serve.start()
    timer.join()
    serve.wait(60)


def _settle(serve: Serve, upstream: HttpUpstream, names: list[str]) -> None:
    """Wait until every mirror is what its upstream is, by itself."""

    def differing() -> list[str]:
        return [
            name
            for name in names
            if not serve.mirror(name).exists() or followed(serve.mirror(name)) != followed(upstream.path(name))
        ]

    wait_until(lambda: not differing(), timeout=60, interval=0.1, message="every mirror equals its upstream")
    for name in names:
        serve.wait_for_repo(name)


def _hold_log_true(serve: Serve, pushes: list[Push]) -> None:
    """Every push that a guest saw succeed is applied; what the log says of every ref is so."""
    assert serve.cli("audit", "verify").returncode == 0
    entries = serve.cli_json("audit", "--limit", "100000")
    assert not [entry for entry in entries if entry["outcome"] == "pending"]
    applied = {(entry["repo"], entry["ref"], entry["new"]) for entry in entries if entry["outcome"] == "applied"}
    failed = {(entry["repo"], entry["ref"], entry["new"]) for entry in entries if entry["outcome"] == "failed"}
    here = {(repo, ref): oid for repo in {p.repo for p in pushes} for ref, oid in refs(serve.mirror(repo)).items()}
    for push in pushes:
        attempt = (push.repo, push.ref, push.oid)
        if push.seen:
            assert attempt in applied, f"{push} is not in the log as applied"
        if push.ref.rpartition("-")[0]:
            # A ref of its own: it is there exactly when the log says so, whether or not the guest was told.
            assert (here.get((push.repo, push.ref)) == push.oid) is (attempt in applied), push
            assert not (attempt in failed and attempt in applied)
        else:
            assert (push.repo, here[push.repo, push.ref]) in {(repo, new) for repo, _, new in applied}


@pytest.fixture
def stopping_git(tmp_path: Path) -> Callable[[str, str], tuple[dict[str, str], Path]]:
    """Return `make(command, directory)`: an environment whose git stops for good at a command in a directory.

    The second part of the answer is a path that appears when it has stopped.
    """

    def make(command: str, directory: str) -> tuple[dict[str, str], Path]:
        stopped = tmp_path / "stopped"
        wrapper = tmp_path / "bin" / "git"
        wrapper.parent.mkdir()
        real = shutil.which("git")
        wrapper.write_text(
            f'#!/bin/sh\ncase "$1 $PWD" in "{command} "*"{directory}"*) touch {stopped}; exec sleep 600;; esac\n'
            f'exec {real} "$@"\n'
        )
        wrapper.chmod(0o755)
        return {"PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"}, stopped

    return make


def _restart_with(serve: Serve, path: str) -> None:
    """Kill serve in its step, and start it with another PATH; it ends what the old one left."""
    left = _kill_and_list(serve, after=0)
    assert left, "git outlives serve"
    serve.env["PATH"] = path
    serve.start()
    assert not [pid for pid, started in left if start_time(pid) == started]


@pytest.mark.parametrize(
    ("command", "directory"),
    [
        ("init", "/incoming/"),
        ("ls-remote", "/incoming/"),
        ("fetch", "/incoming/"),
        ("for-each-ref", "/incoming/"),
        ("for-each-ref", "/mirrors/"),
    ],
)
def test_a_kill_between_the_steps_of_a_first_clone(
    serve_factory: ServeFactory,
    upstream: HttpUpstream,
    stopping_git: Callable[[str, str], tuple[dict[str, str], Path]],
    command: str,
    directory: str,
) -> None:
    """Before, between and after its git commands: the next serve clones by itself, and nothing of the first is left."""
    env, stopped = stopping_git(command, directory)
    path = os.environ["PATH"]
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1h", "stale_after": "2h"}, env=env)
    serve.start()
    wait_until(stopped.exists, message=f"git {command} is reached")
    _restart_with(serve, path)
    serve.wait_for_repo(WIDGETS)
    assert followed(serve.mirror(WIDGETS)) == followed(upstream.path(WIDGETS))
    fsck(serve.mirror(WIDGETS))
    assert git("config", "gc.auto", cwd=serve.mirror(WIDGETS)) == "0"
    assert not list((serve.state / "incoming").glob("*/*"))


@pytest.mark.parametrize("command", ["ls-remote", "update-ref", "fetch", "symbolic-ref"])
def test_a_kill_between_the_steps_of_an_update(
    serve_factory: ServeFactory,
    upstream: HttpUpstream,
    stopping_git: Callable[[str, str], tuple[dict[str, str], Path]],
    command: str,
) -> None:
    """With a force-push, `develop` become a directory and a new default branch: the next serve follows it all."""
    env, stopped = stopping_git(command, "/mirrors/")
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1h", "stale_after": "2h"})
    path = serve.env["PATH"]
    serve.start()
    serve.wait_for_repo(WIDGETS)
    serve.terminate()
    old = refs(upstream.path(WIDGETS))
    force_push(upstream.path(WIDGETS), "main", depth=2)
    force_push(upstream.path(WIDGETS), "develop")
    rename_branch(upstream.path(WIDGETS), "develop", "develop/next")
    git("symbolic-ref", "HEAD", "refs/heads/develop/next", cwd=upstream.path(WIDGETS))
    serve.configure([upstream.url(WIDGETS)], refresh={"interval": "1s"})
    serve.env.update(env)
    serve.start()
    wait_until(stopped.exists, message=f"git {command} is reached")
    _restart_with(serve, path)
    wait_until(
        lambda: followed(serve.mirror(WIDGETS)) == followed(upstream.path(WIDGETS)), message="the mirror caught up"
    )
    head = refs(upstream.path(WIDGETS))["refs/heads/develop/next"]
    wait_until(lambda: remote_refs(f"{serve.git_url}/{WIDGETS}")["HEAD"] == head, message="HEAD follows")
    assert {old["refs/heads/main"], old["refs/heads/develop"]} <= anchored(serve.mirror(WIDGETS))
    fsck(serve.mirror(WIDGETS))


def test_an_add_repo_killed_in_its_clone(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Its git processes live on and hold the clone; serve ends them, and clones what was registered."""
    serve = serve_factory(refresh={"interval": "1h", "stale_after": "2h"})
    upstream.on(WIDGETS).hang_after = 50_000
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config), "add-repo"]
    adding = subprocess.Popen([*argv, upstream.url(WIDGETS)], cwd=ROOT, env=serve.env)
    wait_until(lambda: upstream.hanging, message="the clone is under way")
    adding.kill()
    adding.wait()
    left = serve.processes()
    assert left
    serve.start()
    assert not set(left) & set(serve.processes())
    assert "that an earlier serve left" in serve.log()
    upstream.reset()
    serve.wait_for_repo(WIDGETS)
    fsck(serve.mirror(WIDGETS))
    assert not list((serve.state / "incoming").glob("*/*"))


def test_leftovers_in_mirrors_are_removed_at_start_and_only_then(
    serve_factory: ServeFactory, upstream: HttpUpstream
) -> None:
    """What a killed git left no longer stops a fetch; while serve runs nobody's lock is touched."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1s"}).start()
    serve.wait_for_repo(WIDGETS)
    mirror = serve.mirror(WIDGETS)
    lock, half = mirror / "refs" / "heads" / "main.lock", mirror / "objects" / "pack" / "tmp_pack_Ab12"
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    half.write_bytes(b"half a pack")
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "2\n"})
    wait_until(
        lambda: "lock" in str(serve.cli_json("status")["repos"][0]["last_error"]), message="the lock is in the way"
    )
    assert lock.exists() and half.exists()
    serve.kill()
    serve.start()
    assert not lock.exists() and not half.exists()
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    fsck(mirror)
