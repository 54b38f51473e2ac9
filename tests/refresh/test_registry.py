"""The registry by its commands, while `serve` runs and while it does not: the same table, the same answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.git.lab import followed
from tests.refresh.node import repo_status
from tests.support.generate import add_commit, copy_repository
from tests.support.gitutil import git_result, refs, remote_refs, run_process, wait_until
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

REPOS_KEYS = {"name", "url", "branch", "source", "state", "interval", "enabled"}
STATUS_KEYS = {"serving", "version", "pid", "git", "http", "admin", "clients", "audit_head", "repos", "cache"}
STATUS_REPO_KEYS = {
    "name", "url", "branch", "state", "tip", "lag", "verified_at", "last_error", "refs", "size", "sessions",
}  # fmt: skip
CACHE_KEYS = {"hits", "misses", "joined", "bytes", "budget"}
QUIET = {"interval": "1h", "stale_after": "2h", "timeout": "30s"}


@pytest.fixture
def alone(serve_factory: ServeFactory) -> Serve:
    """A state directory that no serve runs on."""
    return serve_factory(refresh=QUIET)


@pytest.fixture(params=["serving", "alone"])
def either(request: pytest.FixtureRequest, alone: Serve) -> Serve:
    """A state directory, once with and once without a running serve."""
    if request.param == "serving":
        alone.start()
    return alone


def names_of(serve: Serve) -> list[str]:
    """Return the registered names."""
    return [entry["name"] for entry in json.loads(serve.here("repos", "--json"))]


@pytest.mark.slow
def test_add_and_list(either: Serve, upstream: HttpUpstream) -> None:
    """A repository is cloned and listed with the keys that the contract names, in both documents."""
    added = either.cli_json("add-repo", upstream.url(WIDGETS))
    assert (added["name"], added["state"], added["error"]) == (WIDGETS, "fresh", None)
    [listed] = either.cli_json("repos")
    assert listed.keys() >= REPOS_KEYS
    assert listed == listed | {
        "name": WIDGETS,
        "url": upstream.url(WIDGETS),
        "branch": "main",
        "source": "cli",
        "state": "fresh",
        "interval": 3600.0,
        "enabled": True,
    }
    document = either.cli_json("status", codes=(0, 4))
    assert document.keys() >= STATUS_KEYS and document["cache"].keys() >= CACHE_KEYS
    [status] = document["repos"]
    assert status.keys() >= STATUS_REPO_KEYS
    assert status["tip"] == refs(upstream.path(WIDGETS))["refs/heads/main"]
    assert status["refs"] == len(refs(upstream.path(WIDGETS))) and status["size"] > 0 and status["sessions"] == 0
    assert 0 <= status["lag"] < 60 and status["verified_at"].endswith("Z") and status["last_error"] is None
    assert followed(either.mirror(WIDGETS)) == refs(upstream.path(WIDGETS))
    assert WIDGETS in either.cli("repos").stdout


@pytest.mark.slow
def test_status_with_and_without_serve(either: Serve, upstream: HttpUpstream) -> None:
    """Without serve the exit code is 4 and the database's knowledge is printed; with it 0, and the listeners."""
    either.cli("add-repo", upstream.url(WIDGETS))
    done = either.cli("status", "--json", check=False)
    document = either.cli_json("status", codes=(0, 4))
    if either.running:
        assert done.returncode == 0
        assert document["serving"] is True and document["pid"] == either.pid
        assert (document["git"], document["http"], document["admin"]) == (
            either.git_url,
            either.http_url,
            either.admin_url,
        )
    else:
        assert done.returncode == 4
        assert document["serving"] is False
        assert [document[key] for key in ("pid", "git", "http", "admin")] == [None] * 4
    assert re.fullmatch("0{64}", document["audit_head"])
    assert WIDGETS in either.cli("status", check=False).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", ["", *(pytest.param(each, marks=pytest.mark.slow) for each in (".git", "/")), ".git/"]
)
def test_adding_the_same_url_again_changes_nothing(node_like: Serve, upstream: HttpUpstream, suffix: str) -> None:
    """Idempotent, however the URL is written, and without asking the upstream again."""
    node_like.cli("add-repo", upstream.url(WIDGETS))
    before, asked = node_like.cli_json("repos"), upstream.count()
    node_like.cli("add-repo", upstream.url(WIDGETS) + suffix)
    assert node_like.cli_json("repos") == before
    assert upstream.count() == asked


@pytest.fixture
def node_like(alone: Serve) -> Serve:
    """A running serve on a state of its own."""
    return alone.start()


