"""Sends one alert when a repository becomes stale, failing or damaged, and one when it recovers.

Pushes that are off get alerts in the same way. They concern all repositories at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.config.settings import AlertsConfig
from appliance.core.events.facts import PUSHES_OFF
from appliance.core.models import Health, Repo, State
from appliance.core.observability.delivery import OutletError, post, run_command
from appliance.core.observability.transitions import RECOVERED, LastAlert, alert_between, condition_changed, error_of
from appliance.core.process.children import Children
from appliance.core.process.endurance import Endurance
from appliance.core.store.alerts import AlertStore
from appliance.core.store.database import StoreError
from appliance.core.text import escape

log = logging.getLogger(__name__)

TRIES = 4
RETRY_FIRST = 2.0
"""Seconds until an alert that failed is tried again. The delay is five times as long after each further failure."""
MOST_AN_HOUR = 12
"""The most alerts about one repository in an hour. One that flaps gets its next alert when the hour is over."""
HOUR = 3600.0
PUSHES = 0
"""The key of alerts about pushes, in place of a repository's id. Those start at 1."""

Key = int | str
"""A repository's id, or PUSHES, or the repository's name in an alert about what a heal could not save."""


@dataclass
class _Pending:
    key: Key
    subject: str
    delivered: LastAlert | None
    """The last alert to store once this one is delivered, or None to delete the row."""
    document: dict[str, Any]
    tries: int = 0
    not_before: float = 0.0
    command_left: bool = True
    url_left: bool = True


