"""Pushes that are off are reported before anybody pushes: by `status`, metrics, an alert and an event."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.core.observability.push_watch import PushWatch
from tests.conftest import WIDGETS, ServeFactory
from tests.observability.conftest import status_of
from tests.observability.outlets import documents, script
from tests.serving.fetch.conftest import metric
from tests.serving.fetch.wire import http_ask
from tests.support.gitutil import wait_until
from tests.support.upstream import HttpUpstream


@pytest.mark.slow
def test_a_hook_that_lost_its_mode_is_told_without_a_push(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """One alert when they go off, and one when they are on again. A restart causes no further one."""
    told, heard = tmp_path / "told", tmp_path / "heard"
    serve = serve_factory(
        repos=[upstream.url(WIDGETS)],
        refresh={"interval": "1s"},
        alerts={"command": script(tmp_path / "tell", f"cat >>{told}", f'echo "$GITMIRROR_EVENT" >>{told}.env')},
        events={"command": script(tmp_path / "hear", f"exec cat >>{heard}")},
    ).start()
    serve.wait_for_repo(WIDGETS)
    assert status_of(serve)["pushes"] == {"accepted": 0, "rejected": 0, "off": None, "mend": None}
    assert serve.cli("status").returncode == 0
    assert metric(serve, "gitmirror_pushes_enabled") == 1
    assert http_ask(f"{serve.admin_url}/readyz").body == b"ready\n"

    (serve.state / "run" / "hooks" / "pre-receive").chmod(0o640)
    wait_until(lambda: documents(told), timeout=60, message="the alert")
    [alert] = documents(told)
    assert (alert["event"], alert["repo"], alert["state"]) == ("pushes-off", None, "off"), alert
    assert "pre-receive" in alert["words"] and "restart" in alert["hint"]
    assert metric(serve, "gitmirror_pushes_enabled") == 0
    ready = http_ask(f"{serve.admin_url}/readyz")
    assert ready.status == 200 and b"pushes are off: the hook pre-receive" in ready.body
    done = serve.cli("status", check=False)
    assert done.returncode == 3
    assert "warning: pushes are off: the hook pre-receive" in done.stdout
    assert "systemctl restart gitmirror" in done.stdout
    document = serve.cli_json("status", codes=(3,))
    assert "pre-receive" in document["pushes"]["off"] and "restart" in document["pushes"]["mend"]
    assert any("pushes are off" in each for each in document["warnings"])
    doctor = serve.cli("doctor", check=False)
    assert doctor.returncode == 3 and "systemctl restart gitmirror" in doctor.stdout

    serve.restart()
    wait_until(lambda: len(documents(told)) == 2, timeout=60, message="that they are on")
    alert = documents(told)[1]
    assert (alert["event"], alert["state"], alert["error"]) == ("pushes-on", "on", None)
    assert serve.cli("status").returncode == 0
    wait_until(lambda: heard.exists() and "pushes-off" in heard.read_text(), message="the event")
    env = tmp_path / "told.env"
    wait_until(lambda: env.read_text().split() == ["pushes-off", "pushes-on"], message="its environment")
    serve.restart()
    serve.wait_for_repo(WIDGETS)
    assert len(documents(told)) == 2


class Anything:
    """A guard, a desk and alerts that have nothing to say."""

    def check(self) -> None:
        """Nothing is wrong."""

    def consider_pushes(self, are_off: bool, document: dict[str, Any]) -> None:
        """Nobody is to be told."""


class HeldLog(Anything):
    """An audit log whose head can be read once, and then only when it is `free`."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.asked = threading.Event()
        self._reads = 0

    def head(self) -> str:
        """The same always."""
        self._reads += 1
        if self._reads > 1:
            self.asked.set()
            self.free.wait(10)
        return "head"


def test_a_look_that_waits_for_the_database_hides_nothing() -> None:
    """While the loop's own look waits, `status` still has the head that was read last."""
    log = HeldLog()
    watch = PushWatch(*cast(Any, (Anything(), Anything(), log, lambda event: None, Anything(), str)))

    async def script() -> None:
        assert await watch.look() is None and watch.audit_head == "head"
        waiting = asyncio.create_task(watch.look())
        await asyncio.to_thread(log.asked.wait, 10)
        assert watch.audit_head == "head"
        log.free.set()
        await waiting

    asyncio.run(script())
