"""NATS is away or does not answer while somebody asks for a session of another node."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import WIDGETS
from tests.fleet.away import Elsewhere
from tests.support.gitutil import git, git_result
from tests.support.nats import NatsCluster
from tests.support.serve import Serve, wait_until
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow


@pytest.fixture
def away(tmp_path: Path, generated_bare: Path, nats: NatsCluster, upstream: HttpUpstream) -> Elsewhere:
    """Node `b`, not started, and what node `a` stores."""
    fleet = {"servers": nats.urls, "node": "b", "name": "troubles"}
    refresh = {"interval": "1h", "stale_after": "1d"}
    serve = Serve(tmp_path / "b", repos=[upstream.url(WIDGETS)], fleet=fleet, refresh=refresh)
    return Elsewhere.of(serve, nats, upstream, "troubles", tmp_path / "clone")


def ask(away: Elsewhere, place: Path, session: str) -> tuple[int, str, float]:
    """Fetches a session; the exit code, what git says, and the seconds."""
    git("init", "-q", "--bare", str(place))
    start = time.monotonic()
    url = f"{away.serve.git_url}/{WIDGETS}"
    code, _, err = git_result("fetch", "-q", url, f"refs/agents/{session}:refs/heads/got", cwd=place)
    return code, err, time.monotonic() - start


def test_nats_that_hangs_or_ends_holds_up_nobody_else(away: Elsewhere, tmp_path: Path) -> None:
    with away.serve.start() as serve:
        serve.wait_for_repo(WIDGETS)
        wait_until(lambda: " as b" in serve.log(), message="the fleet is there")
        away.record("s", commit := away.commit(anew=True))

        def others() -> float:
            began = time.monotonic()
            serve.clone(tmp_path / f"other-{began}", WIDGETS)
            git("ls-remote", f"{serve.git_url}/{WIDGETS}", "refs/heads/*")
            return time.monotonic() - began

        before = others()
        [server] = away.nats.servers
        server.freeze()
        answers: list[tuple[int, str, float]] = []
        asking = Thread(target=lambda: answers.append(ask(away, tmp_path / "waits", "s")))
        asking.start()
        meanwhile = others()
        asking.join()
        [(code, err, waited)] = answers
        assert meanwhile < before + waited / 2, "the others were served while it waited"
        assert code != 0 and "session s was recorded on node a and cannot be fetched now" in err
        server.thaw()
        wait_until(lambda: ask(away, tmp_path / f"again-{time.monotonic()}", "s")[0] == 0, message="it comes again")
        away.record("t", away.commit())
        server.stop()
        wait_until(lambda: "cannot be used" in serve.log(), message="the loss is noticed")
        code, err, seconds = ask(away, tmp_path / "gone", "t")
        assert code != 0 and "the fleet cannot be used" in err
        print(f"refused after {seconds:.2f} s")
        # What was brought stays.
        code, _, _ = ask(away, tmp_path / "stays", "s")
        assert code == 0 and git("rev-parse", "got", cwd=tmp_path / "stays") == commit
        server.start()
        wait_until(lambda: ask(away, tmp_path / f"back-{time.monotonic()}", "t")[0] == 0, message="it comes after that")


def test_without_serve_a_command_says_that_it_is_needed(away: Elsewhere) -> None:
    with away.serve.start() as serve:
        serve.wait_for_repo(WIDGETS)
        wait_until(lambda: " as b" in serve.log(), message="the fleet is there")
        away.record("s", away.commit(anew=True))
        serve.terminate()
        done = serve.cli("session", "diff", WIDGETS, "s", check=False)
        assert done.returncode == 4 and "serve" in done.stderr
        assert away.serve.cli("session", "show", WIDGETS, "s").stdout
