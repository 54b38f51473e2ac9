"""What guests brought ends when nobody uses it, and not before; and the operator has the last word."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.ondemand.conftest import Allowing
from tests.support.gitutil import commit_files, git, git_result, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow


@pytest.fixture
def allowing(allowing: Allowing) -> Allowing:
    """Without workspaces, unless it is said otherwise."""
    return partial(allowing, workspace={"enabled": False})


def names(serve: Serve) -> dict[str, str]:
    """The registry: where each repository is from."""
    return {repo["name"]: repo["source"] for repo in serve.status()["repos"]}


def files(serve: Serve) -> list[str]:
    """The directories that anything of the repository is in."""
    places = ("mirrors/acme/widgets.git", "workspaces/acme/widgets", "disks/acme/widgets", "incoming/acme/widgets.git")
    return [place for place in places if _has_any(serve.state / place)]


def _has_any(place: Path) -> bool:
    # It may go while it is looked at.
    with contextlib.suppress(FileNotFoundError):
        return any(place.iterdir())
    return False


def uses(serve: Serve) -> list[tuple[Any, ...]]:
    """What the database has of their use."""
    with sqlite3.connect(serve.state / "gitmirror.db") as connection:
        return connection.execute("SELECT repo_id, expire_after, used_at FROM allowed_repos").fetchall()


def age(serve: Serve, seconds: float) -> None:
    """Makes the last use older, while `serve` is down."""
    with sqlite3.connect(serve.state / "gitmirror.db") as connection:
        connection.execute("UPDATE allowed_repos SET used_at = used_at - ?", [seconds])


def bring(serve: Serve, dest: Path) -> Path:
    """Clone the repository, so that it is brought."""
    return serve.clone(dest, WIDGETS)


def test_what_nobody_uses_ends(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """The mirror and everything beside it go, and it can be brought again."""
    serve = allowing(expire_after="5s", workspace={"enabled": True})
    bring(serve, tmp_path / "one")
    wait_until(lambda: names(serve) == {}, timeout=60, message="it has ended")
    wait_until(lambda: files(serve) == [], message="its files are gone")
    words = f"{WIDGETS} is removed with its mirror: nobody has fetched it for 5s"
    wait_until(lambda: words in serve.log(), message="the log says so")
    with sqlite3.connect(serve.state / "gitmirror.db") as connection:
        assert connection.execute("SELECT count(*) FROM allowed_ends").fetchone() == (0,)
    bring(serve, tmp_path / "two")


def test_use_and_recordings_keep_it(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """It stays while it is fetched, and with a session; it ends some time after the session has ended."""
    serve = allowing(expire_after="5s")
    work = bring(serve, tmp_path / "one")
    until = time.monotonic() + 7
    while time.monotonic() < until:
        assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0] == 0
        assert names(serve) == {WIDGETS: "allowed"}
    commit_files(work, {"agent.txt": "1\n"}, "a turn")
    git("push", "-q", f"{serve.git_url}/{WIDGETS}", "HEAD:refs/agents/s1", cwd=work)
    until = time.monotonic() + 7
    while time.monotonic() < until:
        assert names(serve) == {WIDGETS: "allowed"}
        time.sleep(0.1)
    began = time.monotonic()
    serve.here("session", "drop", WIDGETS, "s1", "--yes")
    wait_until(lambda: names(serve) == {}, timeout=60, message="it has ended")
    assert time.monotonic() - began > 1


@pytest.mark.parametrize("keeper", ["ref", "attachment", "disabled", "guest", "lease"])
def test_what_else_keeps_it(allowing: Allowing, tmp_path: Path, keeper: str) -> None:
    # On a busy machine it may be seconds until the keeper is there, and more until a disk is built.
    expire_after = 8 if keeper == "lease" else 6
    serve = allowing(expire_after=f"{expire_after}s", workspace={"enabled": keeper == "lease"})
    bring(serve, tmp_path / "one")
    if keeper == "ref":
        # As after the loss of a database: a turn that no table has.
        git("update-ref", "refs/gitmirror/turns/7", "HEAD", cwd=serve.mirror(WIDGETS))
    elif keeper == "attachment":
        attached = serve.state / "attachments" / WIDGETS / "7"
        attached.mkdir(parents=True)
        (attached / "x").write_bytes(b"x")
    elif keeper == "disabled":
        serve.here("disable", WIDGETS)
    elif keeper == "guest":
        serve.here("guest", "add", "vm-1", "--repo", WIDGETS, "--token")
    else:
        lease = json.loads(serve.here("disk", WIDGETS, "--ttl", "1h", "--json"))
        assert lease["drives"]
    until = time.monotonic() + expire_after + 1.5
    while time.monotonic() < until:
        assert names(serve) == {WIDGETS: "allowed"}
        time.sleep(0.1)
    if keeper == "lease":
        serve.here("disk", "release", lease["id"])
        wait_until(lambda: names(serve) == {}, timeout=60, message="it has ended")


def test_the_last_use_survives_a_restart(allowing: Allowing, tmp_path: Path) -> None:
    serve = allowing(expire_after="1h")
    began = time.time()
    bring(serve, tmp_path / "one")
    serve.terminate()
    [(_, expire_after, used_at)] = uses(serve)
    assert expire_after == 3600 and began <= used_at <= time.time()
    age(serve, 3000)
    serve.start()
    serve.wait_for_repo(WIDGETS)
    serve.terminate()
    age(serve, 1000)
    serve.start()
    wait_until(lambda: names(serve) == {}, timeout=60, message="it has ended")


def test_the_operator_takes_it(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """`add-repo` makes it the operator's; `remove-repo` and `disable` work before that, too."""
    serve = allowing(expire_after="8s")
    bring(serve, tmp_path / "one")
    serve.here("remove-repo", WIDGETS, "--purge", "--yes")
    assert names(serve) == {} and files(serve) == []
    bring(serve, tmp_path / "two")
    serve.here("disable", WIDGETS)
    assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0]
    serve.here("enable", WIDGETS)
    assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0] == 0
    serve.here("add-repo", upstream.url(WIDGETS))
    assert names(serve) == {WIDGETS: "cli"} and uses(serve) == []
    until = time.monotonic() + 10
    while time.monotonic() < until:
        assert names(serve) == {WIDGETS: "cli"}
        time.sleep(0.1)


