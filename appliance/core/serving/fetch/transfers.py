"""The answers that are being made or sent to guests now, and how an answer ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.models import Caller, Repo
from appliance.core.serving.fetch.cached_response import AnswerFailed
from appliance.core.serving.fetch.upload_pack import UploadPackError
from appliance.core.serving.net.acceptor import EXHAUSTED
from appliance.core.serving.net.streams import SocketStream
from appliance.core.units import rfc3339

COMPLETE, ABORTED, FAILED = "complete", "aborted", "failed"


def outcome_of(error: BaseException) -> str:
    """How an answer ended that `error` ended: `aborted` by its guest, or `failed` here."""
    is_ours = isinstance(error, (AnswerFailed, UploadPackError, GitmirrorError))
    is_exhausted = isinstance(error, OSError) and error.errno in EXHAUSTED
    return FAILED if is_ours or is_exhausted else ABORTED


def road_of(client: str) -> str:
    """How a client is connected, by its name in the record: `unix`, `vsock` or `tcp`."""
    road, colon, _ = client.partition(":")
    return road if colon and road in ("unix", "vsock") else "tcp"


def _nobody_knows() -> int | None:
    return None


@dataclass(eq=False)
class Transfer:
    """One answer. `sent` gives the bytes that its guest has taken so far, `size` all of them, or None if unknown.

    Both are called when somebody asks, and cost nothing before. `way` is None until it is known.
    """

    id: int
    repo: str
    want: str
    shape: str
    caller: Caller
    sent: Callable[[], int]
    size: Callable[[], int | None] = _nobody_knows
    way: str | None = None
    started_at: float = field(default_factory=time.time)
    since: float = field(default_factory=time.monotonic)
    """When it began, on the monotonic clock."""

    def document(self) -> dict[str, Any]:
        """What `GET /v1/transfers` has of it."""
        size, sent = self.size(), self.sent()
        return {
            "id": self.id,
            "repo": self.repo,
            "want": self.want,
            "shape": self.shape,
            "way": self.way,
            "protocol": self.caller.protocol,
            "road": road_of(self.caller.client),
            "client": self.caller.client,
            "guest": self.caller.guest_name,
            "started_at": rfc3339(self.started_at),
            "seconds": round(time.monotonic() - self.since, 3),
            # HTTP's own bytes are among those of a stream.
            "bytes": sent if size is None else min(sent, size),
            "size": size,
        }


class Transfers:
    """All that run now. Belongs to one event loop."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._running: dict[int, Transfer] = {}

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, repo: Repo, want: str, shape: str, caller: Caller, sent: Callable[[], int]) -> Transfer:
        """Adds one that begins now. Whoever calls it also calls `end`."""
        transfer = Transfer(next(self._numbers), repo.name, want, shape, caller, sent)
        self._running[transfer.id] = transfer
        return transfer

    def end(self, transfer: Transfer) -> None:
        """Removes one."""
        del self._running[transfer.id]

    def documents(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return [transfer.document() for transfer in self._running.values()]


def taken_of(stream: SocketStream, since: int) -> Callable[[], int]:
    """Counts the bytes that the peer has taken of those sent after `stream.sent` was `since`."""
    return lambda: max(0, stream.sent - since - stream.unsent)
