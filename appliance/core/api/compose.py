"""Builds the API from what it needs of a running `serve`."""

from __future__ import annotations

from starlette.applications import Starlette

from appliance.core.access.api_tokens import ApiTokens
from appliance.core.api.access import Access
from appliance.core.api.api_token_routes import ApiTokenRoutes
from appliance.core.api.application import make_application
from appliance.core.api.attachment_routes import AttachmentRoutes
from appliance.core.api.declaration import Operation
from appliance.core.api.disk_routes import DiskRoutes
from appliance.core.api.event_routes import EventRoutes
from appliance.core.api.fleet_routes import FleetRoutes
from appliance.core.api.guest_routes import KnownGuestRoutes
from appliance.core.api.mirror_routes import MirrorRoutes
from appliance.core.api.node_routes import NodeRoutes
from appliance.core.api.openapi import described
from appliance.core.api.operations import NodeOperations
from appliance.core.api.record_routes import RecordRoutes
from appliance.core.api.session_routes import SessionRoutes
from appliance.core.observability.event_stream import EventStream
from appliance.core.store.stores import Stores


def declare(node: NodeOperations, stores: Stores, stream: EventStream) -> list[Operation]:
    """Every operation, in the order of the documentation."""
    routes = (
        NodeRoutes(node),
        MirrorRoutes(node),
        DiskRoutes(node),
        KnownGuestRoutes(node),
        SessionRoutes(node, stores),
        AttachmentRoutes(node, stores),
        RecordRoutes(node, stores),
        ApiTokenRoutes(stores),
        FleetRoutes(node),
        EventRoutes(stream),
    )
    return described([operation for each in routes for operation in each.operations()])


def compose_api(node: NodeOperations, stores: Stores, stream: EventStream, tokens: ApiTokens) -> Starlette:
    """The ASGI application with every route."""
    return make_application(declare(node, stores, stream), Access(tokens.holder_of, stream.wake))
