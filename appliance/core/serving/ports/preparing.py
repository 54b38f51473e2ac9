"""Waits for what has to come from elsewhere before a request can be answered."""

from __future__ import annotations

import logging

from appliance.core.models import Repo
from appliance.core.serving.fetch.away import SessionAway
from appliance.core.serving.fetch.engine import Engine
from appliance.core.serving.net.seats import Seat
from appliance.core.serving.wire.pktline import packet
from appliance.core.serving.wire.v2 import V2Request
from appliance.core.text import escape

log = logging.getLogger(__name__)


async def prepare(engine: Engine, seat: Seat, repo: Repo, request: V2Request) -> bytes:
    """Returns nothing once the request can be answered, or the packet that tells the guest why it cannot be.

    The guest holds no slot meanwhile, only its connection. Raises UploadPackError.
    """
    # It counts as one that waits, so that it is not taken for an idle one when there are too many.
    was_waiting, seat.waiting = seat.waiting, True
    try:
        await engine.prepare(repo, request)
    except SessionAway as error:
        log.info("%s: %s", seat.client, error.message)
        return packet(f"ERR gitmirror: {escape(error.message)}".encode()[:1000])
    finally:
        seat.waiting = was_waiting
    return b""
