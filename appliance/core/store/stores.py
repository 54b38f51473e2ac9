"""All stores of one state directory, over one database."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.store.activity import ActivityStore
from appliance.core.store.alerts import AlertStore
from appliance.core.store.audit import AuditLog
from appliance.core.store.database import Database
from appliance.core.store.health import HealthStore
from appliance.core.store.registry import Registry
from appliance.core.store.sessions import SessionStore
from appliance.core.store.tokens import TokenStore
from appliance.core.store.trusted_time import TimeStore


@dataclass(frozen=True)
class Stores:
    """The database of one state directory and the stores that use it."""

    database: Database
    registry: Registry
    health: HealthStore
    audit: AuditLog
    activity: ActivityStore
    sessions: SessionStore
    tokens: TokenStore
    alerts: AlertStore
    time: TimeStore
