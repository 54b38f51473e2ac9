"""`kill -9` of serve at any moment: it serves again, mirrors and backups are whole, the log is true, all is tidy."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.restoring import restore
from appliance.core.layout import Layout
from appliance.core.process.children import start_time
from tests.backup.conftest import back_up, verify
from tests.chaos import impatient
from tests.chaos.storm import Cloner, Mover, Push, Pusher, Worker
from tests.conftest import WIDGETS, ServeFactory
from tests.git.lab import anchored, followed
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS
from tests.serving.conftest import SETTLED
from tests.support.generate import add_commit, force_push, rename_branch
from tests.support.gitutil import fsck, git, refs, remote_refs, wait_until
from tests.support.serve import ROOT, Section, Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CHAOS_KILLS", "8"))
"""How often serve is killed. A thousand take most of an hour on two cores: `CHAOS_KILLS=1000`."""
NEW_REPOS = 3
KEPT_FOR = 12.0
"""Seconds without a turn after which retention ends a session: long enough that most kills find some of all kinds."""
SEED = int(os.environ.get("CHAOS_SEED", "20240517"))
OTHER = "acme/other"
NO_SNAPSHOTS = {"enabled": False}
"""`[workspace]` of those tests that have nothing to do with snapshots."""


@pytest.mark.timeout(600 + 12 * KILLS)
def test_kills_in_the_middle_of_everything(
    serve_factory: ServeFactory, upstream: HttpUpstream, generated_bare: Path, tmp_path: Path
) -> None:
    """Clones, fetches, pushes, backups, repacks and retention are under way, the upstream moves, and serve dies.

    After each restart it serves. At the end: every mirror equals its upstream and passes fsck, a push that its guest
    saw succeed is in the log as applied, and its turn is there unless retention ended it, the chain holds, nothing is
    pending, every backup restores, and neither a process nor a file of a killed one is left.
    """
    rng, target = random.Random(SEED), tmp_path / "backups"
    upstream.add(OTHER, generated_bare)
    urls = [upstream.url(WIDGETS), upstream.url(OTHER)]
    recording: Section = {"retention": f"{KEPT_FOR:g}s", "max_new_sessions": 10**6, "max_turns": 10**6}
    serve = serve_factory(
        repos=urls,
        refresh={"interval": "1s", "timeout": "30s"},
        recording=recording,
        backup={"to": str(target), "every": "2s"},
    )
    serve.command = [sys.executable, "-m", impatient.__name__]
    serve.start()
    serve.keep_ports()
    for name in (WIDGETS, OTHER):
        serve.wait_for_repo(name)
    mover = Mover({name: upstream.path(name) for name in (WIDGETS, OTHER)}, random.Random(SEED + 1))
    pushers = [Pusher(serve, name, tmp_path / f"work-{n}", f"s{n}") for n, name in enumerate((WIDGETS, OTHER))]
    cloner = Cloner(serve.git_url, [WIDGETS, OTHER], tmp_path, random.Random(SEED + 2))
    for pusher in pushers:
        pusher.prepare()
        pusher.step()
        serve.cli("session", "keep", pusher.repo, pusher.name)
    steps = [(mover.step, 0.1), *((pusher.step, 0.1) for pusher in pushers), (cloner.step, 0.2)]
    workers = [Worker(step, pause) for step, pause in steps]
    for worker in workers:
        worker.start()
    registered, heads = [WIDGETS, OTHER], list[str]()
    try:
        for kill in range(KILLS):
            if kill % max(1, KILLS // NEW_REPOS) == 0:
                registered.append(f"new/repo-{kill}")
                upstream.add(registered[-1], generated_bare)
                serve.cli("add-repo", upstream.url(registered[-1]), "--no-wait")
            # Now and then it lives long enough to end a backup or a repack; mostly it is killed in one.
            left = _kill_and_list(serve, after=rng.uniform(0.6, 4.0) if kill % 6 == 3 else rng.uniform(0.05, 0.6))
            heads.append(_audit_head(serve))
            if rng.random() < 0.25:
                _start_and_kill(serve, after=rng.uniform(0.05, 0.4))
            serve.start()
            assert not _living(left), "the old serve's children live"
            assert "HEAD" in remote_refs(f"{serve.git_url}/{WIDGETS}")
    finally:
        print(f"{len(heads)} kills, {sum(len(pusher.pushes) for pusher in pushers)} refs pushed, {mover.count} moves")
        for worker in workers:
            worker.finish()
    pushes = [push for pusher in pushers for push in pusher.pushes]
    assert mover.count > 30 and cloner.cloned > 0
    assert any(push.seen for push in pushes) and not all(push.seen for push in pushes)
    _settle(serve, upstream, registered)
    wait_until(BackupDirectory(target).names, message="there is a backup")
    # What is left to wait for is retention; meanwhile the others would only do again what they have done.
    serve.configure(urls, refresh=SETTLED, recording=recording, backup={"to": str(target), "every": "1h"})
    serve.reload()
    _hold_log_true(serve, pushes, [pusher.name for pusher in pushers])
    logged = {json.loads(line)["hash"] for line in serve.cli("audit", "export").stdout.splitlines()}
    assert {head for head in heads if head} <= logged, "rows of the log are lost"
    wait_until(lambda: serve.processes() == [serve.pid], message="serve is alone")
    for happened in ("maintained in", "ended by retention", "archived", "backup to"):
        assert happened in serve.log(), f"the storm had none of: {happened}"
    assert "is damaged" not in serve.log(), "a kill looked like damage"
    assert serve.terminate() == 0
    # Not before, because a repack that goes on removes packs while fsck reads them.
    for name in registered:
        fsck(serve.mirror(name))
    _hold_backups_true(serve, target, logged, tmp_path / "restored")
    assert _left_over(serve.state) == []


def _kill_and_list(serve: Serve, *, after: float) -> list[tuple[int, int | None]]:
    """Kill serve after a while and return (pid, start time) of the processes that it left."""
    time.sleep(after)
    serve.kill()
    return [(pid, start_time(pid)) for pid in serve.processes() if start_time(pid) is not None]


def _living(left: list[tuple[int, int | None]]) -> list[str]:
    """Those of the processes that still run. One that has given up its memory is dead, though it may not be reaped."""
    found = []
    for pid, started in left:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if command and start_time(pid) == started:
                found.append(f"{pid}: {command}")
    return found


def _audit_head(serve: Serve) -> str:
    """Return the newest hash of the log, as a dead serve left it; "" when there is none."""
    with contextlib.closing(sqlite3.connect(serve.state / "gitmirror.db")) as database:
        found = database.execute("SELECT hash FROM audit_events ORDER BY id DESC LIMIT 1").fetchone()
    return str(found[0]) if found else ""


def _start_and_kill(serve: Serve, *, after: float) -> None:
    """Start serve and kill it a moment later, ready or not."""
    dead = serve.pid

    def kill() -> None:
        # Counted from the start of the process: on a busy machine it may be a while until there is one.
        wait_until(lambda: serve.pid != dead, message="serve is started")
        time.sleep(after)
        os.kill(serve.pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    with contextlib.suppress(AssertionError):
        serve.start()
    killing.join()
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


def _hold_log_true(serve: Serve, pushes: list[Push], kept: Sequence[str]) -> None:
    """Every push that a guest saw succeed is applied; the refs, turns and sessions are what the log says.

    Each push went to a session of its own, which retention ends, and to one that an operator kept, which has them all.
    """
    assert serve.cli("audit", "verify").returncode == 0
    entries = serve.cli_json("audit", "--limit", "1000000", timeout=300)
    assert not [entry for entry in entries if entry["outcome"] == "pending"]
    applied = {(entry["repo"], entry["ref"], entry["new"]) for entry in entries if entry["outcome"] == "applied"}
    failed = {(entry["repo"], entry["ref"], entry["new"]) for entry in entries if entry["outcome"] == "failed"}
    assert not applied & failed
    for push in pushes:
        assert not push.seen or (push.repo, push.ref, push.oid) in applied, f"{push} is not in the log as applied"
    # Retention has its turn, and from then on nothing changes.
    wait_until(
        lambda: {each["session"] for each in json.loads(serve.here("sessions", "--json", codes=(0, 3)))} <= set(kept),
        timeout=120, interval=0.5, message="retention ended the sessions that nobody kept",
    )  # fmt: skip
    ended, expected = _ended(serve), dict[str, dict[str, str]]()
    for entry in entries:
        if entry["outcome"] == "applied" and entry["session"] in kept:
            expected.setdefault(entry["repo"], {})[f"{TURNS}{entry['id']}"] = entry["new"]
        elif entry["outcome"] == "applied":
            assert ended[entry["repo"], entry["session"]] >= entry["id"], f"{entry} is in no session and was not ended"
    for repo in {push.repo for push in pushes}:
        here = {ref: oid for ref, oid in refs(serve.mirror(repo)).items() if ref.startswith((AGENTS, ARCHIVE, TURNS))}
        turns = {ref: oid for ref, oid in here.items() if ref.startswith(TURNS)}
        assert turns == expected[repo], f"the turns of {repo} are not those of its kept session"
        assert {ref.rpartition("/")[2] for ref in here.keys() - turns.keys()} <= set(kept)
        [session] = [each for each in serve.cli_json("sessions", "--repo", repo)]
        assert session["turns"] == len(turns) and session["tip"] in turns.values()


def _ended(serve: Serve) -> dict[tuple[str, str], int]:
    """The last attempt of each session that was ended, by repository and name."""
    with contextlib.closing(sqlite3.connect(serve.state / "gitmirror.db")) as database:
        found = database.execute("SELECT repo, session, max(last_attempt) FROM session_ends GROUP BY repo, session")
        return {(repo, session): last for repo, session, last in found}


def _hold_backups_true(serve: Serve, target: Path, logged: set[str], base: Path) -> None:
    """Every backup that is left can be restored, and the newest and the oldest are: each is the log at its time."""
    back_up(serve, target)
    assert verify(serve, target) == []
    directory = BackupDirectory(target)
    manifests = [directory.read(name) for name in directory.names()]
    assert len(manifests) > 1
    for number, manifest in enumerate((manifests[0], manifests[-1])):
        layout = Layout(base / str(number))
        assert restore(target, layout, move_aside=False, before=manifest.at).at == manifest.at
        with contextlib.closing(sqlite3.connect(layout.database)) as database:
            turns = database.execute("SELECT repo, id, commit_id FROM turns").fetchall()
            hashes = {each for (each,) in database.execute("SELECT hash FROM audit_events")}
        assert hashes <= logged
        for repo in {repo for repo, _, _ in turns}:
            here = refs(layout.mirror(repo))
            assert {here.get(f"{TURNS}{number}") == oid for name, number, oid in turns if name == repo} == {True}
    named = {path for manifest in manifests for path in manifest.files()}
    left = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {path for path in left if not path.startswith("manifests/")} == named, "files of killed backups are left"


def _left_over(state: Path) -> list[str]:
    """What killed processes left in a state directory on which nothing runs, but for the files of workspaces."""
    temporary = re.compile(
        r"\.|tmp_|database-copy-|incoming-|(shallow|refs|packs)_\w{6}$|.*\.(lock|new|removed|turns)$"
    )
    found = [path.relative_to(state) for path in state.rglob("*") if temporary.match(path.name)]
    known = {Path("run/owner.lock"), Path("run/children.lock")}
    return sorted(str(path) for path in found if path not in known and "tree" not in path.parts)


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
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, env=env, workspace=NO_SNAPSHOTS)
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
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, workspace=NO_SNAPSHOTS)
    path = serve.env["PATH"]
    serve.start()
    serve.wait_for_repo(WIDGETS)
    serve.terminate()
    old = refs(upstream.path(WIDGETS))
    force_push(upstream.path(WIDGETS), "main", depth=2)
    force_push(upstream.path(WIDGETS), "develop")
    rename_branch(upstream.path(WIDGETS), "develop", "develop/next")
    git("symbolic-ref", "HEAD", "refs/heads/develop/next", cwd=upstream.path(WIDGETS))
    serve.configure([upstream.url(WIDGETS)], refresh={"interval": "1s"}, workspace=NO_SNAPSHOTS)
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
    serve = serve_factory(refresh=SETTLED, workspace=NO_SNAPSHOTS)
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
    packed = mirror / "packed-refs.new"
    wait_until(lambda: list(serve.state.glob(f"workspaces/{WIDGETS}/*/*/snapshot.json")), message="there is a snapshot")
    [snapshot] = serve.state.glob(f"workspaces/{WIDGETS}/*/*/snapshot.json")
    half_written = [
        path.with_name(f".{path.name}.77.new")
        for path in (snapshot, mirror / "config", serve.state / "run" / "git.config")
    ]
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    half.write_bytes(b"half a pack")
    packed.write_bytes(b"# pack-refs with: peeled fully-peeled sorted")
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "2\n"})
    wait_until(lambda: "lock" in str(serve.status()["repos"][0]["last_error"]), message="the lock is in the way")
    assert lock.exists() and half.exists() and packed.exists()
    for path in half_written:
        path.touch()
    serve.kill()
    serve.start()
    assert not lock.exists() and not half.exists() and not packed.exists()
    assert not [path for path in half_written if path.exists()]
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    fsck(mirror)
