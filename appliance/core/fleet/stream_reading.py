"""Reads a stream of the fleet from its beginning to what is its end now."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from appliance.core.fleet.link import CALL, FleetAway, FleetLink
from appliance.core.process.cancellable import cancellable

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext


async def read_stream(link: FleetLink, stream: str, subject: str) -> AsyncGenerator[Msg, None]:
    """Every message of `subject`, which may have wildcards, that is in the stream now. Raises FleetAway."""
    from nats.js.errors import NotFoundError

    try:
        last = await link.call(lambda context: context.get_last_msg(stream, subject))
    except NotFoundError:
        return

    async def subscribe(context: JetStreamContext) -> JetStreamContext.PushSubscription:
        return await context.subscribe(subject, stream=stream, ordered_consumer=True)

    subscription = await link.call(subscribe)
    try:
        seq = 0
        while seq < (last.seq or 0):
            message = await _next(subscription, stream)
            seq = message.metadata.sequence.stream
            yield message
    finally:
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()


async def _next(subscription: JetStreamContext.PushSubscription, stream: str) -> Msg:
    import nats.errors

    try:
        return await cancellable(subscription.next_msg(timeout=CALL))
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise FleetAway(
            f"the fleet did not send all of its stream {stream}: {error or type(error).__name__}"
        ) from error
