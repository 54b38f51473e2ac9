"""The operations of a running `serve` through its socket: what happens to them when their client leaves."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.api.client import call
from appliance.core.api.problem import CONFLICT, Problem
from appliance.core.layout import Layout
from tests.api.wire import Wire, request
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED
from tests.support.gitutil import git, refs, wait_until
from tests.support.upstream import HttpUpstream


@contextlib.contextmanager
def held(state: Path) -> Iterator[None]:
    """Another process writes to the database, so that every change waits."""
    other = sqlite3.connect(state / "gitmirror.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def begun(state: Path) -> bool:
    """Whether an end of a session has begun."""
    with contextlib.closing(sqlite3.connect(state / "gitmirror.db")) as other:
        return bool(other.execute("SELECT 1 FROM ends_begun").fetchone())


@pytest.mark.slow
def test_a_session_is_ended_wholly_without_its_client(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Its refs were gone and its turns were not: a mirror that was then called damaged, and healed."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    layout = Layout(serve.state)
    git("clone", "-q", f"{serve.git_url}/{WIDGETS}", str(tmp_path / "guest"))
    git("push", "-q", "origin", "HEAD:refs/agents/one", cwd=tmp_path / "guest")
    wait_until(lambda: call(layout, "GET", "/v1/sessions")["items"], message="it is recorded")
    # git waits for this lock. Meanwhile it is stored that the end has begun, and the next change of the database waits.
    mirror = serve.mirror(WIDGETS)
    git("config", "core.packedRefsTimeout", "60000", cwd=mirror)
    (mirror / "packed-refs.lock").touch()
    wire = Wire(layout.control_socket).say(request("DELETE", f"/v1/repos/{WIDGETS}/sessions/one"))
    wait_until(lambda: begun(serve.state), message="its end has begun")
    with held(serve.state):
        (mirror / "packed-refs.lock").unlink()
        wait_until(lambda: "refs/agents/one" not in refs(mirror), message="its ref is gone")
        before = len(serve.log())
        wire.close()
        wait_until(lambda: "ended early" in serve.log()[before:], message="the client is missed")
    wait_until(lambda: not call(layout, "GET", "/v1/sessions")["items"], message="its turns are gone, too")


@pytest.mark.slow
def test_a_purge_is_finished_without_its_client(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Its mirror stayed on disk, and whoever registered the repository again got it with all its sessions."""
    upstream.add("acme/other", upstream.path(WIDGETS))
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    layout = Layout(serve.state)
    call(layout, "POST", "/v1/repos", {"url": upstream.url("acme/other")})
    with held(serve.state):
        wire = Wire(layout.control_socket).say(request("DELETE", "/v1/repos/acme/other?purge=true"))
        assert len(call(layout, "GET", "/v1/repos")["items"]) == 2
        before = len(serve.log())
        wire.close()
        wait_until(lambda: "ended early" in serve.log()[before:], message="the client is missed")
    wait_until(lambda: not serve.mirror("acme/other").exists(), message="its mirror is gone")
    assert len(call(layout, "GET", "/v1/repos")["items"]) == 1


@pytest.mark.slow
def test_of_two_that_register_at_once_one_is_first(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """201 says that nobody had it before."""
    serve = serve_factory(repos=[], refresh=SETTLED).start()
    layout = Layout(serve.state)
    body = json.dumps({"url": upstream.url(WIDGETS), "wait": False}).encode()
    with held(serve.state):
        wires = [Wire(layout.control_socket).say(request("POST", "/v1/repos", body)) for _ in range(5)]
        call(layout, "GET", "/v1/repos")
    assert sorted(wire.response().status for wire in wires) == [200, 200, 200, 200, 201]
    for wire in wires:
        wire.close()


@pytest.mark.slow
def test_a_name_that_is_taken_is_a_conflict(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Also once its mirror is on disk, which is another repository's then, and nobody's leftover."""
    upstream.add("acme/other", upstream.path(WIDGETS))
    serve = serve_factory(repos=[], refresh=SETTLED).start()
    layout = Layout(serve.state)
    call(layout, "POST", "/v1/repos", {"url": upstream.url(WIDGETS)})
    with pytest.raises(Problem) as caught:
        call(layout, "POST", "/v1/repos", {"url": upstream.url("acme/other"), "name": WIDGETS})
    assert caught.value.kind == CONFLICT and str(serve.state) not in caught.value.message
    call(layout, "DELETE", f"/v1/repos/{WIDGETS}")
    with pytest.raises(Problem) as caught:
        call(layout, "POST", "/v1/repos", {"url": upstream.url("acme/other"), "name": WIDGETS})
    assert caught.value.kind == CONFLICT and "still the mirror of" in caught.value.message


@pytest.mark.slow
def test_a_change_of_the_registry_is_finished_without_its_client(
    serve_factory: ServeFactory, upstream: HttpUpstream
) -> None:
    """It waits for the database when its client hangs up. `serve` then follows what is in the database."""
    upstream.add("acme/other", upstream.path(WIDGETS))
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    layout = Layout(serve.state)
    with held(serve.state):
        body = json.dumps({"url": upstream.url("acme/other"), "wait": False}).encode()
        wire = Wire(layout.control_socket).say(request("POST", "/v1/repos", body))
        # It is being answered as soon as a request that came later is.
        assert len(call(layout, "GET", "/v1/repos")["items"]) == 1
        before = len(serve.log())
        wire.close()
        wait_until(lambda: "ended early" in serve.log()[before:], message="the client is missed")
        assert len(call(layout, "GET", "/v1/repos")["items"]) == 1
    wait_until(lambda: len(call(layout, "GET", "/v1/repos")["items"]) == 2, message="it is registered and followed")
    serve.wait_for_repo("acme/other")
    assert "Traceback" not in serve.log()
