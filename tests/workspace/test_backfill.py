"""`gitmirror_backfill`: the old contents that a workspace lacks come in one request, from wherever they can be had."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import fsck, git
from tests.workspace.conftest import CURL, EVERY_SHELL, NOTHING, Guest, Node, quote
from tests.workspace.proxy import Fault, Proxy

OFF = {"GITMIRROR_GIT": "", "GITMIRROR_HTTP": ""}


def _objects(workspace: Path) -> int:
    """How many objects a repository has."""
    counts = dict(line.split(": ") for line in git("count-objects", "-v", cwd=workspace).splitlines())
    return int(counts["count"]) + int(counts["in-pack"])


@dataclass(frozen=True)
class Road:
    """A guest that reaches the mirror by two proxies only, and a blobless workspace in `ws`."""

    node: Node
    http: Proxy
    git: Proxy
    guest: Guest

    @property
    def workspace(self) -> Path:
        """What is backfilled."""
        return self.guest.home / "ws"

    @property
    def connections(self) -> int:
        """How many there have been to the mirror."""
        return len(self.http.requests) + len(self.git.requests)

    def backfill(self, *paths: str, guest: Guest | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
        """Run it in the workspace: the exit code, the last line of stdout without the time, and stderr."""
        words = " ".join(quote(path) for path in paths)
        done = (guest or self.guest).run(f"gitmirror_backfill {words}", cwd=cwd or self.workspace)
        assert done.out.count("\n") <= 1
        line, _, time = done.out.strip().partition(" ms=")
        assert (time.isdigit()) == line.startswith("backfilled objects="), done.out
        return done.code, line, done.err

    def missing(self, *paths: str) -> list[str]:
        """The objects that the workspace lacks in the history of these paths."""
        words = ("rev-list", "--objects", "--all", "--full-history", "--missing=print", "--", *paths)
        return [line[1:] for line in git(*words, cwd=self.workspace).splitlines() if line.startswith("?")]


@pytest.fixture(scope="module")
def blobless(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A partial clone with every commit and tree, and the contents of the tip."""
    made = tmp_path_factory.mktemp("blobless") / "ws"
    git(
        "clone",
        "--quiet",
        "--filter=blob:none",
        "--single-branch",
        "--no-tags",
        f"{node.serve.git_url}/{WIDGETS}",
        str(made),
    )
    return made


@pytest.fixture
def road(node: Node, tmp_path: Path, blobless: Path) -> Iterator[Road]:
    """A copy of that clone as a workspace of a guest."""
    http = urlsplit(node.serve.http_url)
    assert http.hostname and http.port
    with Proxy((http.hostname, http.port)) as web, Proxy(node.serve.git_address) as plain:
        addresses = {"GITMIRROR_HTTP": f"http://127.0.0.1:{web.port}", "GITMIRROR_GIT": f"git://127.0.0.1:{plain.port}"}
        guest = node.guest(tmp_path / "home").with_(**addresses)
        shutil.copytree(blobless, guest.home / "ws", symlinks=True)
        for key, value in {
            "remote.origin.url": node.upstream.url(WIDGETS),
            "remote.gitmirror.url": f"{addresses['GITMIRROR_GIT']}/{WIDGETS}",
            "remote.gitmirror.promisor": "true",
            "remote.gitmirror.partialclonefilter": "blob:none",
            "gitmirror.repository": WIDGETS,
        }.items():
            git("config", key, value, cwd=guest.home / "ws")
        yield Road(node, web, plain, guest)
        node.upstream.reset()


def blame(road: Road, path: str) -> str:
    """What `git blame` says in the workspace."""
    return git("blame", "--line-porcelain", path, cwd=road.workspace)


def test_everything_comes_in_one_connection(road: Road) -> None:
    """The number is that of the missing objects; nothing is fetched any more by what reads old contents."""
    lacking = len(road.missing())
    assert lacking > 100
    assert road.backfill() == (0, f"backfilled objects={lacking} via=mirror", "")
    assert (road.connections, len(road.git.requests)) == (1, 1)
    assert road.missing() == []
    assert len(git("log", "-p", "--all", cwd=road.workspace)) > 1000
    assert road.connections == 1
    fsck(road.workspace)
    assert git("status", "--porcelain", cwd=road.workspace) == ""
    assert not (road.workspace / ".git" / "FETCH_HEAD").exists()
    assert road.backfill() == (0, "backfilled nothing", "gitmirror: nothing is missing\n")
    assert road.connections == 1


@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_only_the_paths_that_were_named(road: Road, shell: str) -> None:
    """Relative to the current directory, files and directories, also those of old commits; the others stay away."""
    guest = Guest(road.guest.home, road.guest.kit, shell, NOTHING, road.guest.env)
    lacking, others = len(road.missing("src/common")), len(road.missing(":(exclude)src/common"))
    assert lacking and others
    found = road.backfill("common", "none.py", guest=guest, cwd=road.workspace / "src")
    assert found == (
        0,
        f"backfilled objects={lacking} via=mirror",
        "gitmirror: no commit in this workspace has 'none.py'\n",
    )
    assert road.missing("src/common") == []
    assert len(road.missing()) == others
    assert road.connections == 1
    assert road.backfill("none.py", guest=guest) == (1, "", "gitmirror: no commit in this workspace has 'none.py'\n")


