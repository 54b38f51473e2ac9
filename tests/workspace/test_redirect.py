"""`gitmirror_redirect`, and the one-line redirect of a whole host: who is sent where, exactly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git_result, refs
from tests.workspace.conftest import CURL, NOTHING, SHELLS, Guest, Node

NEIGHBOURS = ("-infra", "2", ".github.io", "_x", "s", "Z", ".gitx", ".git2", ".git-infra", "-infra.git", "2.git")


def seen_by_git(guest: Guest, url: str) -> str:
    """The URL that git would fetch from."""
    return guest.git("ls-remote", "--get-url", url, cwd=guest.home)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["curl", "nothing"])
def test_the_redirect_is_exact(node: Node, tmp_path: Path, shell: str, tools: tuple[str, ...]) -> None:
    """The repository itself goes to the mirror in every spelling; each neighbour with a longer name goes upstream."""
    guest = node.guest(tmp_path / "home", shell=shell, tools=tools)
    done = guest.run("gitmirror_redirect")
    assert (done.code, done.out) == (0, ""), done.err
    url, mirror = node.upstream.url(WIDGETS), f"{node.serve.git_url}/{WIDGETS}"
    for end in ("", ".git", "/", ".git/", "/info/refs"):
        assert seen_by_git(guest, url + end) == mirror + end
    for end in NEIGHBOURS:
        assert seen_by_git(guest, url + end) == url + end
    assert seen_by_git(guest, "https://github.com/acme/widgets") == "https://github.com/acme/widgets"


def test_fetches_go_to_the_mirror_and_pushes_upstream(node: Node, tmp_path: Path) -> None:
    """`git fetch origin` asks the mirror; `git push origin` reaches the upstream itself."""
    guest = node.guest(tmp_path / "home")
    workspace = guest.home / "ws"
    guest.hydrate(workspace).hydrated(via="snapshot")
    assert guest.run("gitmirror_redirect").code == 0
    node.upstream.forget()
    guest.git("fetch", "--quiet", "origin", cwd=workspace)
    assert node.upstream.count() == 0
    guest.git("push", "--quiet", "origin", "HEAD:refs/heads/from-a-guest", cwd=workspace)
    assert node.upstream.count(WIDGETS, "git-receive-pack") >= 1
    assert "refs/heads/from-a-guest" in refs(node.upstream.path(WIDGETS))


def test_it_goes_when_the_mirror_goes_and_comes_back_with_it(node: Node, tmp_path: Path) -> None:
    """The guest's config has no trace of it, other settings stay, and running it twice changes nothing."""
    guest = node.guest(tmp_path / "home")
    config = guest.home / ".gitconfig"
    config.write_text("[user]\n\tname = me\n")
    away = guest.with_(GITMIRROR_HTTP="http://127.0.0.1:1", GITMIRROR_GIT="git://127.0.0.1:1")
    url = node.upstream.url(WIDGETS)
    assert away.run("gitmirror_redirect").code == 0
    assert config.read_text() == "[user]\n\tname = me\n"
    for _ in range(2):
        assert guest.run("gitmirror_redirect").code == 0
    assert guest.git("config", "--global", "--get-all", "include.path", cwd=guest.home).count("\n") == 0
    assert seen_by_git(guest, url) != url
    done = away.run("gitmirror_redirect")
    assert done.code == 0 and "does not respond" in done.err
    assert seen_by_git(guest, url) == url
    assert guest.git("config", "--global", "--list", cwd=guest.home) == "user.name=me"
    assert guest.run("gitmirror_redirect").code == 0
    assert seen_by_git(guest, url) != url


def test_a_guest_without_a_home_is_told(node: Node, tmp_path: Path) -> None:
    """Code 1 and a reason; the other functions need none."""
    guest = node.guest(tmp_path / "home")
    done = guest.run("unset HOME; gitmirror_redirect")
    assert done.code == 1 and "HOME is not set" in done.err
    workspace = guest.home / "ws"
    script = f"""unset HOME
        gitmirror_hydrate {WIDGETS} '{workspace}' >&2
        echo x >'{workspace}/new.txt'
        gitmirror_record homeless '{workspace}'
    """
    guest.run(script).recorded("homeless")


def test_a_global_config_that_is_no_file_stays_what_it_is(node: Node, tmp_path: Path) -> None:
    """`GIT_CONFIG_GLOBAL=/dev/null` is usual, and git would put a file in the place of the device."""
    guest = node.guest(tmp_path / "home")
    pipe = guest.home / "pipe"
    os.mkfifo(pipe)
    for kit in (guest, guest.with_(GITMIRROR_HTTP="http://127.0.0.1:9")):
        done = kit.with_(GIT_CONFIG_GLOBAL=pipe).run("gitmirror_redirect", timeout=60)
        assert done.code == 1 and f"GIT_CONFIG_GLOBAL is {pipe}, which is not a regular file" in done.err
    assert pipe.is_fifo()
    assert guest.with_(GIT_CONFIG_GLOBAL=guest.home / "new").run("gitmirror_redirect").code == 0


def test_hydrate_reaches_the_upstream_past_a_redirect_to_a_dead_mirror(node: Node, tmp_path: Path) -> None:
    """The redirect, or one of the whole host, leads to a mirror that is gone: the upstream is asked itself."""
    guest = node.guest(tmp_path / "home")
    assert guest.run("gitmirror_redirect").code == 0
    rules = guest.home / ".config" / "git" / "gitmirror.redirect"
    rules.write_text(rules.read_text().replace(node.serve.git_url, "git://127.0.0.1:1"))
    gone = guest.with_(GITMIRROR_HTTP="http://127.0.0.1:1", GITMIRROR_GIT="git://127.0.0.1:1")
    assert gone.hydrate(guest.home / "ws").hydrated(via="upstream") == node.tip
    host = node.upstream.url("")
    (guest.home / ".gitconfig").write_text(f'[url "git://127.0.0.1:2/host/"]\n\tinsteadOf = {host}\n')
    assert gone.hydrate(guest.home / "ws2").hydrated(via="upstream") == node.tip


def test_one_line_redirects_a_whole_host(node: Node, tmp_path: Path, generated_bare: Path) -> None:
    """Mirrored repositories come from the mirror; the others by a redirect over HTTP, or a clear ERR over git://."""
    if not node.upstream.path("acme/unmirrored").exists():
        node.upstream.add("acme/unmirrored", generated_bare)
    host = node.upstream.url("").rstrip("/")
    name = host.removeprefix("http://")
    for scheme, base in (("http", node.serve.http_url), ("git", node.serve.git_url)):
        guest = node.guest(tmp_path / scheme)
        (guest.home / ".gitconfig").write_text(f'[url "{base}/{name}/"]\n\tinsteadOf = {host}/\n')
        node.upstream.forget()
        guest.git("clone", "--quiet", "--depth=1", f"{host}/{WIDGETS}", "mirrored", cwd=guest.home)
        assert node.upstream.count() == 0
        env = guest.environment()
        code, _, said = git_result("clone", f"{host}/acme/unmirrored", "other", cwd=guest.home, env=env)
        if scheme == "http":
            assert code == 0, said
            assert node.upstream.count("acme/unmirrored") > 0
        else:
            assert code != 0 and "not mirrored here" in said