@pytest.mark.slow
def test_adding_again_takes_new_options(either: Serve, upstream: HttpUpstream) -> None:
    """Branch and interval that are given replace the stored ones; those that are not stay."""
    either.cli("add-repo", upstream.url(WIDGETS), "--interval", "30s")
    either.cli("add-repo", upstream.url(WIDGETS), "--branch", "develop")
    [listed] = either.cli_json("repos")
    assert (listed["branch"], listed["interval"]) == ("develop", 30.0)


@pytest.mark.slow
def test_a_name_taken_by_another_url(either: Serve, upstream: HttpUpstream, generated_bare: Path) -> None:
    """Refused with the way out, and nothing changed; under a name of its own it is taken."""
    upstream.add("other/acme/widgets", generated_bare)
    url = f"http://127.0.0.1:{upstream.port}/other/acme/widgets"
    either.cli("add-repo", upstream.url(WIDGETS))
    done = either.cli("add-repo", url, check=False)
    assert done.returncode == 2 and "taken" in done.stderr and "--name" in done.stderr
    assert names_of(either) == [WIDGETS]
    either.cli("add-repo", url, "--name", "acme/others")
    assert names_of(either) == ["acme/others", WIDGETS]


def test_a_url_of_one_part_needs_a_name(either: Serve, upstream: HttpUpstream) -> None:
    """There is no OWNER/REPO in it: the error asks for --name."""
    done = either.cli("add-repo", f"http://127.0.0.1:{upstream.port}/single", check=False)
    assert done.returncode == 2 and "--name OWNER/REPO" in done.stderr
    assert names_of(either) == []


@pytest.mark.slow
def test_a_bad_url_is_refused_and_nothing_is_registered(either: Serve) -> None:
    """Exit code 2 with the reason and the way to do it right; no secret of it is repeated anywhere."""
    bad = {
        "-oProxyCommand=id": "dash",
        "ext::sh -c id": "remote helpers",
        "https://bob:s3cret@example.com/o/r": "without user and password",
        "ssh://git@example.com/o/r": "https",
        "git@example.com:o/r.git": "https",
        "/srv/git/o/r": "--allow-local",
    }
    for url, reason in bad.items():
        done = either.cli("add-repo", "--json", "--", url, check=False)
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        assert done.stdout == "" and "s3cret" not in done.stderr and "Traceback" not in done.stderr
    assert either.cli("add-repo", "--upload-pack=id", check=False).returncode == 2
    assert names_of(either) == []
    assert "s3cret" not in either.log()


@pytest.mark.parametrize(
    "options",
    [
        ("--name", "one"),
        ("--name", "../x"),
        ("--interval", "0s"),
        ("--interval", "soon"),
        ("--branch", "-x"),
        ("--branch", "a..b"),
    ],
)
def test_a_bad_option_is_refused(alone: Serve, options: tuple[str, str]) -> None:
    """Exit code 2, before anything is registered."""
    assert alone.cli("add-repo", "https://example.com/o/r", *options, check=False).returncode == 2
    assert names_of(alone) == []


@pytest.mark.slow
def test_local_upstreams_are_allowed_on_demand(either: Serve, widgets_bare: Path) -> None:
    """A path, relative to where the user stands, and a file:// URL, each with --allow-local."""
    local = copy_repository(widgets_bare, either.state.parent / "acme" / "local.git")
    relative = os.path.relpath(local, either.cwd)
    either.cli("add-repo", relative, "--allow-local")
    either.cli("add-repo", f"file://{widgets_bare}", "--allow-local", "--name", "acme/by-url")
    listed = {entry["name"]: entry for entry in either.cli_json("repos")}
    assert listed.keys() == {"acme/local", "acme/by-url"}
    assert Path(listed["acme/local"]["url"]) == local
    assert followed(either.mirror("acme/by-url")) == followed(widgets_bare)


def test_remove_stops_serving_and_keeps_the_mirror(node_like: Serve, upstream: HttpUpstream) -> None:
    """Guests are told that it is not mirrored here; on disk it is as it was."""
    node_like.cli("add-repo", upstream.url(WIDGETS))
    node_like.cli("remove-repo", WIDGETS)
    assert names_of(node_like) == []
    code, _, said = git_result("ls-remote", f"{node_like.git_url}/{WIDGETS}")
    assert code != 0 and "not mirrored here" in said
    assert followed(node_like.mirror(WIDGETS)) == refs(upstream.path(WIDGETS))