@pytest.mark.slow
def test_a_blame_needs_no_further_connection(road: Road) -> None:
    """The same answer as in a full clone."""
    counts = {
        path: len(road.missing(path))
        for path in git("ls-tree", "-r", "--name-only", "HEAD", cwd=road.workspace).split("\n")
        if path.endswith((".py", ".md")) and '"' not in path
    }
    path = max(counts, key=lambda path: counts[path])
    assert counts[path] > 1
    road.backfill(path)
    before = road.connections
    assert blame(road, path) == git(
        "blame", "--line-porcelain", "main", "--", path, cwd=road.node.upstream.path(WIDGETS)
    )
    assert road.connections == before == 1


@pytest.mark.parametrize("odd", ["-leading-dash.txt", "docs/a name with spaces.md", 'docs/"quoted".txt'])
def test_odd_names(road: Road, odd: str) -> None:
    """After `--`, a path may begin with a dash."""
    code, line, said = road.backfill("--", odd)
    assert (code, line, said) in (
        (0, f"backfilled objects={len(road.missing(odd))} via=mirror", ""),
        (0, "backfilled nothing", "gitmirror: nothing is missing\n"),
    )


def test_a_path_is_no_pattern(road: Road) -> None:
    """A name may have brackets, as `[id].tsx` has; a pattern would find files of the top directory only."""
    assert road.backfill("*.py") == (1, "", "gitmirror: no commit in this workspace has '*.py'\n")


def test_without_the_git_port_http_is_next(road: Road) -> None:
    """One connection there, too."""
    road.git.fault = Fault("refuse")
    lacking = len(road.missing())
    code, line, _ = road.backfill()
    assert (code, line) == (0, f"backfilled objects={lacking} via=mirror")
    assert len(road.http.requests) == 1
    assert road.missing() == []


@pytest.mark.parametrize("faults", [("refuse", "refuse"), ("end", "status")])
def test_without_the_mirror_the_upstream_is_next(road: Road, faults: tuple[str, str]) -> None:
    """With the reason. A redirect of the upstream to the mirror does not matter."""
    road.git.fault, road.http.fault = Fault(faults[0], after=300), Fault(faults[1], status=500)
    url = road.node.upstream.url(WIDGETS)
    config = f'[url "{road.guest.env["GITMIRROR_GIT"]}/{WIDGETS}"]\n\tinsteadOf = {url}\n'
    (road.guest.home / ".gitconfig").write_text(config)
    lacking = len(road.missing("docs"))
    code, line, said = road.backfill("docs")
    assert (code, line) == (0, f"backfilled objects={lacking} via=upstream"), said
    assert f"the mirror did not send the old contents of {WIDGETS}" in said and url in said
    assert "fatal: " in said
    assert road.missing("docs") == []


def test_without_anything_the_workspace_is_as_it_was(road: Road) -> None:
    """Code 1, and what could not be reached is named. The same call works later."""
    road.git.fault = road.http.fault = Fault("refuse")
    road.node.upstream.refuse()
    before = sorted((road.workspace / ".git").rglob("*"))
    code, line, said = road.backfill()
    assert (code, line) == (1, "")
    assert f"could not be fetched from the mirror or from {road.node.upstream.url(WIDGETS)}" in said
    assert sorted((road.workspace / ".git").rglob("*")) == before
    road.git.fault = None
    assert road.backfill()[0] == 0


@pytest.mark.slow
def test_a_mirror_that_hangs_is_given_up_in_time(road: Road) -> None:
    """Both ports accept and say nothing; the deadline is named, and there is time for the upstream."""
    road.git.fault = road.http.fault = Fault("hang")
    code, line, said = road.backfill("docs", guest=road.guest.with_(GITMIRROR_DEADLINE=12))
    assert code == 0 and line.endswith("via=upstream"), said
    assert "GITMIRROR_DEADLINE is 12" in said


@pytest.mark.parametrize("state", ["index.lock", "detached", "subdirectory", "own commit", "worktree"])
def test_whatever_the_agent_is_doing(road: Road, state: str) -> None:
    """Its locks, HEAD and commits are left alone."""
    workspace, lock = road.workspace, road.workspace / ".git" / "index.lock"
    cwd = workspace
    if state == "index.lock":
        lock.touch()
    elif state == "detached":
        git("checkout", "--quiet", "--detach", "HEAD~1", cwd=workspace)
    elif state == "own commit":
        (workspace / "mine.txt").write_text("mine")
        git("add", "mine.txt", cwd=workspace)
        git("commit", "--quiet", "-m", "mine", cwd=workspace)
    elif state == "worktree":
        cwd = road.guest.home / "other"
        git("worktree", "add", "--quiet", "--detach", str(cwd), cwd=workspace)
    else:
        cwd = workspace / "src"
    head = git("rev-parse", "HEAD", cwd=cwd)
    lacking = len(road.missing())
    assert road.backfill(cwd=cwd) == (0, f"backfilled objects={lacking} via=mirror", "")
    assert road.missing() == []
    assert git("rev-parse", "HEAD", cwd=cwd) == head
    assert lock.exists() == (state == "index.lock")


