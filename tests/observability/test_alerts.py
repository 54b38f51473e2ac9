"""Alerts: one when a repository becomes stale or failing, one when it recovers, whatever happens in between."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.config.settings import AlertsConfig
from appliance.core.models import UNHEALTHY, Health, Repo, State
from appliance.core.observability import alerts as alerts_module
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.transitions import (
    DAMAGED,
    RECOVERED,
    Condition,
    LastAlert,
    alert_between,
    events_between,
)
from appliance.core.process.children import Children
from appliance.core.store.alerts import AlertStore
from appliance.core.store.database import Database
from tests.conftest import WIDGETS, ServeFactory
from tests.observability.conftest import repo_of, status_of
from tests.observability.outlets import catching, documents, script
from tests.support.gitutil import wait_until
from tests.support.serve import Value
from tests.support.upstream import HttpUpstream

QUICK: dict[str, Value] = {"interval": "1s", "timeout": "20s", "stale_after": "1h"}
KINDS = st.sampled_from([None, "dns", "tls"])
CONDITIONS = st.builds(
    lambda state, late: Condition(state, late or state is State.STALE), st.sampled_from(State), st.booleans()
)


@given(st.lists(st.tuples(st.sampled_from(State), KINDS), max_size=30))
def test_alerts_come_in_pairs(course: list[tuple[State, str | None]]) -> None:
    """Whatever happens: one alert, or two of which the second gives the reason, and then one for the recovery.

    Damage that comes on top is told as well.
    """
    told, said = None, []
    for state, kind in course:
        event = alert_between(told, state, kind)
        if event is not None:
            said.append((event, kind))
            told = None if event == RECOVERED else LastAlert(state, kind, 0.0)
    for (event, kind), (following, next_kind) in itertools.pairwise(said):
        is_pair = (event == RECOVERED) is not (following == RECOVERED)
        assert is_pair or following == DAMAGED != event or (kind is None and next_kind is not None)
    assert not said or said[0][0] != RECOVERED
    if course and course[-1][0] in UNHEALTHY:
        assert told is not None


@given(st.lists(CONDITIONS, max_size=30))
def test_events_tell_each_change_once(course: list[Condition]) -> None:
    """`recovered` comes only after an alert, and nothing is repeated while nothing changes."""
    before, unwell = None, False
    for condition in course:
        events = events_between(before, condition)
        if RECOVERED in events:
            assert unwell
        unwell = (unwell or bool(events)) and RECOVERED not in events
        assert not events_between(condition, condition)
        before = condition


@pytest.mark.slow
def test_once_and_once_over_restarts(serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path) -> None:
    """`serve` is stopped and killed during the failure, which ends while it is down: one alert and one recovery."""
    told, seen = tmp_path / "told", tmp_path / "seen"
    variables = "$GITMIRROR_EVENT $GITMIRROR_REPO $GITMIRROR_REPO_STATE $GITMIRROR_ERROR"
    command = script(tmp_path / "tell", f"cat >>{told}", f'echo "{variables}" >>{seen}')
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=QUICK, alerts={"command": command}).start()
    serve.wait_for_repo(WIDGETS)
    upstream.everywhere.fail = True
    wait_until(lambda: documents(told), message="it is told")
    for end in (serve.terminate, serve.kill):
        wait_until(lambda: not list((serve.state / "run" / "children").iterdir()), message="it was told to its end")
        end()
        upstream.forget()
        serve.start()
        wait_until(lambda: upstream.count() >= 3, message="it fails again")
    serve.terminate()
    upstream.everywhere.fail = False
    serve.start()
    wait_until(lambda: len(documents(told)) >= 2, message="the recovery is told")
    wait_until(lambda: "sent the alert about acme/widgets: recovered" in serve.log(), message="and that is remembered")
    serve.restart()
    wait_until(lambda: upstream.count() >= 8, message="it goes on")
    failing, recovered = documents(told)
    assert (failing["event"], failing["state"], failing["error"]) == ("failing", "failing", "server-error")
    assert "internal error" in failing["words"] and failing["hint"] and failing["lag"] > 0
    assert failing["repo"] == WIDGETS and failing["failures"] >= 3 and failing["url"] == upstream.url(WIDGETS)
    assert (recovered["event"], recovered["state"], recovered["error"]) == ("recovered", "fresh", None)
    assert failing["since"] == recovered["since"] <= recovered["at"]
    assert seen.read_text().splitlines() == [f"failing {WIDGETS} failing server-error", f"recovered {WIDGETS} fresh "]


@pytest.mark.slow
def test_stale_by_nothing_but_time_is_told_in_seconds(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """When the upstream hangs, the URL first gets `stale` without an error, then `failing` with the kind of error."""
    with catching() as catcher:
        refresh: dict[str, Value] = {"interval": "1s", "timeout": "8s", "stale_after": "3s"}
        serve = serve_factory(
            repos=[upstream.url(WIDGETS)], refresh=refresh, alerts={"url": catcher.url}, events={"url": catcher.url}
        ).start()
        serve.wait_for_repo(WIDGETS)
        upstream.everywhere.hang = True

        def alerts() -> list[dict[str, object]]:
            return [each for each in catcher.bodies if "hint" in each and each["repo"] == WIDGETS]

        wait_until(lambda: alerts(), timeout=60, message="it is told")
        first = alerts()[0]
        assert (first["event"], first["error"]) == ("stale", None) and "has not answered for" in str(first["words"])
        assert 3 < float(str(first["lag"])) < 60
        wait_until(lambda: any(each["error"] == "timeout" for each in alerts()), timeout=60, message="and why")
        upstream.reset()
        wait_until(lambda: any(each["event"] == "recovered" for each in alerts()), timeout=60, message="it is well")


@pytest.mark.slow
def test_an_alert_that_is_not_taken_is_tried_again_and_stops_nothing(
    serve_factory: ServeFactory, upstream: HttpUpstream, generated_bare: Path
) -> None:
    """The URL answers 500, then redirects. `status` says so, refreshes go on, and the alert arrives once accepted."""
    upstream.add("acme/other", generated_bare)
    with catching() as catcher:
        catcher.status = 500
        repos = [upstream.url(WIDGETS), upstream.url("acme/other")]
        serve = serve_factory(repos=repos, refresh=QUICK, alerts={"url": catcher.url}).start()
        for name in (WIDGETS, "acme/other"):
            serve.wait_for_repo(name)
        upstream.on(WIDGETS).fail = True
        wait_until(lambda: catcher.refused, timeout=60, message="it is tried")
        [warning] = status_of(serve)["warnings"]
        assert f"the alert about {WIDGETS} could not be delivered" in warning and "/hook" not in warning
        catcher.status = 302
        upstream.forget()
        wait_until(lambda: upstream.count("acme/other") >= 2, message="others are refreshed")
        refused = catcher.refused
        wait_until(lambda: catcher.refused > refused or catcher.bodies, timeout=60, message="it is tried again")
        catcher.status = 200
        wait_until(lambda: catcher.bodies, timeout=60, message="it is told")
        assert status_of(serve)["warnings"] == []
        assert [each["repo"] for each in catcher.bodies] == [WIDGETS]


@pytest.mark.slow
def test_a_disabled_repository_is_nobodys_alert(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Neither failure nor recovery is reported. Once enabled again, the repository gets a new alert."""
    told = tmp_path / "told"
    alerts = {"command": f"sh -c 'cat >>{told}'"}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=QUICK, alerts=alerts).start()
    serve.wait_for_repo(WIDGETS)
    upstream.everywhere.fail = True
    wait_until(lambda: len(documents(told)) == 1, message="it is told")
    serve.cli("disable", WIDGETS)
    upstream.everywhere.fail = False
    wait_until(lambda: repo_of(serve)["state"] == "disabled", message="it is disabled")
    serve.cli("enable", WIDGETS)
    serve.wait_for_repo(WIDGETS)
    upstream.everywhere.fail = True
    wait_until(lambda: len(documents(told)) == 2, message="it is told again")
    assert [each["event"] for each in documents(told)] == ["failing", "failing"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["/nowhere/to/be/found"], "false", "sh -c 'kill -9 $$'"])