def test_a_reload_applies_the_entries(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """`[[repos]]` makes it the config's; without `[[allow]]` nothing more is brought, and what is here stays."""
    serve = allowing(expire_after="1h")
    upstream.add("acme/other", upstream.path(WIDGETS))
    upstream.add("acme/third", upstream.path(WIDGETS))
    bring(serve, tmp_path / "one")
    serve.clone(tmp_path / "other", "acme/other")
    serve.configure([upstream.url(WIDGETS)])
    serve.reload()
    wait_until(lambda: names(serve) == {WIDGETS: "config", "acme/other": "allowed"}, message="the reload")
    assert git_result("ls-remote", f"{serve.git_url}/acme/third")[0]
    assert git_result("ls-remote", f"{serve.git_url}/acme/other")[0] == 0
    serve.configure([upstream.url(WIDGETS)], allow=[{"url": upstream.url("acme/third")}, {"url": "file:///srv/x/*"}])
    serve.reload()
    wait_until(lambda: len(serve.status()["warnings"]) == 1, message="the reload")
    assert "allow[2]" in serve.status()["warnings"][0]
    serve.clone(tmp_path / "third", "acme/third")


def test_private_upstreams_stay_unknown(serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path) -> None:
    """What a credential makes private is neither brought nor told from what does not exist, whoever asks."""
    upstream.add("acme/private", upstream.path(WIDGETS))
    upstream.add("acme/registered", upstream.path(WIDGETS))
    secret = tmp_path / "token"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    for name in ("acme/private", "acme/registered"):
        upstream.on(name).require_password = True
    entries = [
        {"url": upstream.url(name), "token_file": str(secret), "username": "reader"}
        for name in ("acme/private", "acme/registered")
    ]
    serve = serve_factory(
        repos=[upstream.url("acme/registered")],
        allow=[{"url": f"{upstream.url('acme')}/*"}],
        credentials=entries,
        serve={"wait_for_clone": "20s"},
    ).start()
    serve.wait_for_repo("acme/registered")
    upstream.forget()
    answers = []
    for name in ("acme/private", "acme/registered", "acme/nothing"):
        code, _, err = git_result("ls-remote", f"{serve.git_url}/{name}")
        assert code
        answers.append(err.replace(name, "NAME"))
        asked = [request for request in upstream.requests if request.repo == name]
        # Each was asked for once by its URL, and without the credential.
        assert [(request.user, request.service) for request in asked] == [("", "git-upload-pack")], name
    assert len(set(answers)) == 1
    assert names(serve) == {"acme/registered": "config"}


def test_a_guest_with_only_its_own_causes_nothing(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    serve = allowing()
    serve.here("guest", "add", "vm-1", "--only", "--address", "127.0.0.1")
    assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0]
    assert upstream.requests == [] and names(serve) == {}
    serve.here("guest", "remove", "vm-1")
    bring(serve, tmp_path / "one")
    serve.here("guest", "add", "vm-1", "--only", "--address", "127.0.0.1")
    assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0]
    serve.here("guest", "remove", "vm-1")
    serve.here("guest", "add", "vm-1", "--only", "--repo", WIDGETS, "--address", "127.0.0.1")
    assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0] == 0


