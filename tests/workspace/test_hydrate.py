"""`gitmirror_hydrate`: what is asked for, where it goes, and the guests it must work in."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, git_result, refs
from tests.workspace.conftest import (
    BUSYBOX,
    CURL,
    GNU_WGET,
    NOTHING,
    SHELLS,
    Guest,
    Node,
    skip_where_the_shell_has_tools,
)

pytestmark = pytest.mark.slow


def assert_workspace(guest: Guest, node: Node, workspace: Path, commit: str) -> None:
    """Assert that it is a whole, clean checkout of `commit` whose `origin` is the upstream, and nothing beside it."""
    status = git("status", "--porcelain=v2", "--branch", "--ignored", cwd=workspace).splitlines()
    assert status[0] == f"# branch.oid {commit}"
    assert [line for line in status if not line.startswith("# branch.")] == []
    fsck(workspace)
    names = r"^(remote\.origin\.url|gitmirror\.repository|gitmirror\.base)$"
    found = dict(line.split() for line in guest.git("config", "--get-regexp", names, cwd=workspace).splitlines())
    assert found == {
        "remote.origin.url": node.upstream.url(WIDGETS),
        "gitmirror.repository": WIDGETS,
        "gitmirror.base": commit,
    }
    for directory in (workspace, workspace.parent):
        assert not [path for path in directory.iterdir() if path.name.startswith(".gitmirror")]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("tools", "via"),
    [(CURL, "snapshot"), (BUSYBOX, "snapshot"), (GNU_WGET, "snapshot"), (NOTHING, "mirror")],
    ids=["curl", "busybox", "wget", "nothing"],
)
def test_it_works_with_what_a_guest_has(
    node: Node, tmp_path: Path, shell: str, tools: tuple[str, ...], via: str
) -> None:
    """curl, busybox or GNU wget, and none of them; GNU and busybox tar; with `timeout` and without; every shell."""
    if tools == NOTHING:
        skip_where_the_shell_has_tools(shell)
    guest = node.guest(tmp_path / "home", shell=shell, tools=tools)
    workspace = guest.home / "a work space"
    commit = guest.hydrate(workspace).hydrated(via=via)
    assert commit == node.tip
    assert_workspace(guest, node, workspace, commit)


@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["http", "git"])
@pytest.mark.parametrize("want", ["develop", "feature/search", "v0.0", "v0.1", "OLD", "session:one"])
def test_it_takes_branches_tags_commits_and_sessions(
    node: Node, tmp_path: Path, tools: tuple[str, ...], want: str
) -> None:
    """Each comes from the mirror, by the snapshot where that helps."""
    bare = node.upstream.path(WIDGETS)
    old = git("rev-parse", "main~3", cwd=bare)
    guest = node.guest(tmp_path / "home", tools=tools)
    if want == "session:one":
        maker = node.guest(tmp_path / "maker")
        maker.hydrate(tmp_path / "made").hydrated(via="snapshot")
        (tmp_path / "made" / "session.txt").write_text(f"{tools}\n")
        expected = maker.record("one", tmp_path / "made").recorded("one")
    else:
        expected = old if want == "OLD" else git("rev-parse", f"{want}^{{commit}}", cwd=bare)
    done = guest.hydrate(guest.home / "ws", old if want == "OLD" else want)
    by_snapshot = tools == CURL and not want.startswith("v0")
    assert done.hydrated(via="snapshot" if by_snapshot else "mirror") == expected
    assert_workspace(guest, node, guest.home / "ws", expected)
    code, head, _ = git_result("symbolic-ref", "--short", "HEAD", cwd=guest.home / "ws")
    expected_head = {"develop": "develop", "feature/search": "feature/search", "session:one": "main"}.get(want, "")
    assert (head if code == 0 else "") == expected_head


@pytest.mark.parametrize("name", ["a+b&c=%d#1", 'with"quote', "ünï/cødé", "$(touch pwned)", "'; touch pwned; '"])
@pytest.mark.parametrize("tools", [CURL, BUSYBOX, NOTHING], ids=["curl", "busybox", "git"])
def test_a_branch_may_have_an_odd_name(
    own_node_with_branches: Node, tmp_path: Path, name: str, tools: tuple[str, ...]
) -> None:
    """It is asked for as it is, and written into the config as git reads it."""
    node = own_node_with_branches
    name = name.replace(" ", "_")
    guest = node.guest(tmp_path / "home", tools=tools)
    done = guest.hydrate(guest.home / "ws", name)
    expected = git("rev-parse", f"refs/heads/{name}", cwd=node.upstream.path(WIDGETS))
    assert done.hydrated(via="mirror" if tools == NOTHING else "snapshot") == expected
    assert_workspace(guest, node, guest.home / "ws", expected)
    assert git("symbolic-ref", "HEAD", cwd=guest.home / "ws") == f"refs/heads/{name}"
    git("fetch", "--quiet", "origin", cwd=guest.home / "ws", env=guest.environment())
    assert git("rev-parse", "--abbrev-ref", "@{upstream}", cwd=guest.home / "ws") == f"origin/{name}"


@pytest.fixture(scope="module")
def own_node_with_branches(node: Node) -> Node:
    """The node with some branches of odd names."""
    for name in ("a+b&c=%d#1", 'with"quote', "ünï/cødé", "$(touch pwned)", "'; touch pwned; '"):
        add_commit(node.upstream.path(WIDGETS), name.replace(" ", "_"), {"name.txt": name})
    node.refresh()
    return node


def test_a_snapshot_behind_its_branch_is_brought_forward(own_node: Node, tmp_path: Path) -> None:
    """The guest ends at the mirror's tip, with curl and with wget, however old the snapshot is."""
    node = own_node
    guests = [node.guest(tmp_path / "curl", tools=CURL), node.guest(tmp_path / "bb", shell="busybox", tools=BUSYBOX)]
    # A work directory that cannot be written keeps the snapshot where it is.
    [place] = (node.serve.state / "workspaces" / WIDGETS).iterdir()
    shutil.rmtree(place / "checkout")
    (place / "checkout").write_text("in the way")
    old = node.tip
    new = add_commit(node.upstream.path(WIDGETS), "main", {"README.md": "new\n", "run.sh": None})
    node.refresh()
    for guest in guests:
        assert guest.hydrate(guest.home / "ws").hydrated(via="snapshot") == new
        assert_workspace(guest, node, guest.home / "ws", new)
        assert (guest.home / "ws" / "README.md").read_text() == "new\n"
        assert git("rev-parse", "refs/remotes/origin/main", cwd=guest.home / "ws") == new
        # The commit of the snapshot is still had for itself.
        assert guest.hydrate(guest.home / "old", old).hydrated(via="snapshot") == old


