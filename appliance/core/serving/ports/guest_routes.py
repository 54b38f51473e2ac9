"""The guests' HTTP routes other than git's: the snapshot, the freshness, the guest kit."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus

from appliance.core.access.gate import AccessGate
from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import FetchBegan, FetchEnded, Publish
from appliance.core.health import lag_of
from appliance.core.models import Health, Hydration, Repo, Tar
from appliance.core.serving.fetch.ref_snapshots import RefSnapshots
from appliance.core.serving.fetch.transfers import COMPLETE, Transfer, Transfers, outcome_of, taken_of
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http import Exchange, HttpError
from appliance.core.serving.net.http_files import send_file
from appliance.core.serving.net.http_pages import require_read
from appliance.core.serving.ports.freshness import Freshness
from appliance.core.serving.ports.tar_codings import TarCodings
from appliance.core.workspace.guest_kit import Asked
from appliance.core.workspace.history import History
from appliance.core.workspace.parts import read_directories
from appliance.core.workspace.shape import WantedShape
from appliance.core.workspace.snapshots import Snapshots

JSON = "application/json"
SNAPSHOT = "snapshot"
HTTP = "http"
SHELL = "text/x-shellscript; charset=utf-8"
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

MayHave = Callable[[], Awaitable[None]]
"""Raises HttpError if the guest may not read the repository now."""


class GuestRoutes:
    """Answers the routes. `workspaces` has the snapshots, `refs` the current tips; `kit` renders the guest kit.

    Sending a snapshot is published as a fetch, like any other.
    """

    def __init__(
        self,
        workspaces: Snapshots,
        refs: RefSnapshots,
        freshness: Freshness,
        health: Callable[[int], Health],
        kit: Callable[[Asked], str],
        publish: Publish,
        codings: TarCodings,
        gate: AccessGate,
        transfers: Transfers,
    ) -> None:
        self._workspaces = workspaces
        self._refs = refs
        self._freshness = freshness
        self._health = health
        self._kit = kit
        self._publish = publish
        self._codings = codings
        self._gate = gate
        self._transfers = transfers

    async def guest_kit(self, exchange: Exchange) -> None:
        """`GET /guest.sh`."""
        require_read(exchange)
        # Clients by a unix socket or vsock reach none of our TCP addresses, but the host that they asked for.
        is_tcp = exchange.seat.socket.family in (socket.AF_INET, socket.AF_INET6)
        host = None if is_tcp else exchange.headers.get("host")
        kit = self._kit(Asked(exchange.guest, host, exchange.seat.socket_of is not None))
        await exchange.answer(HTTPStatus.OK, kit, {"content-type": SHELL, "cache-control": "no-cache"})

    async def workspace_tar(self, exchange: Exchange, repo: Repo, admission: Admission, may_have: MayHave) -> None:
        """`GET /OWNER/REPO/workspace.tar?ref=BRANCH&history=SHAPE&only=DIR&submodules=1`; 404 with the reason.

        `may_have` raises HttpError if the guest may not read the repository any more, after it has waited for a build.
        """
        require_read(exchange)
        asked = time.monotonic()
        branch = exchange.query.get("ref")
        wanted = await self._with_modules(exchange, _wanted(exchange))
        try:
            # Without a slot, because a build may wait for the LFS server of an upstream, which would then block all
            # guests.
            await self._workspaces.get(repo, branch, wanted)
        except GitmirrorError as error:
            raise _no_tar(error) from None
        async with admission.place(exchange.seat):
            # Who may read what may have changed while the guest waited.
            await may_have()
            wanted = await self._with_modules(exchange, _wanted(exchange))
            try:
                tar = await self._tar(repo, branch, wanted)
            except GitmirrorError as error:
                raise _no_tar(error) from None
            await self._send(exchange, repo, tar, asked)

    async def _send(self, exchange: Exchange, repo: Repo, tar: Tar, asked: float) -> None:
        coded = self._codings.choose(exchange, tar)
        headers = {
            "x-gitmirror-commit": tar.commit,
            "x-gitmirror-tip": tar.tip or tar.commit,
            "x-gitmirror-history": tar.history,
            **coded.headers,
        }
        if (lag := lag_of(self._health(repo.id), time.time())) is not None:
            headers["x-gitmirror-lag"] = f"{lag:.3f}"
        running: Transfer | None = None
        outcome = COMPLETE

        def begins(size: int) -> None:
            nonlocal running
            client, guest = exchange.client, exchange.caller.guest_name
            began = FetchBegan(
                repo=repo, want=tar.commit, shape=SNAPSHOT, client=client, protocol=HTTP, guest=guest
            )  # fmt: skip
            self._publish(began)
            taken = taken_of(exchange.stream, exchange.body_from)
            running = self._transfers.begin(repo, tar.commit, SNAPSHOT, exchange.caller, taken)
            running.way, running.size = SNAPSHOT, lambda: size

        try:
            await send_file(exchange, coded.path, coded.etag, "application/x-tar", headers, begins)
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            if running is not None:
                self._transfers.end(running)
                self._ended(exchange, repo, running, outcome, asked)

    def _ended(self, exchange: Exchange, repo: Repo, transfer: Transfer, outcome: str, asked: float) -> None:
        """Records a snapshot that was sent, or of which a guest took only a part; it was `asked` for at that time."""
        whole = transfer.size() or 0
        sent = whole if outcome == COMPLETE else min(transfer.sent(), whole)
        if outcome == COMPLETE:
            self._codings.watch(exchange, sent, transfer.since)
        # The file was complete, so its first byte left at once.
        first, seconds = transfer.since - asked, time.monotonic() - asked
        facts = (transfer.want, 1, SNAPSHOT, SNAPSHOT, sent, first, seconds, exchange.client, HTTP)
        fetch = Hydration(repo.name, *facts, guest=exchange.caller.guest_name, outcome=outcome)
        self._publish(FetchEnded(repo=repo, fetch=fetch))

    async def _tar(self, repo: Repo, branch: str | None, wanted: WantedShape) -> Tar:
        """The snapshot of a branch, which is there, for sending. Raises NoSnapshot, GitError."""
        refs = await self._refs.get(repo)
        # Look it up again, because it may have been replaced meanwhile. Nothing is awaited from here until the file is
        # opened.
        snapshot, path = await self._workspaces.get(repo, branch, wanted)
        tip = refs.tip(f"refs/heads/{snapshot.branch}")
        return Tar(path, snapshot.etag, snapshot.commit, tip, snapshot.history)

    async def _with_modules(self, exchange: Exchange, wanted: WantedShape) -> WantedShape:
        """The same with whether the guest asks for submodules, and those of which repositories it may have."""
        asked = exchange.query.get("submodules")
        if asked not in (None, "0", "1"):
            raise HttpError(HTTPStatus.BAD_REQUEST, "submodules must be 0 or 1\n")
        try:
            may_read = await self._gate.reader(exchange.headers.get("authorization"), exchange.guest)
        except GitmirrorError as error:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{error.message}\n") from None
        return replace(wanted, submodules=None if asked is None else asked == "1", may_read=may_read)

    async def freshness(self, exchange: Exchange, repo: Repo, may_have: MayHave) -> None:
        """`GET /OWNER/REPO/freshness[?want=OID]`. `may_have` is asked as above, after a refresh."""
        require_read(exchange)
        want = exchange.query.get("want")
        if want is not None and not _OID.fullmatch(want):
            raise HttpError(HTTPStatus.BAD_REQUEST, "want must be a full object id of 40 or 64 hex digits\n")
        document = await self._freshness.document(repo, want)
        await may_have()
        headers = {"content-type": JSON, "cache-control": "no-cache"}
        await exchange.answer(HTTPStatus.OK, json.dumps(document) + "\n", headers)


def _no_tar(error: GitmirrorError) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"{error.message}\n")


def _wanted(exchange: Exchange) -> WantedShape:
    """What a guest asks for. Raises HttpError."""
    return WantedShape(_history(exchange), only=_only(exchange), asker=_asker(exchange))


def _only(exchange: Exchange) -> tuple[str, ...]:
    """The directories that a guest asks for, or none. Raises HttpError."""
    try:
        return read_directories(exchange.query.every("only"))
    except GitmirrorError as error:
        text = f"{error.message}: {error.hint}" if error.hint else error.message
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{text}\n") from None


def _asker(exchange: Exchange) -> str:
    """Who asks: a known guest by its name, others by what their connections are counted for."""
    name = exchange.caller.guest_name
    return f"guest {name}" if name is not None else exchange.seat.peer


def _history(exchange: Exchange) -> History | None:
    """The shape that a guest asks for, or None. Raises HttpError."""
    wanted = exchange.query.get("history")
    if wanted is None:
        return None
    try:
        return History(wanted)
    except ValueError:
        allowed = ", ".join(History)
        raise HttpError(HTTPStatus.BAD_REQUEST, f"history must be one of {allowed}\n") from None