def test_a_first_clone_that_fails_leaves_nothing(allowing: Allowing, upstream: HttpUpstream) -> None:
    """The upstream says that it has the repository, and then breaks off. Nobody is told of a failing repository."""
    serve = allowing()
    upstream.on(WIDGETS).cut_after = 3000
    code, _, err = git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")
    assert code and "is not mirrored here" in err
    wait_until(lambda: names(serve) == {}, message="it is given up")
    wait_until(lambda: files(serve) == [], message="its files are gone")
    asked = upstream.count()
    assert git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")[0] and upstream.count() == asked
    assert serve.cli("status", check=False).returncode == 0


def test_killed_at_each_step(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """While the upstream is asked, nothing is left. In the clone, the next start makes it. At the end, it ends."""
    serve = allowing(expire_after="1h")
    upstream.on(WIDGETS).hang = True
    assert ask_and_kill(serve, upstream)
    assert names(serve) == {} and files(serve) == []
    upstream.reset()
    serve.start()
    upstream.on(WIDGETS).hang_after = 3000
    assert ask_and_kill(serve, upstream)
    upstream.reset()
    serve.start()
    serve.wait_for_repo(WIDGETS)
    assert names(serve) == {WIDGETS: "allowed"} and files(serve)[0] == "mirrors/acme/widgets.git"
    serve.clone(tmp_path / "work", WIDGETS)
    serve.kill()
    # As if the kill came after the registration ended, and before the files did.
    with sqlite3.connect(serve.state / "gitmirror.db") as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM repos")
        connection.execute("INSERT INTO allowed_ends VALUES (?)", [WIDGETS])
    serve.start()
    wait_until(lambda: files(serve) == [], message="its files are gone")
    serve.clone(tmp_path / "again", WIDGETS)


def ask_and_kill(serve: Serve, upstream: HttpUpstream) -> bool:
    """Has a guest ask, and kills `serve` once the upstream hangs."""
    guest = threading.Thread(target=git_result, args=("ls-remote", f"{serve.git_url}/{WIDGETS}"))
    guest.start()
    wait_until(lambda: upstream.hanging, message="the upstream hangs")
    serve.signal(signal.SIGKILL)
    serve.wait()
    guest.join(60)
    return not guest.is_alive()
