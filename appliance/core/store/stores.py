"""All stores over one database."""

from __future__ import annotations

import time
from dataclasses import dataclass

from appliance.core.store.activity import ActivityStore
from appliance.core.store.alerts import AlertStore
from appliance.core.store.allowed_repos import AllowedRepoStore
from appliance.core.store.api_tokens import ApiTokenStore
from appliance.core.store.audit import AuditLog
from appliance.core.store.begun_ends import BegunEndStore
from appliance.core.store.database import Database
from appliance.core.store.disk_leases import DiskLeaseStore
from appliance.core.store.figures import FigureStore
from appliance.core.store.fleet import FleetStore
from appliance.core.store.fleet_repos import FleetRepoStore
from appliance.core.store.fleet_turns import FleetTurnStore
from appliance.core.store.guests import GuestStore
from appliance.core.store.health import HealthStore
from appliance.core.store.registry import Registry
from appliance.core.store.sessions import SessionStore
from appliance.core.store.tokens import TokenStore
from appliance.core.store.trusted_time import TimeStore
from appliance.core.store.turn_details import TurnDetailStore
from appliance.core.store.turn_index import TurnIndexStore
from appliance.core.upstream import same_upstream


@dataclass(frozen=True)
class Stores:
    """The database of one state directory, and the stores in it."""

    database: Database
    registry: Registry
    health: HealthStore
    audit: AuditLog
    activity: ActivityStore
    sessions: SessionStore
    begun_ends: BegunEndStore
    turn_index: TurnIndexStore
    details: TurnDetailStore
    tokens: TokenStore
    api_tokens: ApiTokenStore
    disk_leases: DiskLeaseStore
    guests: GuestStore
    allowed: AllowedRepoStore
    alerts: AlertStore
    time: TimeStore
    fleet: FleetStore
    fleet_repos: FleetRepoStore
    fleet_turns: FleetTurnStore
    figures: FigureStore

    @classmethod
    def over(cls, database: Database) -> Stores:
        """The stores of an open database; they use this machine's clock."""
        audit, registry = AuditLog(database, time.time), Registry(database, time.time, same_upstream)
        return cls(
            database,
            registry,
            HealthStore(database),
            audit,
            ActivityStore(database, time.time),
            SessionStore(database),
            BegunEndStore(database),
            TurnIndexStore(database),
            TurnDetailStore(database, audit),
            TokenStore(database, time.time),
            ApiTokenStore(database, time.time),
            DiskLeaseStore(database, time.time),
            GuestStore(database, time.time),
            AllowedRepoStore(database, registry, time.time),
            AlertStore(database),
            TimeStore(database),
            FleetStore(database, time.time),
            FleetRepoStore(database, time.time),
            FleetTurnStore(database, time.time),
            FigureStore(database, time.time),
        )
