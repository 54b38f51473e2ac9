"""`refs-moved`: what it says about a real refresh, and that guests get the new refs by then."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import Watch
from appliance.core.events.facts import MOST_TOLD
from appliance.core.layout import Layout
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED
from tests.support.generate import add_commit
from tests.support.gitutil import git
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


@pytest.fixture
def serve(serve_factory: ServeFactory, upstream: HttpUpstream) -> Serve:
    """A node that refreshes when it is told to."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    return serve


@contextmanager
def watching(serve: Serve) -> Iterator[Iterator[dict[str, Any]]]:
    """The events `refs-moved` from now on, as they come."""
    watch = Watch(Layout(serve.state))
    try:
        yield (event for event in watch if event["event"] == "refs-moved")
    finally:
        watch.close()


def advertised(serve: Serve, base: str) -> dict[str, str]:
    """What a guest is shown: each ref's commit, and where HEAD points."""
    lines = git("ls-remote", "--symref", f"{base}/{WIDGETS}").splitlines()
    return {name: value for value, _, name in (line.partition("\t") for line in lines)}


@pytest.mark.slow
def test_who_hears_that_refs_moved_and_fetches_gets_them(serve: Serve, upstream: HttpUpstream) -> None:
    """Over both ports, at once, though the old refs were asked for just before."""
    old = advertised(serve, serve.git_url)["refs/heads/main"]
    with watching(serve) as events, ThreadPoolExecutor() as commands:
        for number in range(5):
            for base in (serve.git_url, serve.http_url):
                assert advertised(serve, base)["refs/heads/main"] == old
            new = add_commit(upstream.path(WIDGETS), "main", {"new": f"{number}\n"})
            commands.submit(serve.cli, "refresh", WIDGETS)
            event = next(events)
            assert advertised(serve, serve.git_url)["refs/heads/main"] == new
            assert advertised(serve, serve.http_url)["refs/heads/main"] == new
            assert list(event) == ["event", "at", "repo", "refs", "more", "head"]
            assert (event["repo"], event["more"], event["head"]) == (WIDGETS, 0, None)
            assert event["refs"] == [{"ref": "refs/heads/main", "old": old, "new": new}]
            old = new


@pytest.mark.slow
def test_new_refs_deleted_refs_and_another_head(serve: Serve, upstream: HttpUpstream) -> None:
    path = upstream.path(WIDGETS)
    with watching(serve) as events:
        tip = add_commit(path, "topic", {"a": "1\n"})
        serve.cli("refresh", WIDGETS)
        assert next(events)["refs"] == [{"ref": "refs/heads/topic", "old": None, "new": tip}]
        git("symbolic-ref", "HEAD", "refs/heads/topic", cwd=path)
        serve.cli("refresh", WIDGETS)
        event = next(events)
        assert (event["refs"], event["head"]) == ([], {"old": "refs/heads/main", "new": "refs/heads/topic"})
        assert advertised(serve, serve.git_url)["HEAD"] == tip
        git("symbolic-ref", "HEAD", "refs/heads/main", cwd=path)
        git("update-ref", "-d", "refs/heads/topic", cwd=path)
        serve.cli("refresh", WIDGETS)
        event = next(events)
        assert event["refs"] == [{"ref": "refs/heads/topic", "old": tip, "new": None}]
        assert event["head"] == {"old": "refs/heads/topic", "new": "refs/heads/main"}


def test_a_first_clone_says_what_is_there(serve: Serve, upstream: HttpUpstream, generated_bare: Path) -> None:
    """It names a hundred refs, the default branch among them, and counts the others."""
    path = upstream.add("acme/many", generated_bare)
    tip = git("rev-parse", "refs/heads/main", cwd=path).strip()
    lines = "".join(f"create refs/heads/a/{number:03} {tip}\n" for number in range(2 * MOST_TOLD))
    git("update-ref", "--stdin", cwd=path, input=lines)
    refs = len(git("for-each-ref", "refs/heads", "refs/tags", cwd=path).splitlines())
    with watching(serve) as events:
        serve.cli("add-repo", upstream.url("acme/many"))
        event = next(events)
    assert (event["repo"], len(event["refs"]), event["more"]) == ("acme/many", MOST_TOLD, refs - MOST_TOLD)
    assert event["head"] == {"old": None, "new": "refs/heads/main"}
    assert {"ref": "refs/heads/main", "old": None, "new": tip} in event["refs"]


def test_a_database_that_hangs_does_not_delay_it(serve: Serve, upstream: HttpUpstream) -> None:
    """Guests get the new refs meanwhile, and a platform that acts on them need not wait."""
    with watching(serve) as events, ThreadPoolExecutor() as commands:
        other = sqlite3.connect(serve.state / "gitmirror.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            tip = add_commit(upstream.path(WIDGETS), "main", {"new": "1\n"})
            command = commands.submit(serve.cli, "refresh", WIDGETS, check=False)
            assert next(events)["refs"][0]["new"] == tip
            assert advertised(serve, serve.git_url)["refs/heads/main"] == tip
            assert not command.done()
        finally:
            other.rollback()
            other.close()