# Where it goes


def test_an_empty_directory_is_filled(node: Node, tmp_path: Path) -> None:
    """DIR may exist, with a slash behind or through a link, and have what a new file system has."""
    guest = node.guest(tmp_path / "home")
    for name in ("plain", "slash", "link", "new-disk"):
        (guest.home / name).mkdir()
    (guest.home / "new-disk" / "lost+found").mkdir()
    (guest.home / "to").symlink_to("link")
    inode = (guest.home / "plain").stat().st_ino
    for name in ("plain", "slash//", "to", "new-disk"):
        commit = guest.hydrate(f"{guest.home}/{name}").hydrated(via="snapshot")
        assert_workspace(guest, node, guest.home / name.rstrip("/"), commit)
    assert (guest.home / "plain").stat().st_ino == inode
    assert (guest.home / "to").is_symlink()


def test_a_directory_is_taken_as_the_caller_means_it(node: Node, tmp_path: Path) -> None:
    """Relative, `.`, with a leading dash, below directories that are not there yet; CDPATH leads nowhere else."""
    guest = node.guest(tmp_path / "home", CDPATH="/tmp:/")
    for name in ("ws", "./ws2", "-dash", "new/parents/ws", "trailing///"):
        done = guest.run(f"gitmirror_hydrate {WIDGETS} '{name}'", cwd=guest.home)
        assert_workspace(guest, node, guest.home / name.rstrip("/"), done.hydrated(via="snapshot"))
        (guest.home / name.rstrip("/") / "new.txt").write_text(name)
        guest.run(f"gitmirror_record dirs '{name}'", cwd=guest.home).recorded("dirs")
    (guest.home / "here").mkdir()
    done = guest.run(f"gitmirror_hydrate {WIDGETS} .", cwd=guest.home / "here")
    assert_workspace(guest, node, guest.home / "here", done.hydrated(via="snapshot"))