def test_a_command_that_fails_is_logged(
    serve_factory: ServeFactory, upstream: HttpUpstream, command: str | list[str]
) -> None:
    """It is missing, ends with 1, or is killed; serve says so and goes on."""
    serve = serve_factory(repos=[upstream.url("acme/nothing")], refresh=QUICK, alerts={"command": command}).start()
    wait_until(lambda: "could not be delivered" in serve.log(), message="it is logged")
    assert "Traceback" not in serve.log()
    assert serve.terminate() == 0


def test_what_flaps_is_told_of_so_often_and_then_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit nothing is sent. When the hour is over, the last alert is compared with the current state."""
    sent: list[str] = []

    async def post(url: str, document: bytes) -> None:
        sent.append(json.loads(document)["event"])

    monkeypatch.setattr(alerts_module, "post", post)
    database = Database(tmp_path / "db")
    with database.writing() as connection:
        connection.execute("INSERT INTO repos (id, name, url, source, created_at) VALUES (1, 'a/b', 'x', 'cli', 0)")
    store = AlertStore(database)
    repo = Repo(1, "a/b", "https://example.com/a/b", None, "cli", None, True, 0.0)
    well, unwell = Health(cloned=True, verified_at=0.0), Health(cloned=True, failures=9, error_kind="dns")

    async def flap() -> None:
        alerts = Alerts(
            store, cast(Children, None), lambda: AlertsConfig(url="https://pager.example"), tmp_path / "told"
        )
        await alerts.load()
        task = asyncio.create_task(alerts.run())

        async def tell(state: State, expected: int) -> None:
            end = time.monotonic() + 10
            while time.monotonic() < end:
                alerts.consider(repo, well if state is State.FRESH else unwell, state, 0.0, 0.0)
                await asyncio.sleep(0.002)
                if len(sent) == expected and bool(store.all()) is (sent[-1] == "failing"):
                    return

        for number in range(most := alerts_module.MOST_AN_HOUR):
            await tell([State.FAILING, State.FRESH][number % 2], number + 1)
        for state in (State.FAILING, State.FRESH, State.FAILING):
            await tell(state, most)
        assert len(sent) == most
        monkeypatch.setattr(alerts_module, "HOUR", 0.0)
        await tell(State.FAILING, most + 1)
        task.cancel()

    asyncio.run(flap())
    assert sent == ["failing", "recovered"] * (alerts_module.MOST_AN_HOUR // 2) + ["failing"]
    assert store.all() == {1: {"state": "failing", "kind": "dns", "since": 0.0}}
