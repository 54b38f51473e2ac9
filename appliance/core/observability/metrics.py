"""The page `/metrics`, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.core.events.facts import FetchEnded, MirrorHealed, PushRuled, RefreshEnded
from appliance.core.health import lag_of, state_of
from appliance.core.models import Health, Repo

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


ReadGauges = Callable[[], Iterable[tuple[str, str, float]]]
"""Reads some gauges: the name, the help text and the value of each."""


ReadByKind = Callable[[], Iterable[tuple[str, str, str, Mapping[str, float]]]]
"""Reads some values by kind: "gauge" or "counter", the name, the help text and the values."""


class Metrics:
    """Counts events. The lag and state of `repos` are computed from their `health` whenever the page is requested."""

    def __init__(
        self, repos: Callable[[], Iterable[Repo]], health: Callable[[int], Health], stale_after: Callable[[], float]
    ) -> None:
        # A `_created` series for each counter would double the page, and nobody uses it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        registry = self._registry
        by = ("repo", "way", "protocol")
        self._hydrations = Counter("gitmirror_hydrations", "Fetches answered.", by, registry=registry)
        self._broken = Counter(
            "gitmirror_hydrations_broken_off",
            "Fetches of which a guest got only a part: aborted by the guest, or failed here.",
            ("repo", "outcome"),
            registry=registry,
        )
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
            "Refreshes that failed, by the kind of error.",
            ("repo", "kind"),
            registry=registry,
        )
        self._webhooks = Counter(
            "gitmirror_webhooks", "Webhooks by the status of their response.", ("status",), registry=registry
        )
        self._pushes = Counter("gitmirror_pushes", "Pushes by verdict.", ("verdict",), registry=registry)
        self._heals = Counter(
            "gitmirror_heals", "Heals of damaged mirrors by their result.", ("repo", "result"), registry=registry
        )
        registry.register(_Repositories(repos, health, stale_after))

    def add_gauges(self, *read: ReadGauges) -> None:
        """Adds gauges that are read whenever the page is requested."""
        for reader in read:
            self._registry.register(_Gauges(reader))

    def add_by_kind(self, read: ReadByKind) -> None:
        """Adds gauges and counters with one value for each kind of a thing, read whenever the page is requested."""
        self._registry.register(_ByKind(read))

    def fetched(self, event: FetchEnded) -> None:
        """Counts a fetch that ended. Of one that the guest got only in part, no time says how fast it was."""
        fetch = event.fetch
        self._bytes.labels(fetch.repo, fetch.way, fetch.protocol).inc(fetch.bytes)
        if fetch.outcome != "complete":
            self._broken.labels(fetch.repo, fetch.outcome).inc()
            return
        self._hydrations.labels(fetch.repo, fetch.way, fetch.protocol).inc()
        self._first.labels(fetch.way, fetch.protocol).observe(fetch.first_byte)
        self._full.labels(fetch.way, fetch.protocol).observe(fetch.seconds)

    def refreshed(self, event: RefreshEnded) -> None:
        """Counts a refresh that ended."""
        outcome = event.outcome
        self._refreshes.labels(outcome.repo, outcome.result).inc()
        if outcome.kind:
            self._failures.labels(outcome.repo, outcome.kind).inc()

    def healed(self, event: MirrorHealed) -> None:
        """Counts a heal by result: `whole` if no damage is left."""
        self._heals.labels(event.repo.name, "whole" if event.whole else "damaged").inc()

    def webhook(self, status: int) -> None:
        """Counts a webhook that was answered with `status`."""
        self._webhooks.labels(str(int(status))).inc()

    def ruled(self, event: PushRuled) -> None:
        """Counts a push that was accepted or refused."""
        self._pushes.labels("accepted" if event.decision.accepted else "rejected").inc()

    def render(self) -> str:
        """The whole page."""
        return generate_latest(self._registry).decode()


class _Gauges(Collector):
    def __init__(self, read: ReadGauges) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yields one metric family for each gauge."""
        for name, text, value in self._read():
            yield GaugeMetricFamily(f"gitmirror_{name}", text, value=value)


class _ByKind(Collector):
    def __init__(self, read: ReadByKind) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yields one metric family for each, with one sample for each kind."""
        for kind_of, name, text, values in self._read():
            make = GaugeMetricFamily if kind_of == "gauge" else CounterMetricFamily
            family = make(f"gitmirror_{name}", text, labels=["kind"])
            for kind, value in values.items():
                family.add_metric([kind], value)
            yield family


class _Repositories(Collector):
    """The lag, state, size and error of each repository when the page is requested."""

    def __init__(
        self, repos: Callable[[], Iterable[Repo]], health: Callable[[int], Health], stale_after: Callable[[], float]
    ) -> None:
        self._repos = repos
        self._health = health
        self._stale_after = stale_after

    def collect(self) -> Iterator[Metric]:
        """Yields families with one sample for each repository. Without a lag or an error, that sample is left out."""
        now = time.time()
        lag = GaugeMetricFamily(
            "gitmirror_lag_seconds", "Seconds since last verified equal to the upstream.", labels=["repo"]
        )
        state = GaugeMetricFamily(
            "gitmirror_repo_state", "1 for the state that the repository is in.", labels=["repo", "state"]
        )
        size = GaugeMetricFamily("gitmirror_mirror_bytes", "Bytes of the mirror on disk.", labels=["repo"])
        error = GaugeMetricFamily(
            "gitmirror_repo_error", "1 for the kind of error of the last refresh.", labels=["repo", "kind"]
        )
        whole = GaugeMetricFamily(
            "gitmirror_verified_whole_timestamp_seconds",
            "When the content of the mirror was last inspected and found undamaged.",
            labels=["repo"],
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
            if health.verified_whole_at is not None:
                whole.add_metric([repo.name], health.verified_whole_at)
        yield from (lag, state, size, error, whole)