def test_a_place_that_is_taken_is_not_touched(node: Node, tmp_path: Path) -> None:
    """A file in DIR, a hidden one, a broken link, or a file for DIR: code 1, a reason, and everything as it was."""
    guest = node.guest(tmp_path / "home")
    for name in ("visible", ".hidden", "..odd", "odd\nname"):
        place = guest.home / f"dir-{name}".replace("\n", "-")
        place.mkdir()
        (place / name).write_text("mine")
        done = guest.hydrate(place)
        assert (done.code, done.out) == (1, "") and "not empty" in done.err
        assert [path.name for path in place.iterdir()] == [name]
    (guest.home / "file").write_text("mine")
    (guest.home / "broken").symlink_to("nowhere")
    for name in ("file", "broken"):
        assert guest.hydrate(guest.home / name).code == 1
    assert (guest.home / "file").read_text() == "mine" and (guest.home / "broken").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_mount_point_below_a_read_only_parent_is_filled(node: Node, tmp_path: Path) -> None:
    """A small tmpfs for the workspace and nothing else that can be written: each shell fills it."""
    for shell, tools in (("dash", CURL), ("busybox", BUSYBOX), ("bash", CURL)):
        guest = node.guest(tmp_path / shell, shell=shell, tools=tools)
        (guest.home / "ws").mkdir()
        words = {"dash": "dash", "busybox": "busybox sh", "bash": "bash --posix"}[shell]
        program = shutil.which(words.split()[0])
        script = f"""
            set -eu
            mount --bind '{guest.home}' '{guest.home}'
            mount -t tmpfs -o size=256m none '{guest.home}/ws'
            mount -o remount,bind,ro '{guest.home}'
            ! touch '{guest.home}/x' 2>/dev/null
            PATH='{guest.environment()["PATH"]}'
            {program} {" ".join(words.split()[1:])} -c '. "{guest.kit}"; gitmirror_hydrate {WIDGETS} "{guest.home}/ws"'
            git -C '{guest.home}/ws' status --porcelain
            for entry in '{guest.home}'/ws/.gitmirror*; do [ ! -e "$entry" ] || echo left "$entry"; done
        """
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            env={**guest.environment(), "PATH": f"{guest.environment()['PATH']}:{os.environ['PATH']}"},
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        assert done.stdout.startswith("hydrated via=snapshot") and done.stdout.count("\n") == 1, done.stdout


@pytest.mark.parametrize(
    "arguments",
    (
        "",
        "acme/widgets",
        "acme ws",
        "acme/../x ws",
        "a/b/c ws",
        "acme/widgets ''",
        "acme/widgets ws 'session:../x'",
        "acme/widgets ws -b",
        "acme/widgets ws 'a b'",
        "acme/widgets ws 'HEAD~1'",
        "acme/widgets ws main extra",
    ),
)
def test_a_wrong_call_is_told_how_to_do_it(node: Node, tmp_path: Path, arguments: str) -> None:
    """Code 2, the usage on stderr, nothing on stdout, and no directory."""
    guest = node.guest(tmp_path / "home")
    done = guest.run(f"gitmirror_hydrate {arguments}", cwd=guest.home)
    assert (done.code, done.out) == (2, "") and "usage" in done.err
    assert not (guest.home / "ws").exists()


@pytest.mark.parametrize("name", ["GITMIRROR_DEADLINE", "GITMIRROR_MAX_LAG"])
def test_a_duration_may_have_a_unit(node: Node, tmp_path: Path, name: str) -> None:
    """Seconds, or with s, m, h or d; anything else is a usage error that names the variable."""
    guest = node.guest(tmp_path / "home")
    for number, value in enumerate(("60", "060", "90s", "5m", "1h", "7d")):
        guest.with_(**{name: value}).hydrate(guest.home / f"ws{number}").hydrated(via="snapshot")
    for value in ("soon", "5 m", "-1", "1.5", "m"):
        done = guest.with_(**{name: value}).hydrate(guest.home / "ws")
        assert done.code == 2 and name in done.err


# The guest around it


@pytest.mark.parametrize("tools", [CURL, BUSYBOX, NOTHING], ids=["curl", "busybox", "git"])
def test_the_umask_holds_for_every_file(node: Node, tmp_path: Path, tools: tuple[str, ...]) -> None:
    """Also for root, whose tar would take the modes of the snapshot; what is executable stays so."""
    guest = node.guest(tmp_path / "home", tools=tools)
    done = guest.run(f"umask 077; gitmirror_hydrate {WIDGETS} '{guest.home}/ws'")
    commit = done.hydrated(via="mirror" if tools == NOTHING else "snapshot")
    files = [path for path in (guest.home / "ws").rglob("*") if not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o077] == []
    assert (guest.home / "ws" / "run.sh").stat().st_mode & 0o700 == 0o700
    assert_workspace(guest, node, guest.home / "ws", commit)


