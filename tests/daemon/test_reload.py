"""A reload applies to every section but `[serve]`."""

from __future__ import annotations

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED
from tests.serving.fetch.conftest import cache_of, wait_warm
from tests.support.gitutil import wait_until
from tests.support.upstream import HttpUpstream


@pytest.mark.slow
def test_the_budget_of_the_cache_changes_at_once(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A smaller one evicts what does not fit any more, except the warmed responses of the current tip."""
    urls = [upstream.url(WIDGETS)]
    serve = serve_factory(repos=urls, refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    wait_warm(serve)
    serve.configure(urls, refresh=SETTLED, cache={"budget": "3MiB"})
    serve.reload()
    wait_until(lambda: cache_of(serve)["budget"] == 3 * 2**20, message="the new budget is in use")


@pytest.mark.slow
def test_what_a_workspace_has_changes_at_once(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Without a new commit: guests get another workspace soon after the reload, and need not ask twice."""
    urls = [upstream.url(WIDGETS)]
    serve = serve_factory(repos=urls, refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    place = serve.state / "workspaces" / WIDGETS
    wait_until(lambda: list(place.glob("*/full/*.tar")), message="the workspace is built")
    serve.configure(urls, refresh=SETTLED, workspace={"submodules": True, "lfs": "content"})
    serve.reload()
    wait_until(
        lambda: list(place.glob("*/full-lfs-modules/*.tar")), message="the workspace is built as the config says"
    )
