"""The store as part of a node: off, reloads, restarts, kills, purges; and where git-lfs is led to."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.access.conftest import SECRET
from tests.conftest import WIDGETS
from tests.lfs.node import DATA, HIDDEN, LfsNode, contents, lfs_node, needs_git_lfs, run_git
from tests.support.gitutil import git, run_process, wait_until

pytestmark = pytest.mark.slow

ONE = (hashlib.sha256(DATA["one.bin"]).hexdigest(), len(DATA["one.bin"]))
OBJECT = f"/{WIDGETS}/info/lfs/objects/{ONE[0]}?size={ONE[1]}"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LfsNode]:
    """A node of this test alone."""
    with lfs_node(tmp_path) as made:
        yield made


@pytest.fixture
def bare_node(tmp_path: Path) -> Iterator[LfsNode]:
    """One whose store is off."""
    with lfs_node(tmp_path, {"lfs_budget": "0B"}) as made:
        yield made


def stored(node: LfsNode) -> list[Path]:
    """The files of objects."""
    return [path for path in (node.serve.state / "lfs").rglob("*") if path.is_file() and len(path.name) == 64]


def test_git_lfs_goes_to_the_upstream_if_the_store_is_off(bare_node: LfsNode) -> None:
    """It is led there for the batch, with its own credentials for that host, and for uploads and locks as well."""
    needs_git_lfs()
    node = bare_node
    env = node.guest("guest")
    work = node.place / "work"
    code, said = run_git("clone", "--quiet", f"{node.serve.http_url}/{WIDGETS}", str(work), env=env)
    assert code == 0, said
    assert contents(work) == DATA and not (node.serve.state / "lfs").exists()
    status, headers, _ = node.ask("POST", f"/{WIDGETS}.git/info/lfs/objects/batch", {"operation": "download"})
    assert (status, headers["location"]) == (307, f"{node.lfs.url(WIDGETS)}.git/info/lfs/objects/batch")
    assert node.ask("POST", f"/{SECRET}.git/info/lfs/objects/batch", {})[0] == 404
    git("remote", "set-url", "--push", "origin", node.lfs.url(WIDGETS), cwd=work, env=env)
    git("config", "lfs.url", f"{node.serve.http_url}/{WIDGETS}/info/lfs", cwd=work, env=env)
    (work / "new.bin").write_bytes(b"new")
    git("add", ".", cwd=work, env=env)
    git("commit", "--quiet", "-m", "new", cwd=work, env=env)
    code, said = run_git("push", "origin", "HEAD:refs/heads/new", env=env, cwd=work)
    assert code == 0, said
    assert node.lfs.path(WIDGETS, hashlib.sha256(b"new").hexdigest()).exists()


def test_a_reload_changes_the_budget(node: LfsNode) -> None:
    """Off: every object goes, and is in the log; on again: they come back."""
    assert node.ask("GET", OBJECT)[2] == DATA["one.bin"]
    config = node.serve.config.read_text()
    for budget, status in (("0B", 307), ("1GiB", 200)):
        node.serve.config.write_text(config.replace("[cache]", f'[cache]\nlfs_budget = "{budget}"'))
        node.serve.reload()

        def is_applied(status: int = status) -> bool:
            return node.ask("GET", OBJECT)[0] == status

        wait_until(is_applied, message=f"lfs_budget is {budget}")
    assert f"the LFS object {ONE[0]} " in node.serve.log() and "was evicted" in node.serve.log()


def test_objects_live_through_a_restart_and_a_kill(node: LfsNode) -> None:
    """Complete ones are here without the upstream, changed ones are fetched again, half ones are gone."""
    assert node.ask("GET", OBJECT)[2] == DATA["one.bin"]
    other = hashlib.sha256(DATA["two.bin"]).hexdigest()
    node.lfs.faults.slow = 20_000

    def begin() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{other}?size={len(DATA['two.bin'])}")

    thread = threading.Thread(target=begin)
    thread.start()
    growing = node.serve.state / "lfs" / WIDGETS / ".new"
    wait_until(lambda: any(path.stat().st_size for path in growing.glob("*")), message="an object grows")
    node.serve.kill()
    thread.join(60)
    node.lfs.reset()
    node.lfs.forget()
    node.serve.start()
    node.serve.wait_for_repo(WIDGETS)
    assert node.ask("GET", OBJECT)[2] == DATA["one.bin"] and node.lfs.count("object") == 0
    assert not list(growing.glob("*"))
    node.serve.kill()
    (path,) = stored(node)
    os.chmod(path, 0o640)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    node.serve.start()
    node.serve.wait_for_repo(WIDGETS)
    assert node.ask("GET", OBJECT)[2] == DATA["one.bin"] and node.lfs.count("object") == 1


def test_a_purge_takes_the_objects_along(node: LfsNode) -> None:
    """With and without a `serve`."""
    headers = {"Authorization": f"Bearer {node.token(SECRET)}"}
    oid = hashlib.sha256(HIDDEN).hexdigest()
    assert node.ask("GET", f"/{SECRET}/info/lfs/objects/{oid}?size={len(HIDDEN)}", headers=headers)[0] == 200
    assert node.ask("GET", OBJECT)[0] == 200
    config = node.serve.config.read_text()
    node.serve.config.write_text(config[: config.index("[[repos]]")])
    node.serve.reload()
    wait_until(lambda: node.ask("GET", OBJECT)[0] == 404, message="the repositories are not registered any more")
    node.serve.cli("remove-repo", WIDGETS, "--purge", "--yes")
    assert [path.name for path in stored(node)] == [oid]
    node.serve.terminate()
    node.serve.cli("remove-repo", SECRET, "--purge", "--yes")
    assert not stored(node)


def test_the_public_address_is_named_if_there_is_one(tmp_path: Path) -> None:
    """A proxy with a path prefix, say."""
    with lfs_node(tmp_path, serve={"public_http": "http://gateway.example/mirror"}) as node:
        _, found = node.batch(f"/{WIDGETS}.git", ONE)
        href = found["objects"][0]["actions"]["download"]["href"]
        assert href == f"http://gateway.example/mirror/{WIDGETS}.git/info/lfs/objects/{ONE[0]}?size={ONE[1]}"


def test_the_redirect_of_the_kit(node: LfsNode) -> None:
    """A clone of the upstream's URL has its LFS files from the mirror, a push of new ones goes to the upstream."""
    needs_git_lfs()
    for name, more in {"both": {}, "git": {"GITMIRROR_HTTP": ""}, "http": {"GITMIRROR_GIT": ""}}.items():
        env = node.guest(name, **more)
        kit = Path(env["HOME"]) / "guest.sh"
        kit.write_text(node.serve.here("guest-kit"))
        done = run_process(["sh", str(kit), "redirect"], env=env)
        assert done.returncode == 0, done.stderr
        node.lfs.forget()
        work = node.place / f"work-{name}"
        code, said = run_git("clone", "--quiet", node.lfs.url(WIDGETS), str(work), env=env)
        assert code == 0, said
        assert contents(work) == DATA
        hosts = {each.headers["user-agent"].partition("/")[0] for each in node.lfs.requests}
        assert hosts <= ({"git-lfs"} if name == "git" else {"gitmirror"})
        new = name.encode() * 100
        (work / "new.bin").write_bytes(new)
        git("add", ".", cwd=work, env=env)
        git("commit", "--quiet", "-m", "new", cwd=work, env=env)
        code, said = run_git("push", "origin", f"HEAD:refs/heads/{name}", env=env, cwd=work)
        assert code == 0, said
        assert node.lfs.path(WIDGETS, hashlib.sha256(new).hexdigest()).exists()
        away = dict(env, GITMIRROR_HTTP="http://127.0.0.1:1", GITMIRROR_GIT="git://127.0.0.1:1")
        assert run_process(["sh", str(kit), "redirect"], env=away).returncode == 0
        assert not list((Path(env["HOME"]) / ".config/git").iterdir())
        shutil.rmtree(work)
