"""Builds the parts of recording for one `serve`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from appliance.core.config.settings import RecordingConfig
from appliance.core.events.facts import Publish
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Guest, Repo
from appliance.core.recording.attachments import Attachments
from appliance.core.recording.durability import Durability
from appliance.core.recording.ended_elsewhere import EndedElsewhere
from appliance.core.recording.fleet_time import FleetTime
from appliance.core.recording.found import FoundTurns
from appliance.core.recording.hook_guard import HookGuard
from appliance.core.recording.push_authorizer import PushAuthorizer
from appliance.core.recording.quota import Quota
from appliance.core.recording.retention import Retention
from appliance.core.recording.session_count import Begin, SessionCount
from appliance.core.recording.trusted_time import TrustedTime
from appliance.core.recording.turn_indexer import TurnIndexer
from appliance.core.recording.turns import TurnRecorder
from appliance.core.store.stores import Stores


@dataclass(frozen=True)
class Recording:
    """The parts that the rest of the appliance uses."""

    guard: HookGuard
    pushes: PushAuthorizer
    found: FoundTurns
    time: TrustedTime
    retention: Retention
    count: SessionCount
    index: TurnIndexer
    attachments: Attachments
    ended: EndedElsewhere


def compose_recording(
    mirrors: Mirrors,
    environment: Mapping[str, str],
    stores: Stores,
    settings: Callable[[], RecordingConfig],
    repos: Callable[[], list[Repo]],
    learn: Callable[..., Awaitable[None]],
    publish: Publish,
    begin: Begin,
    is_known: Callable[[Guest], bool],
    durability: Durability,
    node: str | None = None,
    fleet_time: FleetTime | None = None,
) -> Recording:
    """`environment` is the environment of receive-pack. `settings` and `repos` are called each time they are needed.

    `learn` stores health columns of a repository. `begin` starts a task. `is_known` says whether a guest is
    still known. `durability` is what has turns beside this node. `node` is the name of this one in its fleet, if it is
    in one, and `fleet_time` what that fleet knows of time.
    """
    layout, locks, gentle = mirrors.layout, mirrors.locks, mirrors.git.gently()
    index = TurnIndexer(stores.turn_index, lambda name: Mirror(layout.mirror(name), gentle), locks)

    def booked() -> None:
        index.wake()
        durability.booked()

    guard, turns = HookGuard(layout, mirrors.git, environment), TurnRecorder(stores.sessions, mirrors, booked)
    quota, trusted = Quota(settings, time.monotonic), TrustedTime(
        stores.time, time.time, time.monotonic, fleet_time.now if fleet_time else lambda: None
    )  # fmt: skip
    found = FoundTurns(stores.audit, turns, mirrors.on_disk, mirrors)
    pushes = PushAuthorizer(
        layout, guard, stores.audit, turns, found, quota, settings, mirrors, publish, is_known, durability
    )  # fmt: skip
    attachments = Attachments(layout, stores.details, quota, settings, pushes.require_writable)
    return Recording(
        guard,
        pushes,
        found,
        trusted,
        Retention(
            turns, stores.begun_ends, quota, mirrors, locks, attachments,
            repos=repos, settings=settings, publish=publish, time=trusted, node=node, fleet=fleet_time,
        ),
        SessionCount(stores.sessions, learn, begin),
        index,
        attachments,
        EndedElsewhere(
            stores.fleet_turns, stores.sessions, quota, mirrors, locks, attachments, publish,
            lambda name: next((repo for repo in repos() if repo.name == name), None),
        ),
    )  # fmt: skip
