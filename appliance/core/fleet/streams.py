"""The streams and buckets of a fleet: made where they are missing, and compared with the settings where they are not.

Imported when a fleet is configured, because it imports nats-py.
"""

from __future__ import annotations

import asyncio

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, ObjectStoreConfig, StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.names import LEASE_SECONDS, NODE_SECONDS, FleetNames

CHANGE = 1.0
"""Seconds for which a change of a stream is waited for: there are six streams, and a node waits for all of them."""


class NotGitmirrors(GitmirrorError):
    """A stream of a fleet's name has other subjects than gitmirror gave it."""


async def make_streams(context: JetStreamContext, names: FleetNames, replicas: int) -> list[str]:
    """Makes what is missing; returns what an operator should know of what is there. Raises errors of nats-py.

    Streams with fewer replicas than the setting get more. Those with more keep them, because a node whose setting was
    forgotten must not take copies away from the others. Raises NotGitmirrors for a stream of somebody else.
    """
    remarks: dict[str, None] = {}
    for stream in streams_of(names):
        try:
            info = await context.stream_info(stream)
        except NotFoundError:
            await _make(context, names, stream, replicas)
            continue
        subjects = _subjects(names, stream)
        if info.config.subjects != subjects:
            raise NotGitmirrors(
                f"the stream {stream} has the subjects {' '.join(info.config.subjects or ['none'])}, not "
                f"{' '.join(subjects)}",
                hint="it is not gitmirror's: delete it, or give the fleet another [fleet] name on every node",
            )
        if stream == names.heads and not (info.config.deny_delete and info.config.deny_purge):
            remarks[f"the stream {stream} lets its messages be deleted, so `audit verify --fleet` proves less"] = None
        if remark := await _replicate(context, info, replicas):
            remarks[remark] = None
    return list(remarks)


def streams_of(names: FleetNames) -> list[str]:
    """Every stream of a fleet, those below its buckets too."""
    buckets = (names.registry, names.nodes, names.leases)
    return [names.turns, names.heads, *(f"KV_{bucket}" for bucket in buckets), f"OBJ_{names.objects}"]


def _subjects(names: FleetNames, stream: str) -> list[str]:
    if stream == names.turns:
        return [names.turns_of("*")]
    if stream == names.heads:
        return [names.heads_of("*")]
    if stream.startswith("OBJ_"):
        return [f"$O.{names.objects}.C.>", f"$O.{names.objects}.M.>"]
    return [f"$KV.{stream.removeprefix('KV_')}.>"]


async def _make(context: JetStreamContext, names: FleetNames, stream: str, replicas: int) -> None:
    if stream.startswith("OBJ_"):
        await context.create_object_store(names.objects, config=ObjectStoreConfig(replicas=replicas))
    elif stream.startswith("KV_"):
        bucket = stream.removeprefix("KV_")
        ttl = {names.nodes: NODE_SECONDS, names.leases: LEASE_SECONDS}.get(bucket)
        await context.create_key_value(KeyValueConfig(bucket=bucket, history=1, ttl=ttl, replicas=replicas))
    else:
        forever = stream == names.heads
        subjects = _subjects(names, stream)
        await context.add_stream(
            StreamConfig(name=stream, subjects=subjects, num_replicas=replicas, deny_delete=forever, deny_purge=forever)
        )


async def _replicate(context: JetStreamContext, info: StreamInfo, replicas: int) -> str | None:
    stored = info.config.num_replicas or 1
    if stored == replicas:
        return None
    if stored > replicas:
        return (
            f"the fleet is stored on {stored} NATS servers, but [fleet] replicas is {replicas} here: "
            f"set it to {stored} on every node"
        )
    why = "nats-server is in no cluster"
    # A server without a cluster would note the number and keep one copy.
    if info.cluster is not None:
        info.config.num_replicas = replicas
        try:
            await asyncio.wait_for(context.update_stream(info.config), CHANGE)
        except (TimeoutError, nats.errors.TimeoutError):
            # NATS does not answer what a user may not ask for, and the permissions in docs/fleet.md forbid this.
            why = "nats-server did not answer, so this node's user may not change it; an administrator of NATS may"
        except APIError as error:
            why = error.description or str(error)
        else:
            return None
    return f"[fleet] replicas is {replicas}, but what the fleet has is stored {stored} times: {why}"
