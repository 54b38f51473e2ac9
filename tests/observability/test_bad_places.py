"""Directories, databases and disks that cannot be used disable only what depends on them, never the node."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.core.store.audit import Attempt, AuditLog
from appliance.core.store.database import Database
from tests.conftest import WIDGETS, ServeFactory
from tests.observability.conftest import repo_of, status_of
from tests.serving.fetch.conftest import metric, wait_warm
from tests.serving.fetch.wire import http_ask
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_result, wait_until
from tests.support.privileges import bound_by_modes
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

OTHER = "acme/other"
OFTEN = {"interval": "1s"}
KEEPS_WORKSPACES = True


@pytest.fixture
def node(serve_factory: ServeFactory, upstream: HttpUpstream, generated_bare: Path) -> Serve:
    """A node with two cloned repositories, whose `serve` is bound by file modes."""
    upstream.add(OTHER, generated_bare)
    serve = serve_factory(repos=[upstream.url(WIDGETS), upstream.url(OTHER)], refresh=OFTEN)
    serve.starter = bound_by_modes()
    serve.start()
    for name in (WIDGETS, OTHER):
        serve.wait_for_repo(name)
    return serve


def follows(serve: Serve, upstream: HttpUpstream, name: str = OTHER) -> None:
    """The repository is refreshed, and guests are served."""
    tip = add_commit(upstream.path(name), "main", {str(time.monotonic_ns()): "1\n"})
    serve.wait_for_ref(name, "refs/heads/main", tip)
    # A guest may be refused because a refresh has the last descriptors, and asks again.
    look = lambda: tip in git("ls-remote", f"{serve.git_url}/{name}", check=False)  # noqa: E731
    wait_until(look, message="guests see it")


def push(serve: Serve, guest: Path, session: str, name: str = WIDGETS) -> tuple[int, str]:
    """Records in a session. Returns the exit code and git's output."""
    code, _, said = git_result("push", f"{serve.git_url}/{name}", f"HEAD:refs/agents/{session}", cwd=guest)
    return code, said


@pytest.mark.slow
def test_a_mirror_that_cannot_be_read_is_nobody_elses_trouble(
    node: Serve, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """While `serve` runs, over a restart, and until it can be read again; the periodic chores continue meanwhile."""
    mirror = node.mirror(WIDGETS)
    mirror.chmod(0)
    try:
        found = node.wait_for_repo(WIDGETS, "failing", timeout=60)
        assert found["error"] == "permission" and "chown" in found["hint"], found
        follows(node, upstream)
        # What tidies up every ten seconds has looked at every repository by then.
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 11 or not node.running, timeout=60)
        node.restart()
        follows(node, upstream)
        node.wait_for_repo(WIDGETS, "failing", timeout=60)
        assert not list((node.state / "incoming").glob("*/*")), "nothing was cloned in its place"
    finally:
        mirror.chmod(0o750)
    node.wait_for_repo(WIDGETS, timeout=60)
    follows(node, upstream, WIDGETS)
    assert "Traceback" not in node.log()
    assert node.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", ["cache", "workspaces", "workspaces/acme/widgets", "lfs"])
def test_a_place_that_cannot_be_used_is_done_without(
    node: Serve, upstream: HttpUpstream, tmp_path: Path, place: str
) -> None:
    """serve starts, guests are served and may push, `status` says what is wrong, and it clears by itself."""
    node.terminate()
    directory = node.state / place
    directory.mkdir(exist_ok=True)
    directory.chmod(0)
    try:
        node.start()
        follows(node, upstream)
        node.clone(tmp_path / "guest", WIDGETS)
        assert push(node, tmp_path / "guest", "s1")[0] == 0
        if place != "workspaces/acme/widgets":
            [said] = status_of(node)["warnings"]
            assert str(directory) in said and "Permission denied" in said, said
    finally:
        directory.chmod(0o750)
    wait_until(lambda: not status_of(node)["warnings"], timeout=60, message="it clears")

    def has_tar() -> bool:
        return http_ask(f"{node.http_url}/{WIDGETS}/workspace.tar").status == 200

    wait_until(has_tar, timeout=60, message="there are workspaces")
    assert "Traceback" not in node.log()


@pytest.mark.slow
def test_an_attempt_in_a_damaged_mirror_waits_until_it_can_be_settled(node: Serve, upstream: HttpUpstream) -> None:
    """Nobody can know its outcome yet, so none is logged. The other repositories are served meanwhile."""
    tip = git("rev-parse", "main", cwd=node.mirror(WIDGETS))
    node.terminate()
    attempt = Attempt("push", WIDGETS, "refs/agents/s", "s", None, tip, "accepted", None, "127.0.0.1")
    with closing(Database(node.state / "gitmirror.db")) as database:
        AuditLog(database, time.time).record_attempts([attempt])
    mirror, away = node.mirror(WIDGETS), upstream.path(WIDGETS).with_name("away")
    # Without its upstream it cannot be healed.
    upstream.path(WIDGETS).rename(away)
    (mirror / "objects").rename(mirror / "aside")
    node.start()
    follows(node, upstream)
    [row] = node.cli_json("audit")
    assert row["outcome"] == "pending"
    away.rename(upstream.path(WIDGETS))
    node.cli("heal", WIDGETS)
    wait_until(lambda: node.cli_json("audit")[0]["outcome"] == "failed", timeout=60, message="it is settled")


Damage = Callable[[Path], Callable[[], None]]
"""Does it to the database, and returns what mends it."""


def garbage(database: Path) -> Callable[[], None]:
    """Something else is in the file."""
    kept = database.with_name("kept.db")
    shutil.copy(database, kept)
    database.write_bytes(b"not a database " * 500)

    def mend() -> None:
        kept.rename(database)

    return mend


