"""The operations of a running `serve` through its socket: what happens to them when their client leaves."""

from __future__ import annotations

import json
import sqlite3

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.api.wire import Wire, request
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED
from tests.support.gitutil import wait_until
from tests.support.upstream import HttpUpstream


def test_a_change_of_the_registry_is_finished_without_its_client(
    serve_factory: ServeFactory, upstream: HttpUpstream
) -> None:
    """It waits for the database when its client hangs up. `serve` then follows what is in the database."""
    upstream.add("acme/other", upstream.path(WIDGETS))
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    layout = Layout(serve.state)
    other = sqlite3.connect(serve.state / "gitmirror.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        body = json.dumps({"url": upstream.url("acme/other"), "wait": False}).encode()
        wire = Wire(layout.control_socket).say(request("POST", "/v1/repos", body))
        # It is being answered as soon as a request that came later is.
        assert len(call(layout, "GET", "/v1/repos")["items"]) == 1
        before = len(serve.log())
        wire.close()
        wait_until(lambda: "ended early" in serve.log()[before:], message="the client is missed")
        assert len(call(layout, "GET", "/v1/repos")["items"]) == 1
    finally:
        other.rollback()
        other.close()
    wait_until(lambda: len(call(layout, "GET", "/v1/repos")["items"]) == 2, message="it is registered and followed")
    serve.wait_for_repo("acme/other")
    assert "Traceback" not in serve.log()
