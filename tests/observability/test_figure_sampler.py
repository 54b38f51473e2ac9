"""What `serve` counts for the plots: it survives a restart, and a database that fails stops nothing."""

from __future__ import annotations

import asyncio
import time
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
from tests.conftest import WIDGETS
from tests.support.serve import Serve

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
