"""Lag is one number, wherever it is asked for."""

from __future__ import annotations

import json
import time

from tests.conftest import WIDGETS
from tests.observability.conftest import Hooked, repo_of
from tests.serving.fetch.conftest import metric
from tests.serving.fetch.wire import http_ask
from tests.support.gitutil import wait_until

ROUNDING = 0.01
KEEPS_WORKSPACES = True


def test_everybody_is_told_the_same_lag(hooked: Hooked) -> None:
    """`status`, /freshness, /metrics and a snapshot's header agree, read one after the other. It grows with time."""
    base = f"{hooked.serve.http_url}/{WIDGETS}"
    wait_until(lambda: http_ask(f"{base}/workspace.tar", "HEAD").status == 200, message="there is a snapshot")
    hooked.settle()
    wait_until(lambda: repo_of(hooked.serve)["lag"] > 0.5, message="it lags a little")
    start = time.monotonic()
    lags = [
        repo_of(hooked.serve)["lag"],
        json.loads(http_ask(f"{base}/freshness").body)["lag"],
        metric(hooked.serve, "gitmirror_lag_seconds", repo=WIDGETS),
        float(http_ask(f"{base}/workspace.tar", "HEAD").headers["x-gitmirror-lag"]),
    ]
    assert lags == sorted(lags) and lags[0] > 0.5
    assert lags[-1] - lags[0] <= time.monotonic() - start + ROUNDING
    start = time.monotonic()
    hooked.settle()
    assert repo_of(hooked.serve)["lag"] <= time.monotonic() - start + ROUNDING
