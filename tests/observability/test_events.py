"""`[events]`: events go out as JSON as they happen, and a slow receiver slows nobody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.observability.outlets import catching, documents, script
from tests.serving.conftest import SETTLED
from tests.support.gitutil import git, wait_until
from tests.support.processes import processes_of
from tests.support.upstream import HttpUpstream


@pytest.mark.slow
def test_a_command_and_a_url_get_every_event(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """A first clone, a hydration, a recording and a failure, as lines and as POSTs. Other events are not sent."""
    lines = tmp_path / "lines"
    with catching() as catcher:
        events = {"command": script(tmp_path / "take", f"exec cat >>{lines}"), "url": catcher.url}
        serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, events=events).start()
        tip = serve.wait_for_repo(WIDGETS)["tip"]
        clone = serve.clone(tmp_path / "guest", WIDGETS, "--depth=1")
        git("push", "--quiet", f"{serve.git_url}/{WIDGETS}", "HEAD:refs/agents/s-1", cwd=clone)
        with ThreadPoolExecutor(6) as guests:
            list(guests.map(lambda number: serve.clone(tmp_path / f"more-{number}", WIDGETS), range(6)))
        upstream.everywhere.fail = True
        serve.cli("add-repo", upstream.url("acme/broken"), check=False)

        def come(found: list[dict[str, Any]]) -> bool:
            return {"refs-moved", "hydrating", "hydrated", "recorded", "failing"} <= {each["event"] for each in found}

        wait_until(lambda: come(documents(lines)) and come(catcher.bodies), message="all events arrive")
        wait_until(lambda: documents(lines) == catcher.bodies, message="both have the same, in the same order")

        def hydrations() -> list[dict[str, Any]]:
            return [each for each in catcher.bodies if each["event"] == "hydrated"]

        hydrated = wait_until(lambda: found if len(found := hydrations()) >= 7 else None, message="all have ended")
        assert len(hydrated) == sum(each["event"] == "hydrating" for each in catcher.bodies) >= 7
        for found in (documents(lines), catcher.bodies):
            assert {each["event"] for each in found} == {"refs-moved", "hydrating", "hydrated", "recorded", "failing"}
            assert all(each["at"].endswith("Z") for each in found)
            first = next(each for each in found if each["event"] == "hydrating")
            assert (first["repo"], first["want"], first["client"]) == (WIDGETS, tip, "127.0.0.1")
            recorded = next(each for each in found if each["event"] == "recorded")
            assert (recorded["session"], recorded["new"]) == ("s-1", tip)
            failing = next(each for each in found if each["event"] == "failing")
            assert (failing["repo"], failing["error"]) == ("acme/broken", "server-error")
        assert serve.terminate() == 0
    assert processes_of(serve.state) == []


@pytest.mark.slow
def test_a_command_that_ends_is_run_again_and_one_that_does_not_read_slows_nobody(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """The first command ends after a line, and the next one reads nothing. Guests are served all the same."""
    lines, runs = tmp_path / "lines", tmp_path / "runs"
    take = ["echo run >>" + str(runs), f'[ "$(wc -l <{runs})" -gt 2 ] && exec sleep 1000', f"head -n 1 >>{lines}"]
    events = {"command": script(tmp_path / "take", *take)}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, events=events).start()
    serve.wait_for_repo(WIDGETS)

    def ran() -> int:
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    serve.clone(tmp_path / "one", WIDGETS, "--depth=1")
    wait_until(lambda: ran() == 2, message="it is run again")
    serve.clone(tmp_path / "two", WIDGETS, "--depth=1")
    wait_until(lambda: len(documents(lines)) == 2 and ran() == 3, message="the second run takes one too")
    for number in range(3):
        serve.clone(tmp_path / f"more-{number}", WIDGETS, "--depth=1")
    assert serve.terminate() == 0


@pytest.mark.slow
def test_what_is_configured_later_holds_from_then_on(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """A reload begins it, another one ends it with its process."""
    lines = tmp_path / "lines"
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    command = script(tmp_path / "take", f"exec cat >>{lines}")
    serve.configure([upstream.url(WIDGETS)], refresh=SETTLED, events={"command": command})
    serve.reload()
    wait_until(lambda: len(serve.processes()) == 2, message="the command runs")
    serve.configure([upstream.url(WIDGETS)], refresh=SETTLED)
    serve.reload()
    wait_until(lambda: len(serve.processes()) == 1, message="it is ended")
    serve.clone(tmp_path / "guest", WIDGETS, "--depth=1")
    assert documents(lines) == []
