"""Another process holds the database: commands that need it wait, and nobody waits for them."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED
from tests.support.gitutil import wait_until
from tests.support.upstream import HttpUpstream


@pytest.mark.slow
def test_a_command_that_waits_for_the_database_holds_up_nobody(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Guests are served, refreshes run and `status` answers. Once the database is free, the command completes."""
    upstream.add("acme/other", upstream.path(WIDGETS))
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    layout, added = Layout(serve.state), list[str]()

    def add() -> None:
        added.append(call(layout, "POST", "/v1/repos", {"url": upstream.url("acme/other"), "wait": False})["name"])

    other = sqlite3.connect(serve.state / "gitmirror.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    adding = threading.Thread(target=add, daemon=True)
    try:
        adding.start()
        for number in range(3):
            serve.clone(tmp_path / f"guest-{number}", WIDGETS, "--depth=1", http=number % 2 == 1)
        assert [repo["name"] for repo in call(layout, "GET", "/v1/repos", timeout=60)["items"]] == [WIDGETS]
        asked = upstream.count(WIDGETS)
        refreshing = threading.Thread(
            target=lambda: call(layout, "POST", "/v1/refresh", {"repos": [WIDGETS]}), daemon=True
        )
        refreshing.start()
        wait_until(lambda: upstream.count(WIDGETS) > asked, message="a refresh is begun")
        assert adding.is_alive() and not added
    finally:
        other.rollback()
        other.close()
    adding.join(60)
    refreshing.join(60)
    assert added == ["acme/other"] and not refreshing.is_alive()
    serve.wait_for_repo("acme/other")
