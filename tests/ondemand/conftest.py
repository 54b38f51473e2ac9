"""Fixtures of repositories on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ServeFactory
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

Allowing = Callable[..., Serve]


@pytest.fixture
def allowing(serve_factory: ServeFactory, upstream: HttpUpstream) -> Allowing:
    """Starts a `serve` that mirrors nothing, and allows `acme/*` of the upstream."""

    def make(*, expire_after: str = "7d", wait: str = "20s", name: str = "state", **sections: Any) -> Serve:
        entry = {"url": f"{upstream.url('acme')}/*", "interval": "1h", "expire_after": expire_after}
        sections.setdefault("serve", {"wait_for_clone": wait})
        return serve_factory(name, allow=[entry], **sections).start()

    return make
