"""Tests of the test support itself, on which every other test depends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.support import generate
from tests.support.gitutil import (
    GitFailed,
    clean_env,
    commit_files,
    fsck,
    git,
    refs,
    wait_until,
)
from tests.support.processes import processes_of
from tests.support.serve import ROOT, CommandFailed, Serve
from tests.support.upstream import HttpUpstream

# Isolation


def test_git_takes_nothing_from_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("[user]\n\tname = Somebody Else\n[credential]\n\thelper = store\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert git("config", "--list", cwd=tmp_path) == ""
    assert git("var", "GIT_AUTHOR_IDENT", cwd=tmp_path).startswith("A Tester <tester@example.com> 1700000000")


def test_this_process_is_isolated_too(git_env: dict[str, str]) -> None:
    assert os.environ["HOME"] == git_env["HOME"]
    listing = subprocess.run(["git", "config", "--list"], cwd="/", capture_output=True, check=True)
    assert listing.stdout == b""


def test_an_extra_of_none_takes_a_variable_away(tmp_path: Path) -> None:
    env = clean_env(tmp_path, GIT_AUTHOR_NAME=None, GIT_TRACE="1")
    assert "GIT_AUTHOR_NAME" not in env
    assert env["GIT_TRACE"] == "1"


def test_a_failure_shows_what_git_said(tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match=r"git rev-parse .* ended with 128: .*not a git repository"):
        git("rev-parse", "HEAD", cwd=tmp_path)
    assert git("rev-parse", "HEAD", cwd=tmp_path, check=False) == ""


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match=r"not done after 0\.2 s"):
        git("-c", f"alias.wait=!sleep 600; : {tmp_path}", "wait", cwd=tmp_path, timeout=0.2)
    wait_until(lambda: not processes_of(tmp_path))


def test_fsck_sees_damage(widgets_bare: Path) -> None:
    tip = generate.add_commit(widgets_bare, "main", {"new.txt": "new\n"})
    fsck(widgets_bare)
    (widgets_bare / "objects" / tip[:2] / tip[2:]).unlink()
    with pytest.raises(AssertionError, match="git fsck"):
        fsck(widgets_bare)


def test_commit_files_writes_and_deletes(widgets_bare: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    git("clone", "--quiet", str(widgets_bare), str(work))
    oid = commit_files(work, {"a/b.txt": "1\n", "README.md": None, "bin": b"\0\1"}, "Change")
    changed = git("diff", "--name-status", f"{oid}~1", oid, cwd=work).splitlines()
    assert changed == ["D\tREADME.md", "A\ta/b.txt", "A\tbin"]
    assert git("status", "--porcelain", cwd=work) == ""


def test_wait_until_gives_the_value_or_says_what_did_not_come() -> None:
    values = iter([0, "", "there"])
    assert wait_until(lambda: next(values)) == "there"
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the moon \(last value: \[\]\)"):
        wait_until(list, timeout=0.05, message="the moon")


# Generated repositories


def test_the_same_seed_gives_the_same_ids_whatever_the_hash_seed(generated_bare: Path, tmp_path: Path) -> None:
    script = "import sys, pathlib, tests.support.generate as g; g.generate_repository(pathlib.Path(sys.argv[1]))"
    for hash_seed in ("1", "2"):
        env = {**clean_env(tmp_path), "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], env=env, check=True)
        assert refs(tmp_path / "again") == refs(generated_bare)
        (tmp_path / "again").rename(tmp_path / hash_seed)
    other = generate.generate_repository(tmp_path / "other", seed=2)
    assert refs(other).keys() == refs(generated_bare).keys()
    assert set(refs(other).values()).isdisjoint(refs(generated_bare).values())


def test_a_generated_repository_is_like_a_real_one(generated_bare: Path) -> None:
    fsck(generated_bare)
    names = refs(generated_bare)
    assert sum(name.startswith("refs/heads/") for name in names) == 4
    tags = [name for name in names if name.startswith("refs/tags/")]
    kinds = {git("cat-file", "-t", tag, cwd=generated_bare) for tag in tags}
    assert (len(tags), kinds) == (6, {"tag", "commit"})
    assert git("symbolic-ref", "HEAD", cwd=generated_bare) == "refs/heads/main"
    assert git("rev-list", "--count", "--all", cwd=generated_bare) == "50"
    assert int(git("rev-list", "--count", "--merges", "main", cwd=generated_bare)) >= 3
    tree = git("ls-tree", "-r", "-z", "main", cwd=generated_bare).split("\0")
    modes = {path: line.split()[0] for line, _, path in (each.partition("\t") for each in tree if each)}
    assert 250 <= len(modes) <= 350
    assert set(generate.ODD_NAMES) <= modes.keys()
    assert (modes["run.sh"], modes["docs/latest"]) == ("100755", "120000")
    assert git("cat-file", "-s", "main:src/common/__init__.py", cwd=generated_bare) == "0"
    added = git("log", "--numstat", "--format=", "main", "--", "assets/logo.png", cwd=generated_bare)
    assert added == "-	-	assets/logo.png"


@pytest.mark.parametrize("shape", [{"commits": 1, "branches": 1, "tags": 0}, {"files": 20, "branches": 9, "tags": 30}])
def test_other_shapes(shape: dict[str, int], tmp_path: Path) -> None:
    made = generate.generate_repository(tmp_path / "made.git", **shape)
    fsck(made)
    names = refs(made)
    assert sum(name.startswith("refs/heads/") for name in names) == shape["branches"]
    assert sum(name.startswith("refs/tags/") for name in names) == shape["tags"]
    assert git("rev-list", "--count", "--all", cwd=made) == str(shape.get("commits", 50))


def test_a_checkout_of_it_is_clean(generated_bare: Path, tmp_path: Path) -> None:
    git("clone", "--quiet", str(generated_bare), str(tmp_path / "work"))
    assert git("status", "--porcelain", cwd=tmp_path / "work") == ""


def test_commits_on_a_bare_repository(widgets_bare: Path) -> None:
    before = refs(widgets_bare)["refs/heads/main"]
    tip = generate.add_commit(widgets_bare, "main", {"a b/ü.txt": "1\n", '"q"': b"\0", "README.md": None}, "One")
    assert refs(widgets_bare)["refs/heads/main"] == tip
    assert git("rev-parse", f"{tip}^", cwd=widgets_bare) == before
    assert git("show", f"{tip}:a b/ü.txt", cwd=widgets_bare) == "1"
    assert git("log", "-1", "--format=%s", tip, cwd=widgets_bare) == "One"
    alone = generate.add_commit(widgets_bare, "topic/new", {"x": "1"})
    assert git("rev-list", "--count", alone, cwd=widgets_bare) == "1"
    fsck(widgets_bare)


def test_a_failed_commit_says_why_and_leaves_nothing(widgets_bare: Path) -> None:
    before = refs(widgets_bare)
    with pytest.raises(GitFailed, match="fast-import"):
        generate.add_commit(widgets_bare, "no..branch", {"a": "1"})
    assert refs(widgets_bare) == before
    assert not list(widgets_bare.glob("fast_import_crash*"))


def test_a_forced_push_replaces_the_tip(widgets_bare: Path) -> None:
    before = git("rev-parse", "main~2", "main~1", "main", cwd=widgets_bare).splitlines()
    once = generate.force_push(widgets_bare, "main")
    twice = generate.force_push(widgets_bare, "main")
    assert len({before[2], once, twice}) == 3
    assert git("rev-parse", "main^", cwd=widgets_bare) == before[1]
    deeper = generate.force_push(widgets_bare, "main", depth=2)
    assert git("rev-parse", "main^", cwd=widgets_bare) == before[0]
    assert refs(widgets_bare)["refs/heads/main"] == deeper
    generate.force_push(widgets_bare, "main", depth=1000)
    assert git("rev-list", "--count", "main", cwd=widgets_bare) == "1"
    assert git("cat-file", "-t", before[2], cwd=widgets_bare) == "commit"
    fsck(widgets_bare)


def test_branches_move_as_on_github(widgets_bare: Path) -> None:
    develop = refs(widgets_bare)["refs/heads/develop"]
    generate.rename_branch(widgets_bare, "develop", "develop/next")
    assert refs(widgets_bare)["refs/heads/develop/next"] == develop
    generate.rename_branch(widgets_bare, "develop/next", "develop")
    assert refs(widgets_bare)["refs/heads/develop"] == develop
    generate.rename_branch(widgets_bare, "main", "trunk")
    assert git("symbolic-ref", "HEAD", cwd=widgets_bare) == "refs/heads/trunk"
    generate.set_head(widgets_bare, "develop")
    generate.delete_branch(widgets_bare, "develop")
    assert git("symbolic-ref", "HEAD", cwd=widgets_bare) == "refs/heads/develop"
    assert "refs/heads/develop" not in refs(widgets_bare)
    with pytest.raises(GitFailed):
        generate.delete_branch(widgets_bare, "develop")


def test_real_repositories(homelab_bare: Path, sqlite_utils_bare: Path) -> None:
    assert len(refs(sqlite_utils_bare)) > 200
    assert git("rev-list", "--count", "main", cwd=homelab_bare)
    fsck(homelab_bare)


# The appliance as a process

STUB = """
import json, os, signal, subprocess, sys
state, config, command = sys.argv[2], sys.argv[4], sys.argv[5]
if command == "serve":
    if "broken" in open(config).read():
        sys.exit("the stub is broken")
    child = subprocess.Popen(["sleep", "600"], env={"GIT_DIR": state + "/mirrors"}, start_new_session=True)
    def end(number, frame):
        child.kill()
        child.wait()
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    def reload(number, frame):
        print(open(config).read(), file=sys.stderr, flush=True)
    signal.signal(signal.SIGHUP, reload)
    print("starting", *sys.argv[6:], file=sys.stderr, flush=True)
    print("something else")
    print("ready git://127.0.0.1:1 admin http://127.0.0.1:2", flush=True)
    while True:
        signal.pause()