@pytest.mark.slow
def test_purge_asks_and_deletes(either: Serve, upstream: HttpUpstream) -> None:
    """Any answer but yes changes nothing; `--yes` does not ask; the mirror is gone, and what lay beside it is not."""
    either.cli("add-repo", upstream.url(WIDGETS))
    either.cli("add-repo", upstream.url(WIDGETS), "--name", "acme/widgets2")
    for answer in ("", "\n", "n\n", "maybe\nn\n"):
        done = either.cli("remove-repo", WIDGETS, "--purge", check=False, input=answer)
        assert done.returncode == 1 and WIDGETS in done.stderr
    assert WIDGETS in names_of(either) and either.mirror(WIDGETS).exists()
    either.cli("remove-repo", WIDGETS, "--purge", input="y\n")
    assert names_of(either) == ["acme/widgets2"] and not either.mirror(WIDGETS).exists()
    either.cli("remove-repo", "acme/widgets2", "--purge", "--yes")
    assert names_of(either) == [] and list(either.state.glob("mirrors/*/*")) == []


@pytest.mark.slow
def test_a_mirror_left_on_disk_can_be_purged_later(either: Serve, upstream: HttpUpstream) -> None:
    """Removed without --purge, then with it."""
    either.cli("add-repo", upstream.url(WIDGETS))
    either.cli("remove-repo", WIDGETS)
    either.cli("remove-repo", WIDGETS, "--purge", "--yes")
    assert not either.mirror(WIDGETS).exists()
    for options in ([], ["--purge", "--yes"]):
        done = either.cli("remove-repo", WIDGETS, *options, check=False)
        assert done.returncode == 2 and "not registered" in done.stderr


def test_a_name_that_leads_out_of_the_mirrors_purges_nothing(either: Serve) -> None:
    """`../../x` used to name the directory `x.git` beside the state directory, which `--purge` then deleted."""
    beside = either.state.parent / "beside.git"
    beside.mkdir()
    done = either.cli("remove-repo", "../../beside", "--purge", "--yes", check=False)
    assert done.returncode == 2 and "not registered" in done.stderr
    assert beside.exists()


@pytest.mark.slow
def test_a_mirror_left_on_disk_is_taken_up_again(either: Serve, upstream: HttpUpstream) -> None:
    """By its own upstream only, and without cloning it anew; agents' refs are there still."""
    either.cli("add-repo", upstream.url(WIDGETS))
    kept = either.mirror(WIDGETS)
    tip = refs(kept)["refs/heads/main"]
    run_process(["git", "update-ref", "refs/agents/s1", tip], cwd=kept)
    either.cli("remove-repo", WIDGETS)
    other = f"http://127.0.0.1:{upstream.port}/other/acme/widgets"
    refused = either.cli("add-repo", other, check=False)
    assert refused.returncode == 2 and "--purge" in refused.stderr
    new = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    either.cli("add-repo", upstream.url(WIDGETS) + ".git")
    assert refs(kept)["refs/agents/s1"] == tip and refs(kept)["refs/heads/main"] == new


@pytest.mark.slow
def test_a_disabled_repository_is_neither_refreshed_nor_served_and_keeps_everything(
    serve: Serve, upstream: HttpUpstream
) -> None:
    """And enabled it is served at once, and what it missed is fetched at once."""
    serve.cli("disable", WIDGETS)
    assert repo_status(serve, WIDGETS)["state"] == "disabled"
    assert serve.cli("status", check=False).returncode == 0
    code, _, said = git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")
    assert code != 0 and "not mirrored here" in said
    done = serve.cli("refresh", WIDGETS, check=False)
    assert done.returncode == 1 and "enable" in done.stderr
    wait_until(lambda: not list((serve.state / "run" / "children").iterdir()))
    asked = upstream.count()
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    before = serve.cli_json("refreshes", WIDGETS)[0]["id"]
    # Two intervals of another repository go by.
    serve.cli("add-repo", upstream.url(WIDGETS), "--name", "acme/clock", "--interval", "1s")
    upstream_asked_by_clock = wait_until(lambda: _count(serve, "acme/clock") >= 3)
    assert upstream_asked_by_clock and serve.cli_json("refreshes", WIDGETS)[0]["id"] == before
    assert upstream.count() > asked and refs(serve.mirror(WIDGETS))["refs/heads/main"] != tip
    serve.cli("enable", WIDGETS)
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    wait_until(lambda: remote_refs(f"{serve.git_url}/{WIDGETS}")["refs/heads/main"] == tip, message="guests see it")


def _count(serve: Serve, name: str) -> int:
    return len(serve.cli_json("refreshes", name))


@pytest.mark.slow
def test_enable_and_disable_without_serve(alone: Serve, upstream: HttpUpstream) -> None:
    """The registry is changed, and the next serve keeps to it."""
    alone.cli("add-repo", upstream.url(WIDGETS))
    alone.cli("disable", WIDGETS)
    assert alone.cli_json("repos")[0]["enabled"] is False
    alone.start()
    assert git_result("ls-remote", f"{alone.git_url}/{WIDGETS}")[0] != 0
    alone.terminate()
    alone.cli("enable", WIDGETS)
    alone.start()
    assert "HEAD" in remote_refs(f"{alone.git_url}/{WIDGETS}")
    for command in ("enable", "disable"):
        assert alone.cli(command, "no/such", check=False).returncode == 2