class Alerts:
    """Queues and delivers alerts.

    The current condition is compared with the last alert, so no alert is lost or repeated, and they do not pile up.
    `pushes_told` is a file that exists after an alert that pushes are off, until the alert that they are on. It is not
    a row, because a broken database may be why pushes are off.
    """

    def __init__(
        self, store: AlertStore, children: Children, config: Callable[[], AlertsConfig], pushes_told: Path
    ) -> None:
        self._store = store
        self._children = children
        self._config = config
        self._last_alerts: dict[int, LastAlert] = {}
        self._loaded = False
        self._pending: dict[Key, _Pending] = {}
        self._sent: dict[Key, deque[float]] = {}
        self._settled: list[int] = []
        self._pushes_told = pushes_told
        self._reported_off = os.path.exists(pushes_told)
        self._wake = asyncio.Event()
        self.trouble: str | None = None
        """Why the last delivery failed, or None if it succeeded."""

    async def load(self) -> None:
        """Loads the alerts that were delivered before this start."""
        try:
            stored = await asyncio.to_thread(self._store.all)
        except StoreError as error:
            log.error("the stored alerts cannot be read, so some may be sent again: %s", error.message)
            stored = {}
        for repo_id, row in stored.items():
            self._last_alerts[repo_id] = LastAlert(State(row["state"]), row["kind"], row["since"])
        self._loaded = True

    def keep(self, repo_ids: Collection[int]) -> None:
        """Drops alerts about all other repositories, because those were disabled or removed."""
        known = {key for key in (*self._last_alerts, *self._pending, *self._sent) if isinstance(key, int)} - {PUSHES}
        for gone in [repo_id for repo_id in known if repo_id not in repo_ids]:
            self._pending.pop(gone, None)
            self._sent.pop(gone, None)
            if self._last_alerts.pop(gone, None) is not None:
                self._settled.append(gone)
                self._wake.set()

    def consider(
        self, repo: Repo, health: Health, state: State, now: float, since: float, asking_for: float = 0.0
    ) -> None:
        """Queues an alert about a repository that is now in `state` if one is due, and drops one that no longer is."""
        config = self._config()
        if not self._loaded or not (config.command or config.url):
            return
        last = self._last_alerts.get(repo.id)
        event = alert_between(last, state, error_of(health))
        if event is None:
            self._pending.pop(repo.id, None)
            return
        waiting = self._pending.get(repo.id)
        if waiting is None or waiting.document["event"] != event:
            if self._flaps(repo.id):
                return
            waiting = self._pending[repo.id] = _Pending(repo.id, repo.name, None, {})
        if event == RECOVERED and last is not None:
            since = last.since
        waiting.delivered = None if event == RECOVERED else LastAlert(state, error_of(health), since)
        waiting.document = condition_changed(event, repo, health, state, now, since, asking_for).document()
        self._wake.set()

    def consider_pushes(self, are_off: bool, document: dict[str, Any]) -> None:
        """Queues `document` if pushes went off or on since the last alert, and drops a queued one that is outdated."""
        config = self._config()
        if not (config.command or config.url):
            return
        if are_off == self._reported_off:
            self._pending.pop(PUSHES, None)
        elif PUSHES not in self._pending and not self._flaps(PUSHES):
            self._pending[PUSHES] = _Pending(PUSHES, "pushes", None, document)
            self._wake.set()

    def consider_losses(self, repo: Repo, document: dict[str, Any]) -> None:
        """Queues `document`, which names what a heal could not save. It replaces one that was not delivered yet."""
        config = self._config()
        if (config.command or config.url) and not self._flaps(repo.name):
            self._pending[repo.name] = _Pending(repo.name, repo.name, None, document)
            self._wake.set()

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        endurance = Endurance(log, "delivery")
        while True:
            while self._settled:
                await self._remember(self._settled.pop(), None)
            now = time.monotonic()
            due = next((alert for alert in self._pending.values() if alert.not_before <= now), None)
            if due is not None:
                # Set the next try first, so that an unexpected error cannot cause tries without a pause.
                due.not_before = now + RETRY_FIRST
                with endurance.over(f"the alert about {due.subject}"):
                    await self._deliver(due)
                continue
            self._wake.clear()
            wait = min((alert.not_before - now for alert in self._pending.values()), default=HOUR)
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _flaps(self, key: Key) -> bool:
        sent = self._sent.setdefault(key, deque(maxlen=MOST_AN_HOUR))
        return len(sent) == MOST_AN_HOUR and time.monotonic() - sent[0] < HOUR

    async def _deliver(self, alert: _Pending) -> None:
        # Read both before waiting, because `consider` may change the alert during the delivery.
        document, delivered = alert.document, alert.delivered
        try:
            await self._hand_over(alert, document)
        except OutletError as error:
            alert.tries += 1
            self.trouble = f"the alert about {alert.subject} could not be delivered: {error.message}"
            log.error("%s (try %d of %d)", self.trouble, alert.tries, TRIES)
            if alert.tries < TRIES:
                alert.not_before = time.monotonic() + RETRY_FIRST * 5 ** (alert.tries - 1)
                return
        else:
            self.trouble = None
        self._sent.setdefault(alert.key, deque(maxlen=MOST_AN_HOUR)).append(time.monotonic())
        if self._pending.get(alert.key) is alert:
            del self._pending[alert.key]
        if alert.key == PUSHES:
            self._remember_pushes(document["event"] == PUSHES_OFF)
        elif isinstance(alert.key, int):
            await self._remember(alert.key, delivered)
        if self.trouble is None:
            log.info("sent the alert about %s: %s", alert.subject, document["event"])

    async def _hand_over(self, alert: _Pending, document: dict[str, Any]) -> None:
        """Delivers to the command and to the URL if they are set and have not received the alert yet."""
        config = self._config()
        text = json.dumps(document).encode() + b"\n"
        if config.command and alert.command_left:
            env = {
                **os.environ,
                "GITMIRROR_EVENT": document["event"],
                "GITMIRROR_REPO": document["repo"] or "",
                "GITMIRROR_REPO_STATE": document["state"],
                "GITMIRROR_ERROR": escape(document["error"] or ""),
            }
            await run_command(self._children, config.command, text, env)
            alert.command_left = False
        if config.url and alert.url_left:
            await post(config.url, text)
            alert.url_left = False

    def _remember_pushes(self, are_off: bool) -> None:
        self._reported_off = are_off
        try:
            if are_off:
                self._pushes_told.touch()
            else:
                self._pushes_told.unlink(missing_ok=True)
        except OSError as error:
            log.error("the sent alert cannot be recorded, so a restart will send it again: %s", error)

    async def _remember(self, repo_id: int, delivered: LastAlert | None) -> None:
        try:
            if delivered is None:
                self._last_alerts.pop(repo_id, None)
                await asyncio.to_thread(self._store.settled, repo_id)
            else:
                self._last_alerts[repo_id] = delivered
                state, kind, since = str(delivered.state), delivered.kind, delivered.since
                await asyncio.to_thread(self._store.told, repo_id, state, kind, since)
        except StoreError as error:
            log.error("the sent alert cannot be recorded, so a restart will send it again: %s", error.message)