def test_nothing_of_the_caller_is_touched(node: Node, tmp_path: Path) -> None:
    """Options, variables, directory, traps and umask are as before, and odd ones do no harm."""
    for shell in SHELLS:
        guest = node.guest(tmp_path / shell, shell=shell)
        script = f"""
            cd "$HOME"; umask 077; set -f; set -C
            IFS=/; repo=mine dir=mine tmp=mine left=mine
            trap 'echo my trap' EXIT
            before="$(set -o; pwd; umask)"
            gitmirror_hydrate {WIDGETS} "$HOME/ws" >&2
            [ "$before" = "$(set -o; pwd; umask)" ]
            echo "$repo $dir $tmp $left"
            gitmirror_hydrate 2>/dev/null || echo "code $?"
        """
        done = guest.run(script)
        assert done.out.splitlines() == ["mine mine mine mine", "code 2", "my trap"], done.err
        assert stat.S_IMODE((guest.home / "ws").stat().st_mode) & 0o077 == 0


HOSTILE_CONFIG = """\
[url "https://"]
    insteadOf = git://
[init]
    templateDir = {home}/template
    defaultBranch = trunk
[core]
    hooksPath = {home}/hooks
    autocrlf = input
    fsmonitor = {home}/hooks/run
[commit]
    gpgSign = true
    template = {home}/nowhere
[push]
    followTags = true
    gpgSign = true
    recurseSubmodules = check
    pushOption = hello
    negotiate = true
[clone]
    defaultRemoteName = elsewhere
[submodule]
    recurse = true
[gpg]
    program = false
[fetch]
    prune = true
    fsckObjects = true
[user]
    useConfigOnly = true
"""


@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["snapshot", "mirror"])
def test_a_guest_with_its_own_git_config_gets_the_same(node: Node, tmp_path: Path, tools: tuple[str, ...]) -> None:
    """Its rewriting, templates, hooks, signing, tags and options keep neither hydrate nor record from their work."""
    guest = node.guest(tmp_path / "home", tools=tools)
    for name in ("post-checkout", "pre-commit", "post-commit", "commit-msg", "pre-push", "prepare-commit-msg", "run"):
        for directory in ("hooks", "template/hooks"):
            hook = guest.home / directory / name
            hook.parent.mkdir(parents=True, exist_ok=True)
            hook.write_text(f"#!/bin/sh\necho {name} >>'{guest.home}/ran'\nexit 1\n")
            hook.chmod(0o755)
    (guest.home / ".gitconfig").write_text(HOSTILE_CONFIG.format(home=guest.home))
    workspace = guest.home / "ws"
    commit = guest.hydrate(workspace).hydrated(via="mirror" if tools == NOTHING else "snapshot")
    assert git("rev-parse", "refs/remotes/origin/main", cwd=workspace) == commit
    (workspace / "new.txt").write_text("new\n")
    git("tag", "-a", "mine", "-m", "mine", cwd=workspace)
    session = "config" if tools else "config2"
    turn = guest.record(session, workspace).recorded(session)
    assert refs(node.serve.mirror(WIDGETS))[f"refs/agents/{session}"] == turn
    assert git("log", "-1", "--format=%an <%ae> %cn <%ce>", cwd=workspace) == " ".join(
        ["agent <agent@gitmirror.invalid>"] * 2
    )
    assert not (guest.home / "ran").exists()


def test_a_kit_of_another_mirror_works_here(node: Node, tmp_path: Path) -> None:
    """With `GITMIRROR_HTTP` and `GITMIRROR_GIT` set an image needs no rebuild when the mirror moves."""
    guest = node.guest(tmp_path / "home")
    text = guest.kit.read_text()
    for url in (node.serve.http_url, node.serve.git_url, node.upstream.url(WIDGETS)):
        text = text.replace(url, "http://127.0.0.1:1/elsewhere")
    guest.kit.write_text(text)
    here = guest.with_(
        GITMIRROR_HTTP=f"{node.serve.http_url}/",
        GITMIRROR_GIT=f"{node.serve.git_url}/",
        GITMIRROR_UPSTREAM=node.upstream.url(WIDGETS),
    )
    workspace = guest.home / "ws"
    assert_workspace(guest, node, workspace, here.hydrate(workspace).hydrated(via="snapshot"))
    (workspace / "new.txt").write_text("new\n")
    here.record("moved", workspace).recorded("moved")


