"""The documents of `status --json` and `repos --json`, with and without a running `serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance import __version__
from appliance.core.config.settings import Config
from appliance.core.git.failures import Kind, hint_of
from appliance.core.health import followed_branch, lag_of, state_of
from appliance.core.models import Health, Repo
from appliance.core.units import rfc3339


def repo_documents(
    repos: Sequence[Repo], healths: Mapping[int, Health], config: Config, now: float
) -> list[dict[str, Any]]:
    """The repositories as `[{name, url, branch, source, state, interval, enabled}]`."""
    return [
        {
            "name": repo.name,
            "url": repo.url,
            "branch": followed_branch(repo, healths.get(repo.id, Health())),
            "source": repo.source,
            "state": state_of(repo, healths.get(repo.id, Health()), now, config.refresh.stale_after),
            "interval": repo.interval or config.refresh.interval,
            "enabled": repo.enabled,
        }
        for repo in repos
    ]


def status_document(
    repos: Sequence[Repo],
    healths: Mapping[int, Health],
    config: Config,
    now: float,
    *,
    audit_head: str | None,
    live: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole status. `live` is what only a running `serve` knows; without it, `serving` is false."""
    document: dict[str, Any] = {
        "serving": False,
        "version": __version__,
        "pid": None,
        "git": None,
        "http": None,
        "admin": None,
        "listeners": {"git": [], "http": [], "admin": []},
        "clients": 0,
        "audit_head": audit_head,
        "pushes": None,
        "backup": None,
        "fleet": None,
        "warnings": [],
    }
    document["cache"] = {"hits": 0, "misses": 0, "joined": 0, "bytes": 0, "budget": config.cache.budget}
    document |= live or {}
    document["repos"] = [
        _repo_status(repo, healths.get(repo.id, Health()), now, config.refresh.stale_after) for repo in repos
    ]
    return document


def _repo_status(repo: Repo, health: Health, now: float, stale_after: float) -> dict[str, Any]:
    lag = lag_of(health, now)
    return {
        "name": repo.name,
        "url": repo.url,
        "branch": followed_branch(repo, health),
        "source": repo.source,
        "state": state_of(repo, health, now, stale_after),
        "tip": health.tip,
        "lag": None if lag is None else round(lag, 3),
        "verified_at": None if health.verified_at is None else rfc3339(health.verified_at),
        "last_error": health.last_error,
        "error": health.error_kind,
        "hint": hint_of(Kind.MIRROR if health.damage else health.error_kind),
        "retry_at": None if health.retry_at is None else rfc3339(health.retry_at),
        "failures": health.failures,
        "refs": health.refs,
        "size": health.size,
        "sessions": health.sessions,
        "damage": health.damage,
        "inspected_at": None if health.inspected_at is None else rfc3339(health.inspected_at),
        "verified_whole_at": None if health.verified_whole_at is None else rfc3339(health.verified_whole_at),
        "lacks": [],
    }
