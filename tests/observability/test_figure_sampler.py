"""What `serve` counts for the plots: it survives a restart, and a database that fails stops nothing."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from appliance.core.api.client import call
from appliance.core.events.facts import FetchEnded, RefreshEnded
from appliance.core.layout import Layout
from appliance.core.models import Health, Hydration, RefreshOutcome, Repo
from appliance.core.observability.figures import FigureSampler
from appliance.core.store.database import Database
from appliance.core.store.figures import SPANS, FigureSeries, FigureStore
from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import wait_until
from tests.support.pkt import PushConnection
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream

KEEPS_WORKSPACES = True
NOW = 1769860800.0
REPO = Repo(1, WIDGETS, "https://example.com/acme/widgets", None, "cli", None, True, NOW)
FETCH = FetchEnded(repo=REPO, fetch=Hydration(WIDGETS, "1" * 40, 1, "full", "hit", 100, 0.1, 0.5, "c", "git"))
FAILED = RefreshEnded(repo=REPO, outcome=RefreshOutcome(WIDGETS, NOW, 1.0, (), "gone"), health=Health(), learnt={})


def test_slots_wait_while_the_database_is_lost_and_are_stored_once(tmp_path: Path) -> None:
    clock = [NOW]
    path, aside = tmp_path / "db", tmp_path / "aside"
    database = Database(path)
    store = FigureStore(database, lambda: clock[0])

    async def count() -> None:
        sampler = FigureSampler(store, lambda: clock[0])
        sampler.hydrated(FETCH)
        path.rename(aside)
        await sampler.write()
        clock[0] += 10
        sampler.hydrated(FETCH)
        sampler.refreshed(FAILED)
        await sampler.write()
        aside.rename(path)
        await sampler.write()
        await sampler.write()

    asyncio.run(count())
    series = store.read(SPANS["10m"], NOW + 30)
    total = series.total()
    assert (total.hydrations, total.refreshes, total.failures, total.bytes) == (2, 1, 1, 200)
    assert [slot.hydrations for slot in series.slots if slot] == [1, 1]


@pytest.mark.slow
def test_every_road_is_counted_and_survives_a_restart(serve: Serve, tmp_path: Path) -> None:
    def stored() -> FigureSeries:
        database = Database(Layout(serve.state).database, create=False)
        try:
            return FigureStore(database, time.time).read(SPANS["10m"], time.time() + 20)
        finally:
            database.close()

    serve.clone(tmp_path / "one", WIDGETS)
    serve.clone(tmp_path / "two", WIDGETS, http=True)
    with urlopen(f"{serve.http_url}/{WIDGETS}/workspace.tar", timeout=60) as answer:
        size = len(answer.read())
    serve.restart()
    serve.wait_for_repo(WIDGETS)
    serve.clone(tmp_path / "three", WIDGETS)
    document = call(Layout(serve.state), "GET", "/v1/figures?span=10m")
    assert (document["span"], document["step"], len(document["slots"])) == ("10m", 10, 60)
    assert serve.terminate() == 0
    total = stored().total()
    assert (total.hydrations, total.times.total) == (4, 4)
    assert total.warm + total.missed == 4 and total.bytes > size and total.refreshes >= 1


@pytest.mark.slow
def test_a_wait_for_a_slot_is_part_of_the_time(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Of a tar that is asked for while another guest has the only slot."""
    limits: dict[str, Value] = {"max_clients": 1}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1h"}, serve=limits).start()
    serve.wait_for_repo(WIDGETS)
    layout, url = Layout(serve.state), f"{serve.http_url}/{WIDGETS}/workspace.tar"

    def fetch() -> bytes:
        with urlopen(url, timeout=60) as answer:
            return bytes(answer.read())

    fetch()
    with ThreadPoolExecutor(1) as guests:
        with PushConnection(*serve.git_address, f"/{WIDGETS}"):
            waiting = guests.submit(fetch)
            there = lambda: call(layout, "GET", "/v1/pulse")["connections"]["http"] == 1  # noqa: E731
            wait_until(there, message="the guest is there")
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > 1.0, message="it has waited")
            assert not waiting.done()
        assert waiting.result(timeout=60)
    wait_until(lambda: len(call(layout, "GET", "/v1/activity")["items"]) == 2, message="both are recorded")
    waited = call(layout, "GET", "/v1/activity")["items"][0]
    assert waited["first_byte"] > 0.9 and waited["seconds"] >= waited["first_byte"]
