"""What `/metrics` tells, in Prometheus' text form."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.core.events.facts import FetchEnded, PushRuled, RefreshEnded
from appliance.core.health import lag_of, state_of
from appliance.core.models import Health, Repo

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


ReadGauges = Callable[[], Iterable[tuple[str, str, float]]]
"""Reads some gauges: the name of each, what it is, its value."""


class Metrics:
    """Counts events. What is told of `repos`, lag and states, is computed by their `health` when it is asked for."""

    def __init__(
        self, repos: Callable[[], Iterable[Repo]], health: Callable[[int], Health], stale_after: Callable[[], float]
    ) -> None:
        # A `_created` series beside each counter doubles the page and says nothing that is used.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        registry = self._registry
        by = ("repo", "way", "protocol")
        self._hydrations = Counter("gitmirror_hydrations", "Fetches answered.", by, registry=registry)
        self._bytes = Counter("gitmirror_hydration_bytes", "Bytes of fetches sent to guests.", by, registry=registry)
        self._first = Histogram(
            "gitmirror_hydration_first_byte_seconds",
            "Time until the first byte of a fetch was sent.",
            ("way", "protocol"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._full = Histogram(
            "gitmirror_hydration_seconds",
            "Time until a fetch was sent in full.",
            ("way", "protocol"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._refreshes = Counter(
            "gitmirror_refreshes", "Refreshes by their result.", ("repo", "result"), registry=registry
        )
        self._failures = Counter(
            "gitmirror_refresh_failures",
            "Refreshes that failed, by their error word.",
            ("repo", "kind"),
            registry=registry,
        )
        self._webhooks = Counter(
            "gitmirror_webhooks", "Webhooks by the status they were answered with.", ("status",), registry=registry
        )
        self._pushes = Counter("gitmirror_pushes", "Pushes by the guard's verdict.", ("verdict",), registry=registry)
        registry.register(_Repositories(repos, health, stale_after))

    def add_gauges(self, *read: ReadGauges) -> None:
        """Numbers that are read when they are asked for."""
        for each in read:
            self._registry.register(_Gauges(each))

    def fetched(self, event: FetchEnded) -> None:
        """A fetch was answered, or given up."""
        fetch = event.fetch
        self._hydrations.labels(fetch.repo, fetch.way, fetch.protocol).inc()
        self._bytes.labels(fetch.repo, fetch.way, fetch.protocol).inc(fetch.bytes)
        self._first.labels(fetch.way, fetch.protocol).observe(fetch.first_byte)
        self._full.labels(fetch.way, fetch.protocol).observe(fetch.seconds)

    def refreshed(self, event: RefreshEnded) -> None:
        """A refresh ended."""
        outcome = event.outcome
        self._refreshes.labels(outcome.repo, outcome.result).inc()
        if outcome.kind:
            self._failures.labels(outcome.repo, outcome.kind).inc()

    def webhook(self, status: int) -> None:
        """A webhook was answered."""
        self._webhooks.labels(str(int(status))).inc()

    def ruled(self, event: PushRuled) -> None:
        """A push was ruled on."""
        self._pushes.labels("accepted" if event.decision.accepted else "rejected").inc()

    def render(self) -> str:
        """The whole page."""
        return generate_latest(self._registry).decode()


class _Gauges(Collector):
    def __init__(self, read: ReadGauges) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One family each."""
        for name, text, value in self._read():
            yield GaugeMetricFamily(f"gitmirror_{name}", text, value=value)


class _Repositories(Collector):
    """Lag, state, size and error of each repository as of now."""

    def __init__(
        self, repos: Callable[[], Iterable[Repo]], health: Callable[[int], Health], stale_after: Callable[[], float]
    ) -> None:
        self._repos = repos
        self._health = health
        self._stale_after = stale_after

    def collect(self) -> Iterator[Metric]:
        """One sample a repository; lag and error are left out while there is none."""
        now = time.time()
        lag = GaugeMetricFamily("gitmirror_lag_seconds", "Since last verified equal to the upstream.", labels=["repo"])
        state = GaugeMetricFamily("gitmirror_repo_state", "1 for the state it is in.", labels=["repo", "state"])
        size = GaugeMetricFamily("gitmirror_mirror_bytes", "Bytes of the mirror on disk.", labels=["repo"])
        error = GaugeMetricFamily(
            "gitmirror_repo_error", "1 for the word of the error that its last refresh had.", labels=["repo", "kind"]
        )
        for repo in self._repos():
            health = self._health(repo.id)
            seconds = lag_of(health, now)
            if seconds is not None and repo.enabled:
                lag.add_metric([repo.name], seconds)
            state.add_metric([repo.name, state_of(repo, health, now, self._stale_after())], 1)
            size.add_metric([repo.name], health.size)
            if health.last_error and repo.enabled:
                error.add_metric([repo.name, health.error_kind or "other"], 1)
        yield from (lag, state, size, error)