@pytest.mark.slow
def test_a_first_clone_without_serve(alone: Serve, upstream: HttpUpstream) -> None:
    """`add-repo` clones by itself, leaves nothing running, and the next serve needs no upstream for it."""
    alone.cli("add-repo", upstream.url(WIDGETS))
    assert alone.processes() == []
    assert alone.cli_json("refreshes")[0]["result"] == "moved"
    upstream.refuse()
    alone.start()
    assert "HEAD" in remote_refs(f"{alone.git_url}/{WIDGETS}")
    assert repo_status(alone, WIDGETS)["state"] == "fresh"


@pytest.mark.slow
def test_a_first_clone_that_fails_without_serve(alone: Serve, upstream: HttpUpstream) -> None:
    """Exit code 1, registered, `failing`; a second try by hand, and the next serve, clone it."""
    upstream.everywhere.fail = True
    for _ in range(2):
        done = alone.cli("add-repo", upstream.url(WIDGETS), check=False)
        assert done.returncode == 1 and "500" in done.stderr
    status = repo_status(alone, WIDGETS)
    assert (status["state"], status["failures"]) == ("failing", 2)
    upstream.reset()
    alone.start()
    alone.wait_for_repo(WIDGETS)


@pytest.mark.slow
def test_no_wait_only_registers(alone: Serve, upstream: HttpUpstream) -> None:
    """Without serve it is `new` until there is one."""
    added = alone.cli_json("add-repo", upstream.url(WIDGETS), "--no-wait")
    assert (added["state"], added["error"]) == ("new", None)
    assert upstream.count() == 0
    alone.start()
    alone.wait_for_repo(WIDGETS)


@pytest.mark.slow
def test_two_add_repos_at_once_without_serve(alone: Serve, upstream: HttpUpstream, generated_bare: Path) -> None:
    """One waits for the other; both succeed."""
    upstream.add("acme/other", generated_bare)
    argv = [*alone.command, "--state", str(alone.state), "--config", str(alone.config), "add-repo"]
    started = [
        subprocess.Popen([*argv, upstream.url(name)], cwd=ROOT, env=alone.env, stderr=subprocess.PIPE)
        for name in (WIDGETS, "acme/other", WIDGETS)
    ]
    said = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert [entry["state"] for entry in alone.cli_json("repos")] == ["fresh", "fresh"]


@pytest.mark.slow
def test_serve_waits_for_an_add_repo_that_is_cloning(alone: Serve, upstream: HttpUpstream) -> None:
    """A clone by hand is not thrown away because serve starts in the middle of it."""
    upstream.on(WIDGETS).hang_after = 50_000
    argv = [*alone.command, "--state", str(alone.state), "--config", str(alone.config), "add-repo"]
    cloning = subprocess.Popen([*argv, upstream.url(WIDGETS)], cwd=ROOT, env=alone.env, stderr=subprocess.PIPE)
    wait_until(lambda: upstream.hanging, message="the clone is under way")
    waiting = alone.cli_json("status", codes=(4,))
    assert waiting["serving"] is False
    upstream.reset()
    alone.start()
    assert cloning.communicate(timeout=60) and cloning.returncode == 0
    assert repo_status(alone, WIDGETS)["state"] == "fresh"
    assert len(alone.cli_json("refreshes", WIDGETS)) == 1


def test_a_second_serve_is_refused_and_says_who_holds_the_state(node_like: Serve) -> None:
    """By process id; the first one goes on."""
    done = node_like.cli("serve", *node_like.options, check=False)
    assert done.returncode == 1 and str(node_like.pid) in done.stderr and "serve" in done.stderr
    assert node_like.running and node_like.cli("status").returncode == 0


def test_commands_that_need_serve_exit_4_without_it(alone: Serve) -> None:
    """And say so."""
    done = alone.cli("refresh", check=False)
    assert done.returncode == 4 and "serve is not running" in done.stderr
    assert alone.cli("status", check=False).returncode == 4


def test_refreshing_what_is_not_registered(node_like: Serve) -> None:
    """Exit code 2, by name."""
    done = node_like.cli("refresh", "no/such", check=False)
    assert done.returncode == 2 and "no/such is not registered" in done.stderr
    done = node_like.cli("refreshes", "no/such", check=False)
    assert done.returncode == 2 and "no/such is not registered" in done.stderr
    assert node_like.cli_json("refresh") == []