print(json.dumps({"args": sys.argv[5:], "home": os.environ["HOME"]}))
sys.exit(3 if command == "status" else 1 if command == "fail" else 0)
"""


@pytest.fixture
def stub(serve_factory: ServeFactory, tmp_path: Path) -> Serve:
    """A `Serve` around a program that behaves like the appliance, with a child in a session of its own."""
    (tmp_path / "stub.py").write_text(STUB)
    return serve_factory(pyz=tmp_path / "stub.py", refresh={"interval": "1s"})


def test_serve_starts_says_where_and_ends(stub: Serve) -> None:
    stub.start()
    assert (stub.git_url, stub.admin_url) == ("git://127.0.0.1:1", "http://127.0.0.1:2")
    assert stub.git_address == ("127.0.0.1", 1)
    with pytest.raises(AssertionError, match="no http listener"):
        _ = stub.http_url
    assert "starting --git 127.0.0.1:0 --http 127.0.0.1:0 --admin 127.0.0.1:0" in stub.log()
    assert len(stub.processes()) == 2
    assert stub.terminate() == 0
    assert not stub.running
    assert not stub.processes()
    stub.keep_ports()
    stub.restart()
    assert "starting --git 127.0.0.1:1 --http  --admin 127.0.0.1:2" in stub.log()


def test_kill_leaves_the_children_and_close_ends_them(stub: Serve) -> None:
    stub.start().kill()
    assert not stub.running
    assert len(stub.processes()) == 1
    with subprocess.Popen(["sleep", "600"], cwd=stub.home) as neighbour:
        assert processes_of(stub.home) == [neighbour.pid]
        assert len(stub.processes()) == 1, "state.home is not below state"
        neighbour.kill()
    stub.start()
    stub.close()
    assert not stub.processes()


def test_serve_that_does_not_start_shows_why(stub: Serve) -> None:
    stub.configure(serve={"git": "broken"})
    with pytest.raises(AssertionError, match="the stub is broken"):
        stub.start()


def test_serve_reads_its_config_again(stub: Serve) -> None:
    stub.start()
    stub.configure(["https://example.com/a/b", {"url": "x", "interval": "2s"}], cache={"budget": 10, "on": True})
    stub.reload()
    wait_until(lambda: 'interval = "2s"' in stub.log())
    assert '[[repos]]\nurl = "https://example.com/a/b"' in stub.log()
    assert "[cache]\nbudget = 10\non = true" in stub.log()


def test_commands_run_on_the_same_state(stub: Serve) -> None:
    assert stub.cli_json("status") == {"args": ["status", "--json"], "home": str(stub.home)}
    assert stub.cli("fail", check=False).returncode == 1
    with pytest.raises(CommandFailed, match="ended with 1"):
        stub.cli("fail")


@pytest.mark.slow
def test_the_appliance_itself(serve: Serve, upstream: HttpUpstream, tmp_path: Path) -> None:
    tip = refs(upstream.path(WIDGETS))["refs/heads/main"]
    assert serve.wait_for_repo(WIDGETS)["tip"] == tip
    upstream.refuse()
    clone = serve.clone(tmp_path / "made", WIDGETS, "--depth=1")
    assert git("rev-parse", "HEAD", cwd=clone) == tip
    upstream.restore()
    tip = generate.add_commit(upstream.path(WIDGETS), "main", {"new.txt": "1\n"})
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    serve.keep_ports()
    before = serve.git_url
    serve.kill()
    assert serve.start().git_url == before
    assert serve.terminate() == 0
    assert not serve.processes()
