"""The guest kit hydrates a repository that is allowed and not here yet, and one whose clone takes too long."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.ondemand.conftest import Allowing
from tests.support.gitutil import git, git_result, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import BUSYBOX, CURL, NOTHING, Guest

pytestmark = pytest.mark.slow


def guest_of(serve: Serve, home: Path, tools: tuple[str, ...] | None = CURL) -> Guest:
    """A guest with the kit of a mirror that has no repositories."""
    home.mkdir(exist_ok=True)
    kit = home / "guest.sh"
    kit.write_text(serve.here("guest-kit"))
    return Guest(home, kit, tools=tools)


@pytest.mark.parametrize(("tools", "via"), [(CURL, "snapshot"), (BUSYBOX, "snapshot"), (NOTHING, "mirror")])
def test_a_quick_clone(
    allowing: Allowing, upstream: HttpUpstream, tmp_path: Path, tools: tuple[str, ...], via: str
) -> None:
    serve = allowing(wait="10s")
    guest = guest_of(serve, tmp_path / "home", tools)
    commit = guest.hydrate(tmp_path / "work").hydrated(via)
    assert commit == git("rev-parse", "HEAD", cwd=upstream.path(WIDGETS))
    assert guest.git("status", "--porcelain", cwd=tmp_path / "work") == ""


def test_a_slow_clone(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """One clone that hangs is all that may run, so the next waits. Its guest has its workspace from the upstream.

    Each clone gives way after five seconds, and three are before that of the guest.
    """
    serve = allowing(wait="2s", refresh={"concurrency": 1})
    guest = guest_of(serve, tmp_path / "home")
    hung = ["acme/hangs", "acme/hangs-2", "acme/hangs-3"]
    for name in hung:
        upstream.add(name, upstream.path(WIDGETS))
        upstream.on(name).hang_after = 3000

    def ask(name: str) -> str:
        return git_result("ls-remote", f"{serve.git_url}/{name}")[2]

    with ThreadPoolExecutor(3) as guests:
        asking = [guests.submit(ask, hung[0])]
        wait_until(lambda: upstream.hanging == 1, message="its clone hangs")
        asking += [guests.submit(ask, name) for name in hung[1:]]
        for each in asking:
            each.result()
    assert "is being cloned" in ask(hung[0])
    result = guest.hydrate(tmp_path / "work")
    # Over HTTP, which the kit tries last, the mirror redirects git to the upstream.
    assert result.hydrated("mirror") == git("rev-parse", "HEAD", cwd=upstream.path(WIDGETS))
    assert "was asked for" in result.err and "redirecting to" in result.err
    upstream.reset()
    serve.wait_for_repo("acme/hangs")
    serve.wait_for_repo(WIDGETS)
    guest.hydrate(tmp_path / "again").hydrated("snapshot")
    result = guest.run(f"gitmirror_record s1 {tmp_path / 'again'}")
    assert result.code == 0, result.err


def test_what_does_not_exist(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """It fails as it does for a name that nobody allows."""
    serve = allowing(wait="10s")
    guest = guest_of(serve, tmp_path / "home").with_(GITMIRROR_UPSTREAM=upstream.url("acme/nothing"))
    result = guest.hydrate(tmp_path / "work", repo="acme/nothing")
    assert result.code == 1 and not (tmp_path / "work").exists()