def test_a_full_clone_lacks_nothing(road: Road) -> None:
    """Code 0, and not one connection."""
    full = road.guest.home / "full"
    git("clone", "--quiet", str(road.node.upstream.path(WIDGETS)), str(full))
    assert road.backfill(cwd=full) == (0, "backfilled nothing", "gitmirror: nothing is missing\n")
    assert road.backfill("README.md", cwd=full) == (0, "backfilled nothing", "gitmirror: nothing is missing\n")
    assert road.connections == 0


@pytest.mark.slow
@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_a_short_command_is_not_waited_for(road: Road, shell: str) -> None:
    """What watches over a command may outlive it for a moment, but must not hold the pipe that the kit reads."""
    full = road.guest.home / "full"
    git("clone", "--quiet", "--depth=1", f"file://{road.node.upstream.path(WIDGETS)}", str(full))
    git("repack", "-adq", cwd=full)
    (full / ".git" / "shallow").unlink()
    git("replace", "--graft", "HEAD", cwd=full)
    guest = Guest(road.guest.home, road.guest.kit, shell, None, road.guest.env).with_(GITMIRROR_DEADLINE="1h")
    # In mksh, one of seven did so.
    done = guest.run("gitmirror_backfill; " * 20, cwd=full, timeout=50)
    assert done.out == "backfilled nothing\n" * 20


def test_a_shallow_workspace_is_told_how_to_get_its_history(node: Node, tmp_path: Path) -> None:
    """What it is told to run works against the mirror, brings no old contents, and then they can be fetched."""
    guest = node.guest(tmp_path / "home", tools=CURL)
    workspace = guest.home / "ws"
    commit = git("rev-parse", "HEAD", cwd=node.upstream.path(WIDGETS))
    git("clone", "--quiet", "--depth=1", f"{node.serve.git_url}/{WIDGETS}", str(workspace))
    for key, value in {
        "remote.gitmirror.url": f"{node.serve.git_url}/{WIDGETS}",
        "remote.gitmirror.promisor": "true",
        "remote.gitmirror.partialclonefilter": "blob:none",
        "gitmirror.repository": WIDGETS,
    }.items():
        git("config", key, value, cwd=workspace)
    done = guest.run("gitmirror_backfill", cwd=workspace)
    assert (done.code, done.out) == (1, "")
    command = done.err.splitlines()[-1].removeprefix("gitmirror: ")
    assert command == "git fetch --unshallow gitmirror"
    guest.git(*command.split()[1:], cwd=workspace)
    assert not (workspace / ".git" / "shallow").exists()
    count = ("rev-list", "--count", commit)
    assert git(*count, cwd=workspace) == git(*count, cwd=node.upstream.path(WIDGETS))
    words = ("rev-list", "--objects", "--all", "--missing=print", "--quiet")
    lacking = len(git(*words, cwd=workspace).splitlines())
    assert lacking > 0
    done = guest.run("gitmirror_backfill", cwd=workspace)
    assert done.code == 0 and done.out.startswith(f"backfilled objects={lacking} via=mirror ms=")


@pytest.mark.parametrize("place", ["home", "bare", ".git"])
def test_elsewhere_it_says_that_this_is_no_workspace(road: Road, place: str) -> None:
    """Code 1, and nothing else."""
    cwd = {"home": road.guest.home, "bare": road.guest.home / "bare", ".git": road.workspace / ".git"}[place]
    if place == "bare":
        git("init", "--quiet", "--bare", str(cwd))
    assert road.backfill(cwd=cwd) == (1, "", f"gitmirror: {cwd} is not a git workspace\n")


def test_wrong_usage(road: Road) -> None:
    """There are no options."""
    assert road.backfill("--all") == (2, "", "gitmirror: usage: gitmirror_backfill [PATH]...\n")
    assert "pathspec" in road.backfill("")[2]


def test_a_kit_without_a_mirror_asks_the_upstream(road: Road) -> None:
    """Or a workspace of which no repository is known."""
    code, line, said = road.backfill("docs", guest=road.guest.with_(**OFF))
    assert code == 0 and line.endswith("via=upstream"), said


def test_another_branch_finds_the_common_history(node: Node, road: Road) -> None:
    """A fetch of another branch in a workspace with history gets what is new there, and can be merged."""
    bare = node.upstream.path(WIDGETS)
    branch = next(
        name
        for name in git("for-each-ref", "--format=%(refname:short)", "refs/heads", cwd=bare).splitlines()
        if name != "main" and git("rev-list", f"main..{name}", cwd=bare)
    )
    before = _objects(road.workspace)
    git("fetch", "--quiet", "gitmirror", branch, cwd=road.workspace)
    new = len(git("rev-list", "--objects", "--filter=blob:none", f"main..{branch}", cwd=bare).splitlines())
    assert 0 < _objects(road.workspace) - before <= new
    assert git("merge-base", "HEAD", "FETCH_HEAD", cwd=road.workspace) == git("merge-base", "main", branch, cwd=bare)