def unreadable(database: Path) -> Callable[[], None]:
    """Its mode is 000."""
    database.chmod(0)
    return lambda: database.chmod(0o640)


def directory(database: Path) -> Callable[[], None]:
    """A directory is in its place."""
    kept = database.with_name("kept.db")
    database.rename(kept)
    database.mkdir()

    def mend() -> None:
        database.rmdir()
        kept.rename(database)

    return mend


@pytest.mark.slow
@pytest.mark.parametrize("damage", [garbage, unreadable, directory], ids=lambda damage: damage.__name__)
def test_without_a_database_guests_are_served_and_pushes_are_off(
    node: Serve,
    upstream: HttpUpstream,
    generated_bare: Path,
    tmp_path: Path,
    damage: Damage,
) -> None:
    """The config's list and the mirrors on disk are served. `status` says how to mend it, and no restart is needed."""
    added = "acme/added"
    upstream.add(added, generated_bare)
    node.cli("add-repo", upstream.url(added))
    node.clone(tmp_path / "guest", WIDGETS)
    assert push(node, tmp_path / "guest", "s1")[0] == 0
    node.terminate()
    mend = damage(node.state / "gitmirror.db")
    node.start()
    for name in (WIDGETS, added):
        follows(node, upstream, name)
    code, said = push(node, tmp_path / "guest", "s2")
    assert code == 1 and "pushes are off" in said
    done = node.cli("status", check=False)
    assert done.returncode == 3
    assert "pushes are off: the database" in done.stdout and "gitmirror.db" in done.stdout, done.stdout
    assert any(word in done.stdout for word in ("chown", "mv ", "cp ")), done.stdout
    assert status_of(node)["pushes"]["off"]
    assert http_ask(f"{node.admin_url}/readyz").status == 200
    mend()
    wait_until(lambda: status_of(node)["pushes"]["off"] is None, timeout=60, message="pushes are on")
    assert push(node, tmp_path / "guest", "s2")[0] == 0
    assert {repo["name"] for repo in status_of(node)["repos"]} == {WIDGETS, OTHER, added}
    assert repo_of(node)["sessions"] in (1, 2)
    node.cli("audit", "verify")
    assert "Traceback" not in node.log()
    assert node.terminate() == 0


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small file system."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    if done.returncode or os.geteuid():
        pytest.skip("only root can mount a small disk to fill")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_bytes(place: Path) -> None:
    """Not one byte is left."""
    with contextlib.suppress(OSError), (place / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def fill_inodes(place: Path) -> None:
    """Not one more file can be made."""
    (place / "filling").mkdir()
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (place / "filling" / str(number)).touch()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "fill"), [("size=8m", fill_bytes), ("size=64m,nr_inodes=900", fill_inodes)])
def test_a_full_disk_does_not_keep_serve_from_starting(
    upstream: HttpUpstream, tmp_path: Path, options: str, fill: Callable[[Path], None]
) -> None:
    """Guests are served, pushes are off and reported as such everywhere, and on again once there is space."""
    name = "acme/small"
    path = upstream.add(name)
    add_commit(path, "main", {"x": "1\n"})
    with mounted(tmp_path / "small", options) as disk:
        serve = Serve(disk / "state", repos=[upstream.url(name)], refresh=OFTEN)
        with serve:
            serve.start()
            serve.wait_for_repo(name)
            serve.terminate()
            # What the test writes itself must find room.
            serve.home.mkdir(exist_ok=True)
            for output in (serve._stdout, serve._stderr):
                moved = tmp_path / output.name
                moved.touch()
                output.unlink()
                output.symlink_to(moved)
            fill(disk)
            serve.start()
            serve.clone(tmp_path / "guest", name)
            code, said = push(serve, tmp_path / "guest", "s1", name)
            assert code == 1 and "pushes are off" in said
            wait_until(lambda: metric(serve, "gitmirror_pushes_enabled") == 0, message="the metric says so")
            ready = f"{serve.admin_url}/readyz"
            # It names one cause. At first that is the repository, because this serve has not refreshed it yet.
            wait_until(lambda: b"pushes are off" in http_ask(ready).body, message="/readyz says why")
            if fill is fill_bytes:
                assert metric(serve, "gitmirror_disk_free_bytes") < 2**20
                done = serve.cli("status", check=False)
                assert done.returncode == 3 and "warning: pushes are off: " in done.stdout, done.stdout
            shutil.rmtree(disk / "filling", ignore_errors=True)
            (disk / "filling").unlink(missing_ok=True)
            wait_until(
                lambda: metric(serve, "gitmirror_pushes_enabled") == 1, timeout=60, message="pushes are on again"
            )
            assert push(serve, tmp_path / "guest", "s1", name)[0] == 0
            assert status_of(serve)["pushes"]["off"] is None
            assert "Traceback" not in serve.log()
            assert serve.terminate() == 0


@pytest.mark.slow
def test_out_of_descriptors_is_passed_over(serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path) -> None:
    """Guests occupy all descriptors for longer than every background loop waits, and `serve` survives."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=OFTEN)
    serve.start()
    serve.wait_for_repo(WIDGETS)
    # Each response that is kept has a descriptor of its own.
    wait_warm(serve)
    wait_until(lambda: http_ask(f"{serve.http_url}/{WIDGETS}/workspace.tar", "HEAD").status == 200)
    used = len(os.listdir(f"/proc/{serve.pid}/fd"))
    resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(serve.git_address))
        wait_until(lambda: "Too many open files" in serve.log(), timeout=60, message="it was felt")
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 11 or not serve.running, timeout=60)
        assert serve.running, serve.log()
    follows(serve, upstream, WIDGETS)
    assert serve.terminate() == 0
