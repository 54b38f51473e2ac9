"""Builds what adds and removes repositories: for the operator, for the other nodes, and when a guest asks for one."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.access.gate import AccessGate
from appliance.core.daemon.allowed_repos import AllowedRepos
from appliance.core.daemon.fleet import FleetParts
from appliance.core.daemon.fleet_repos import LocalRepos
from appliance.core.daemon.mirror_files import MirrorFiles
from appliance.core.daemon.on_demand import OnDemand
from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.daemon.shared_registry import SharedRegistry
from appliance.core.daemon.state import ServeState
from appliance.core.events.facts import Publish
from appliance.core.git.mirrors import Mirrors
from appliance.core.observability.event_sinks import Begin
from appliance.core.recording.compose import Recording
from appliance.core.refresh.compose import Refreshing
from appliance.core.store.stores import Stores
from appliance.core.workspace.compose import Workspaces


@dataclass(frozen=True)
class Registering:
    """The parts, for the code that starts, commands and wires them."""

    follower: RegistryFollower
    shared: SharedRegistry
    allowed: AllowedRepos
    on_demand: OnDemand


def compose_registering(
    parts: FleetParts,
    state: ServeState,
    stores: Stores,
    mirrors: Mirrors,
    gate: AccessGate,
    refreshing: Refreshing,
    recording: Recording,
    spaces: Workspaces,
    publish: Publish,
    begin: Begin,
) -> Registering:
    """Builds the parts. `gate` and `spaces` call some of them, so neither may be used before this returns."""
    scheduler = refreshing.scheduler
    follower = RegistryFollower(state, stores, mirrors, scheduler, gate, publish)
    files = MirrorFiles(mirrors, spaces.snapshots, spaces.disks, recording.attachments, spaces.lfs)
    local = LocalRepos(state, stores, follower, files, recording.found)
    allowed = AllowedRepos(state, stores.allowed, mirrors, follower, recording, files, publish, begin)
    on_demand = OnDemand(
        allowed, scheduler, mirrors.git, refreshing.refresher.current_keyring, mirrors.layout.home, state.concurrency
    )  # fmt: skip
    return Registering(follower, SharedRegistry(local, parts.link), allowed, on_demand)
