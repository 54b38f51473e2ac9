"""Builds the API from what it needs of a running `serve`."""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette

from appliance.core.api.access import Access, Token
from appliance.core.api.application import make_application
from appliance.core.api.declaration import Operation
from appliance.core.api.event_routes import EventRoutes
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
        SessionRoutes(node, stores),
        RecordRoutes(node, stores),
        EventRoutes(stream),
    )
    return described([operation for each in routes for operation in each.operations()])


def compose_api(node: NodeOperations, stores: Stores, stream: EventStream) -> Starlette:
    """The ASGI application with every route."""

    async def find(token: str) -> Token | None:
        # Never cached, so that a token that any process revokes admits nobody from then on.
        return await asyncio.to_thread(stores.api_tokens.find, token)

    return make_application(declare(node, stores, stream), Access(find, stream.wake))