@pytest.mark.parametrize("shell", SHELLS)
def test_it_runs_as_a_program_too(node: Node, tmp_path: Path, shell: str) -> None:
    """Its first argument is the function; none or another one is a usage error."""
    guest = node.guest(tmp_path / "home", shell=shell)
    words = {"busybox": "busybox sh", "bash": "bash --posix"}.get(shell, shell)
    out = guest.run(f"{words} '{guest.kit}' hydrate {WIDGETS} \"$HOME/ws\"")
    commit = out.hydrated(via="snapshot")
    assert_workspace(guest, node, guest.home / "ws", commit)
    assert guest.run(f"{words} '{guest.kit}' record life \"$HOME/ws\"").out == "recorded nothing\n"
    for arguments in ("", "fly"):
        done = guest.run(f"{words} '{guest.kit}' {arguments}")
        assert done.code == 2 and "hydrate | record | backfill | redirect" in done.err
    guest.kit.chmod(0o755)
    assert guest.run(f"'{guest.kit}' record life \"$HOME/ws\"").out == "recorded nothing\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_that_sources_it_goes_on(node: Node, tmp_path: Path, shell: str) -> None:
    """Sourcing runs nothing, also when the script has arguments of its own and options are strict."""
    guest = node.guest(tmp_path / "home", shell=shell)
    script = guest.home / "harness"
    script.write_text(f"set -eu\n. '{guest.kit}'\necho \"went on with $1\"\n")
    words = {"busybox": "busybox sh", "bash": "bash --posix"}.get(shell, shell)
    assert guest.run(f"{words} '{script}' hydrate").out == "went on with hydrate\n"


def test_work_goes_on_as_in_any_clone(node: Node, tmp_path: Path) -> None:
    """Commit, diff, stash, branches, and the whole history when it is asked for, by the redirect."""
    guest = node.guest(tmp_path / "home")
    workspace = guest.home / "ws"
    guest.run(f"gitmirror_hydrate --tip {WIDGETS} ws").hydrated(via="snapshot")
    run = ("-c", "user.name=me", "-c", "user.email=me@example.com")
    (workspace / "README.md").write_text("edited\n")
    assert "edited" in guest.git("diff", cwd=workspace)
    guest.git(*run, "stash", cwd=workspace)
    assert guest.git("status", "--porcelain", cwd=workspace) == ""
    guest.git(*run, "stash", "pop", cwd=workspace)
    guest.git("switch", "--quiet", "-c", "topic", cwd=workspace)
    guest.git(*run, "commit", "-qam", "mine", cwd=workspace)
    assert guest.run("gitmirror_redirect").code == 0
    node.upstream.forget()
    guest.git("fetch", "--quiet", "--unshallow", "origin", cwd=workspace)
    assert node.upstream.count(WIDGETS) == 0
    assert guest.git("rev-list", "--count", "origin/main", cwd=workspace) == git(
        "rev-list", "--count", "main", cwd=node.upstream.path(WIDGETS)
    )
    fsck(workspace)
    url = f"{node.serve.git_url}/{WIDGETS}"
    guest.git("push", "--quiet", url, "HEAD:refs/agents/by-hand", cwd=workspace)
    assert refs(node.serve.mirror(WIDGETS))["refs/agents/by-hand"] == git("rev-parse", "HEAD", cwd=workspace)


def test_missing_objects_come_from_the_mirror(node: Node, tmp_path: Path) -> None:
    """A fetch without blobs gets them from the mirror when they are needed, and asks no upstream."""
    guest = node.guest(tmp_path / "home", tools=NOTHING)
    workspace = guest.home / "ws"
    guest.hydrate(workspace).hydrated(via="mirror")
    url = f"{node.serve.git_url}/{WIDGETS}"
    guest.git("fetch", "--quiet", "--filter=blob:none", "gitmirror", "refs/heads/develop", cwd=workspace)
    assert guest.git("config", "remote.gitmirror.url", cwd=workspace) == url
    node.upstream.forget()
    guest.git("checkout", "--quiet", "FETCH_HEAD", cwd=workspace)
    assert guest.git("status", "--porcelain", cwd=workspace) == ""
    assert node.upstream.count() == 0
