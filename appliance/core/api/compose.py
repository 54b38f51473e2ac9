"""Builds the API from what it needs of a running `serve`."""

from __future__ import annotations

from starlette.applications import Starlette

from appliance.core.api.access import Access, Token
from appliance.core.api.application import make_application
from appliance.core.api.event_routes import EventRoutes
from appliance.core.api.node_routes import NodeRoutes
from appliance.core.api.openapi import described
from appliance.core.api.operations import NodeOperations
from appliance.core.observability.event_stream import EventStream
from appliance.core.store.stores import Stores


def compose_api(node: NodeOperations, stores: Stores, stream: EventStream) -> Starlette:
    """The ASGI application with every route."""

    async def find(token: str) -> Token | None:
        return None

    operations = [*NodeRoutes(node).operations(), *EventRoutes(stream).operations()]
    return make_application(described(operations), Access(find))
