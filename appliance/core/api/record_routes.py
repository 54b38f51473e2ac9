"""The routes about what happened (refreshes, hydrations, pushes, figures over time) and about read tokens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.api_token_routes import number_of_token
from appliance.core.api.declaration import Answer, Call, Header, Operation, Parameter, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.paging import AFTER, BY_GUEST, LIMIT, limit_of, paged, since
from appliance.core.store.figures import SPANS, Figures
from appliance.core.store.stores import Stores
from appliance.core.store.tokens import LONGEST
from appliance.core.units import rfc3339

WEEK = 7 * 86400.0
_REPO = Parameter("repo", schemas.NAME, "Only those of this repository.", "acme/widgets")

# What a guest asked for is recorded as it was said, so `old`, `new` and `want` may be no object ids.
_ATTEMPT = schemas.document(
    "Attempt",
    id=schemas.PAST_ID, at=schemas.TIME, repo=schemas.TEXT, session=schemas.nullable(schemas.TEXT), ref=schemas.TEXT,
    old=schemas.nullable(schemas.TEXT), new=schemas.nullable(schemas.TEXT),
    verdict=schemas.one_of("accepted", "rejected"),
    outcome=schemas.nullable(schemas.one_of("pending", "applied", "failed")),
    reason=schemas.nullable(schemas.TEXT), client=schemas.TEXT,
    guest=schemas.nullable(schemas.TEXT), hash=schemas.HASH,
)  # fmt: skip
_HYDRATION = schemas.document(
    "Hydration",
    id=schemas.PAST_ID, at=schemas.TIME, repo=schemas.TEXT, want=schemas.TEXT, wants=schemas.COUNT, shape=schemas.TEXT,
    way=schemas.one_of("hit", "joined", "miss", "direct", "snapshot"), bytes=schemas.COUNT, first_byte=schemas.SECONDS,
    seconds=schemas.SECONDS, client=schemas.TEXT, protocol=schemas.one_of("git", "http"),
    guest=schemas.nullable(schemas.TEXT), outcome=schemas.one_of("complete", "aborted", "failed"),
)  # fmt: skip
_TRANSFER = schemas.document(
    "Transfer",
    id=schemas.PAST_ID, repo=schemas.TEXT, want=schemas.TEXT, shape=schemas.TEXT,
    way=schemas.nullable(schemas.one_of("hit", "joined", "miss", "direct", "snapshot")),
    protocol=schemas.one_of("git", "http"), road=schemas.one_of("tcp", "unix", "vsock"), client=schemas.TEXT,
    guest=schemas.nullable(schemas.TEXT), started_at=schemas.TIME, seconds=schemas.SECONDS, bytes=schemas.COUNT,
    size=schemas.nullable(schemas.COUNT),
)  # fmt: skip
_FIGURES = schemas.document(
    "Figures",
    hydrations=schemas.COUNT, hit_ratio=schemas.nullable({"type": "number", "minimum": 0, "maximum": 1}),
    median=schemas.nullable(schemas.SECONDS), p95=schemas.nullable(schemas.SECONDS), bytes=schemas.COUNT,
    refreshes=schemas.COUNT, failures=schemas.COUNT,
)  # fmt: skip
_SERIES = schemas.document(
    "FigureSeries",
    span=schemas.one_of(*SPANS), step=schemas.COUNT, total=_FIGURES,
    slots=schemas.listed(
        schemas.document("FigureSlot", at=schemas.TIME, figures=schemas.nullable(_FIGURES))
    ),
)  # fmt: skip
_TOKEN = schemas.document(
    "Token",
    id=schemas.PAST_ID, repo=schemas.TEXT, note=schemas.TEXT, state=schemas.one_of("valid", "expired", "revoked"),
    created_at=schemas.nullable(schemas.TIME), expires_at=schemas.nullable(schemas.TIME),
    last_used_at=schemas.nullable(schemas.TIME), revoked_at=schemas.nullable(schemas.TIME),
)  # fmt: skip
_ISSUED = schemas.extended("IssuedToken", _TOKEN, token=schemas.TEXT, private=schemas.SWITCH)
_LOCATION = {"Location": Header(schemas.TEXT, "The path of the token.")}


class RecordRoutes:
    """Answers from `stores`."""

    def __init__(self, node: NodeOperations, stores: Stores) -> None:
        self._node = node
        self._stores = stores

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/repos/{owner}/{repo}/refreshes", "list-refreshes", "The history of refreshes", Scope.READ,
                self._refreshes, {200: Answer("A page of it, newest first.", schemas.page(schemas.PAST_REFRESH))},
                (problem.INVALID, problem.NOT_FOUND), query=(LIMIT, AFTER),
            ),
            Operation(
                "GET", "/v1/activity", "list-hydrations", "Hydrations, newest first", Scope.READ, self._activity,
                {200: Answer("A page of them, as `activity --json`.", schemas.page(_HYDRATION))}, (problem.INVALID,),
                query=(_REPO, BY_GUEST, LIMIT, AFTER),
                details="`outcome` is `complete`; `aborted` when the guest broke it off, or was cut off because it "
                "read nothing; or `failed`. Of the last two, `bytes` were sent.",
            ),
            Operation(
                "GET", "/v1/transfers", "list-transfers", "What guests are being sent now", Scope.READ,
                self._transfers, {200: Answer("All of it, the oldest first.", schemas.listed(_TRANSFER))},
                details="`bytes` is what the guest has taken so far, `seconds` how long it has taken, and `size` how "
                "much it is in total, or null while nobody knows. Nothing is sent before the answer is made; `way` is "
                "null until serve has found out whether it has the answer. LFS files are among them; the record of "
                "hydrations has none.",
            ),
            Operation(
                "GET", "/v1/figures", "figures", "What the node did over time, for plots", Scope.READ, self._figures,
                {200: Answer("Slots of `step` seconds, oldest first.", _SERIES)}, (problem.INVALID,),
                query=(
                    Parameter("span", schemas.one_of(*SPANS), "How far back they go. Default: the last hour.", "1h"),
                ),
                details="They are kept in the database, so they survive a restart; `figures` of a slot in which no "
                "serve ran are null. `hit_ratio` is the share of the hydrations that were sent from what was there "
                "(`hit`, `joined`, `snapshot`) in these and the misses. `median` and `p95` are the time to workspace "
                "in seconds, right to within 9 percent: of the hydrations whose guest had nothing before, from the "
                "request to the last byte. `refreshes` includes `failures`.",
            ),
            Operation(
                "GET", "/v1/audit", "list-attempts", "Every push attempt, newest first", Scope.READ, self._audit,
                {200: Answer("A page of them, as `audit --json`.", schemas.page(_ATTEMPT))}, (problem.INVALID,),
                query=(
                    _REPO,
                    Parameter("session", schemas.NAME, "Only those of this session.", "fix-dns"),
                    Parameter("verdict", schemas.one_of("accepted", "rejected"), "Only those.", "rejected"),
                    since("those"),
                    BY_GUEST,
                    LIMIT, AFTER,
                ),
            ),
            Operation(
                "GET", "/v1/tokens", "list-tokens", "Read tokens of private repositories", Scope.READ, self._tokens,
                {200: Answer("A page of them, newest first.", schemas.page(_TOKEN))}, (problem.INVALID,),
                query=(_REPO, LIMIT, AFTER),
            ),
            Operation(
                "POST", "/v1/tokens", "issue-token", "Issue a read token", Scope.OPERATE, self._issue,
                {201: Answer("The token; it is shown only this once.", _ISSUED, headers=_LOCATION)},
                (problem.INVALID, problem.NOT_FOUND, problem.TOO_LARGE_BODY),
                body=schemas.given(
                    ("repo",), repo=schemas.NAME, note={**schemas.NAME, "minLength": 0},
                    ttl=schemas.duration(1, LONGEST),
                ),
                details="It lets a guest read one private mirror and push its sessions there, for `ttl` (a "
                "week by default).",
                example={"repo": "acme/widgets", "ttl": 7200},
            ),
            Operation(
                "DELETE", "/v1/tokens/{id}", "revoke-token", "Revoke a read token at once", Scope.OPERATE, self._revoke,
                {200: Answer("The token as it is now.", _TOKEN)}, (problem.INVALID, problem.NOT_FOUND),
            ),
        ]  # fmt: skip

    async def _refreshes(self, call: Call) -> Any:
        def read() -> tuple[list[dict[str, Any]], str | None]:
            self._stores.registry.get(call.repo)
            page = self._stores.health.refreshes_page
            return page(call.repo, after=call.query.get("after"), limit=limit_of(call))

        return paged(*await asyncio.to_thread(read))

    async def _activity(self, call: Call) -> Any:
        page, chosen = self._stores.activity.page, {name: call.query.get(name) for name in ("repo", "guest", "after")}
        return paged(*await asyncio.to_thread(page, **chosen, limit=limit_of(call)))

    async def _transfers(self, call: Call) -> Any:
        return self._node.transfers()

    async def _figures(self, call: Call) -> Any:
        name = call.query.get("span", "1h")

        def read() -> dict[str, Any]:
            span = SPANS[name]
            series = self._stores.figures.read(span, time.time()).by(span.told)
            slots = [{"at": rfc3339(at), "figures": slot and _figures(slot)} for at, slot in series.starts()]
            return {"span": name, "step": series.step, "total": _figures(series.total()), "slots": slots}

        return await asyncio.to_thread(read)

    async def _audit(self, call: Call) -> Any:
        chosen = {name: call.query.get(name) for name in ("repo", "session", "verdict", "since", "guest", "after")}
        return paged(*await asyncio.to_thread(self._stores.audit.page, **chosen, limit=limit_of(call)))

    async def _tokens(self, call: Call) -> Any:
        page, after = self._stores.tokens.page, call.query.get("after")
        return paged(*await asyncio.to_thread(page, call.query.get("repo"), after=after, limit=limit_of(call)))

    async def _issue(self, call: Call) -> Any:
        body = call.body
        note, ttl = str(body.get("note", "")), float(body.get("ttl", WEEK))
        issued = await asyncio.to_thread(self._node.issue_token, body["repo"], ttl, note)
        return Reply(issued, 201, headers={"Location": f"/v1/tokens/{issued['id']}"})

    async def _revoke(self, call: Call) -> Any:
        number = number_of_token(call.path["id"], "/v1/tokens")
        return await asyncio.to_thread(self._stores.tokens.revoke, number)


def _figures(figures: Figures) -> dict[str, Any]:
    counted = figures.warm + figures.missed
    median, p95 = (figures.times.quantile(share) for share in (0.5, 0.95))
    return {
        "hydrations": figures.hydrations,
        "hit_ratio": round(figures.warm / counted, 4) if counted else None,
        "median": None if median is None else round(median, 4),
        "p95": None if p95 is None else round(p95, 4),
        "bytes": figures.bytes,
        "refreshes": figures.refreshes,
        "failures": figures.failures,
    }
