"""The guests' HTTP routes besides git: the snapshot, the freshness, the guest kit."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.models import Repo, Tar
from appliance.core.serving.files import send_file
from appliance.core.serving.http import Exchange, HttpError, require_read

JSON = "application/json"
SHELL = "text/x-shellscript; charset=utf-8"
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class GuestRoutes:
    """`tar(repo, branch)` finds a snapshot, `freshness(repo, want)` makes the document, `kit()` renders the kit."""

    def __init__(
        self,
        tar: Callable[[Repo, str | None], Awaitable[Tar]],
        freshness: Callable[[Repo, str | None], Awaitable[Mapping[str, Any]]],
        lag: Callable[[Repo], float | None],
        kit: Callable[[], str],
    ) -> None:
        self._tar = tar
        self._freshness = freshness
        self._lag = lag
        self._kit = kit

    async def guest_kit(self, exchange: Exchange) -> None:
        """`GET /guest.sh`."""
        require_read(exchange)
        await exchange.answer(HTTPStatus.OK, self._kit(), {"content-type": SHELL, "cache-control": "no-cache"})

    async def workspace_tar(self, exchange: Exchange, repo: Repo) -> None:
        """`GET /OWNER/REPO/workspace.tar?ref=BRANCH`; 404 with the reason when there is none."""
        require_read(exchange)
        try:
            tar = await self._tar(repo, exchange.query.get("ref"))
        except GitmirrorError as error:
            raise HttpError(HTTPStatus.NOT_FOUND, f"{error.message}\n") from None
        headers = {"x-gitmirror-commit": tar.commit, "x-gitmirror-tip": tar.tip or tar.commit}
        if (lag := self._lag(repo)) is not None:
            headers["x-gitmirror-lag"] = f"{lag:.3f}"
        await send_file(exchange, tar.path, tar.etag, "application/x-tar", headers)

    async def freshness(self, exchange: Exchange, repo: Repo) -> None:
        """`GET /OWNER/REPO/freshness[?want=OID]`."""
        require_read(exchange)
        want = exchange.query.get("want")
        if want is not None and not _OID.fullmatch(want):
            raise HttpError(HTTPStatus.BAD_REQUEST, "want takes a full object id, 40 hex digits\n")
        document = await self._freshness(repo, want)
        headers = {"content-type": JSON, "cache-control": "no-cache"}
        await exchange.answer(HTTPStatus.OK, json.dumps(document) + "\n", headers)
