"""Takes attachments over HTTP, from whoever may push: `PUT /OWNER/REPO/agents/SESSION/COMMIT/attachments/NAME`."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic, NamedTuple, Protocol, TypeVar

from appliance.core.errors import Conflict, Forbidden, GitmirrorError, NoRoom, NotFound, TooLarge, TryLater, UsageError
from appliance.core.models import Caller, Repo
from appliance.core.serving.net.http import Exchange, HttpError

log = logging.getLogger(__name__)

LEAST_PACE = 65536
"""Bytes a second that a guest has to send on average, so that it does not keep others out."""
GRACE = 30.0
"""Seconds that it has in addition."""
MOST_DIGITS = 15

_STATUS: tuple[tuple[type[GitmirrorError], HTTPStatus], ...] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (NoRoom, HTTPStatus.INSUFFICIENT_STORAGE),
    (UsageError, HTTPStatus.BAD_REQUEST),
)


class Target(NamedTuple):
    """What a request names: the session, the commit of one of its turns, and a name for the attachment."""

    session: str
    commit: str
    name: str


class Receiving(Protocol):
    """An attachment that is being received."""

    async def write(self, data: bytes) -> None:
        """Adds bytes. Raises GitmirrorError."""
        ...


_Upload = TypeVar("_Upload", bound=Receiving)


class AttachmentStore(Protocol[_Upload]):
    """Where attachments go. Implemented by `recording`, and wired in by the service."""

    def upload(
        self, repo: Repo, session: str, commit: str, name: str, caller: Caller, size: int | None
    ) -> AbstractAsyncContextManager[_Upload]:
        """Decides whether the guest may attach, before its body is read. Raises GitmirrorError."""
        ...

    async def require_writable(self, repo: Repo, session: str, caller: Caller) -> None:
        """Raises GitmirrorError unless the guest may attach now, after its body was read."""
        ...

    def add(self, upload: _Upload, session: str, commit: str, caller: Caller) -> Awaitable[bool]:
        """Adds it; returns False if it was there before. Raises GitmirrorError."""
        ...


@dataclass(frozen=True)
class HttpAttachments(Generic[_Upload]):
    """Answers the requests. `largest` is the most bytes of one attachment."""

    store: AttachmentStore[_Upload]
    largest: int

    async def receive(self, repo: Repo, exchange: Exchange, target: Target, still_there: Callable[[], bool]) -> None:
        """Takes one attachment. Raises HttpError, IdleTimeout, OSError.

        `still_there` says whether the guest may still have the repository, after it sent the body.
        """
        if exchange.method != "PUT":
            # There is no GET, because what others attached is not for guests.
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only PUT is answered here\n", {"allow": "PUT"})
        try:
            is_new = await self._receive(repo, exchange, target, still_there)
        except TryLater as error:
            headers = {"retry-after": str(error.retry_after)}
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{error.message}\n", headers) from None
        except GitmirrorError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
            log.info("%s: an attachment to %s was refused: %s", exchange.client, repo.name, error.message)
            if status is None:
                headers = {"retry-after": "5"}
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{error.message}\n", headers) from None
            raise HttpError(status, f"{error.message}\n") from None
        status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
        await exchange.answer(
            status, json.dumps({"name": target.name, "is_new": is_new}) + "\n", {"content-type": "application/json"}
        )

    async def _receive(self, repo: Repo, exchange: Exchange, target: Target, still_there: Callable[[], bool]) -> bool:
        caller, size = exchange.caller, self._size(exchange)
        async with self.store.upload(repo, *target, caller, size) as upload:
            seconds = GRACE + (self.largest if size is None else size) / LEAST_PACE
            with exchange.receiving_within(seconds):
                while data := await exchange.receive():
                    await upload.write(data)
            if not still_there():
                raise NotFound(f"{repo.name} is not mirrored here")
            await self.store.require_writable(repo, target.session, caller)
            return await self.store.add(upload, target.session, target.commit, caller)

    @staticmethod
    def _size(exchange: Exchange) -> int | None:
        """The bytes that will arrive; None if they come in chunks, or compressed. Raises TooLarge."""
        length = exchange.headers.get("content-length")
        if length is None and "transfer-encoding" not in exchange.headers:
            return 0
        if length is None or exchange.coded_size is not None:
            return None
        if len(length) > MOST_DIGITS:
            raise TooLarge("an attachment of that size is too large")
        return int(length)
