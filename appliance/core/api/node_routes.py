"""The routes about the node and its repositories."""

from __future__ import annotations

from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import Answer, Call, Header, Operation, Parameter, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.paging import AFTER, LIMIT, paged_by_name

KIT_TYPE = "text/x-shellscript"
_LOCATION = {"Location": Header(schemas.TEXT, "The path of the repository.")}


class NodeRoutes:
    """Answers requests about the node with `node`."""

    def __init__(self, node: NodeOperations) -> None:
        self._node = node

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        repo_path = "/v1/repos/{owner}/{repo}"
        return [
            Operation(
                "GET", "/v1/status", "status", "The health of the node and of every repository", Scope.READ,
                self._status, {200: Answer("As `status --json`.", schemas.STATUS)},
            ),
            Operation(
                "GET", "/v1/pulse", "pulse", "What only a running serve knows, without the repositories", Scope.READ,
                self._pulse, {200: Answer("Keys of `status`, with the connections.", schemas.PULSE)},
                details="Cheap enough to be read every second.",
            ),
            Operation(
                "GET", "/v1/storage", "storage", "What fills the disk, and what goes next", Scope.READ,
                self._storage, {200: Answer("As `storage --json`.", schemas.STORAGE_WHOLE)},
                details="Sizes are as last measured (`measured_at`), in bytes on the disk. `next` is what is removed "
                "first once the state directory takes more than `[storage] budget` or its disk is nearly full.",
            ),
            Operation(
                "GET", "/v1/repos", "list-repos", "The registered repositories, by name", Scope.READ,
                self._repos, {200: Answer("A page of them.", schemas.page(schemas.REPO))}, (problem.INVALID,),
                query=(
                    Parameter("state", schemas.STATE, "Only those in this state.", "failing"),
                    Parameter("q", schemas.GIVEN_TEXT, "Only those with this text in their name or URL.", "widgets"),
                    LIMIT, AFTER,
                ),
            ),
            Operation(
                "POST", "/v1/repos", "add-repo", "Register a repository and wait for its first clone", Scope.OPERATE,
                self._add,
                {
                    200: Answer("It was registered already, for this URL.", schemas.ADDED, headers=_LOCATION),
                    201: Answer("It is registered now.", schemas.ADDED, headers=_LOCATION),
                },
                (problem.INVALID, problem.FORBIDDEN, problem.CONFLICT, problem.TOO_LARGE_BODY, problem.FAILED),
                body=schemas.given(
                    ("url",), url=schemas.GIVEN_TEXT, name=schemas.NAME, branch=schemas.NAME,
                    interval=schemas.INTERVAL, wait=schemas.SWITCH, allow_local=schemas.SWITCH,
                ),
                details="For a URL that is registered, the given options replace the stored ones, and it is enabled. "
                "`error` says why the first clone failed, or is null; it is tried again in either case. With "
                "`wait` false the response comes at once. `allow_local` is for the operator's socket alone. "
                "With `Accept: application/x-ndjson`, lines with `progress` come first, then one with `result` or "
                "`error`.",
                example={"url": "https://github.com/acme/widgets"},
                tells=True,
            ),
            Operation(
                "GET", repo_path, "get-repo", "One repository", Scope.READ,
                self._repo, {200: Answer("Its registration and its status.", schemas.REPO_WHOLE)},
                (problem.NOT_FOUND,),
            ),
            Operation(
                "PATCH", repo_path, "change-repo", "Enable or disable a repository, or change what it follows",
                Scope.OPERATE, self._change, {200: Answer("The repository as it is now.", schemas.REPO)},
                (problem.INVALID, problem.NOT_FOUND, problem.CONFLICT, problem.TOO_LARGE_BODY),
                body=schemas.given(
                    enabled=schemas.SWITCH, branch=schemas.NAME, interval=schemas.INTERVAL
                ),
                details="A repository of the config can be enabled and disabled; its branch and interval are the "
                "config's (409).",
                example={"interval": 30},
            ),
            Operation(
                "DELETE", repo_path, "remove-repo", "Stop following and serving a repository", Scope.OPERATE,
                self._remove, {200: Answer("It is gone.", schemas.REMOVED)},
                (problem.INVALID, problem.NOT_FOUND, problem.CONFLICT),
                query=(
                    Parameter(
                        "purge", schemas.SWITCH, "Whether to delete its mirror with all its sessions too.", "true"
                    ),
                ),
                details="One of the config answers 409: its entry is to be removed there. Without `purge`, its mirror "
                "stays on disk, where its sessions and refs can be read.",
            ),
            Operation(
                "POST", f"{repo_path}/refresh", "refresh-repo", "Refresh a repository now and wait", Scope.OPERATE,
                self._refresh_one, {200: Answer("What moved.", schemas.REFRESHED)}, (problem.NOT_FOUND,),
            ),
            Operation(
                "POST", "/v1/refresh", "refresh", "Refresh several repositories now and wait", Scope.OPERATE,
                self._refresh, {200: Answer("What moved.", schemas.listed(schemas.REFRESHED))},
                (problem.INVALID, problem.NOT_FOUND, problem.TOO_LARGE_BODY),
                body=schemas.given(repos=schemas.listed(schemas.NAME)),
                details="Without `repos`, all enabled ones.",
                example={"repos": ["acme/widgets"]},
            ),
            Operation(
                "POST", "/v1/verify", "verify", "Inspect mirrors now", Scope.OPERATE,
                self._verify, {200: Answer("As `verify --json`.", schemas.listed(schemas.INSPECTED))},
                (problem.INVALID, problem.NOT_FOUND, problem.TOO_LARGE_BODY),
                body=schemas.given(repos=schemas.listed(schemas.NAME), full=schemas.SWITCH),
                details="Without `repos`, all. Damage is healed afterwards. `full` reads every object.",
                example={"repos": ["acme/widgets"], "full": True},
                tells=True,
            ),
            Operation(
                "POST", f"{repo_path}/heal", "heal", "Inspect a mirror now and heal it", Scope.OPERATE,
                self._heal, {200: Answer("As `heal --json`.", schemas.HEALED)}, (problem.NOT_FOUND, problem.FAILED),
            ),
            Operation(
                "POST", "/v1/backup", "backup", "Make a backup now and wait for it", Scope.OPERATE,
                self._backup, {200: Answer("As `backup --json`.", schemas.BACKED_UP)},
                (problem.INVALID, problem.FORBIDDEN, problem.TOO_LARGE_BODY, problem.FAILED),
                body=schemas.given(to=schemas.GIVEN_TEXT),
                details="It goes to the configured directory. Another one, `to`, may be named on the operator's "
                "socket alone.",
                example={},
            ),
            Operation(
                "POST", "/v1/audit/accept-loss", "accept-loss", "Accept an audit log that lacks events", Scope.SOCKET,
                self._accept_loss, {200: Answer("As `audit accept-loss --json`.", schemas.ACCEPTED_LOSS)},
                (problem.FAILED,),
            ),
            Operation(
                "GET", "/v1/guest-kit", "guest-kit", "The shell functions for guests", Scope.READ,
                self._kit, {200: Answer("A script for `.`, as `guest-kit` prints it.", media_type=KIT_TYPE)},
            ),
        ]  # fmt: skip

    async def _status(self, call: Call) -> Any:
        return await self._node.status()

    async def _storage(self, call: Call) -> Any:
        return await self._node.storage()

    async def _pulse(self, call: Call) -> Any:
        return await self._node.pulse()

    async def _repos(self, call: Call) -> Any:
        state, text = call.query.get("state"), str(call.query.get("q", "")).lower()
        found = [
            repo
            for repo in self._node.repos()
            if state in (None, repo["state"]) and (text in repo["name"].lower() or text in repo["url"].lower())
        ]
        return paged_by_name(found, call)

    async def _add(self, call: Call) -> Any:
        if call.body.get("allow_local") and not call.is_operator:
            hint = "`add-repo --allow-local` on the node itself, or `[refresh] allow_local`"
            raise problem.Problem(problem.FORBIDDEN, "allow_local is for operators of this node", hint=hint)
        document, is_new = await self._node.add(call.body, call.tell)
        return Reply(document, 201 if is_new else 200, headers={"Location": f"/v1/repos/{document['name']}"})

    async def _repo(self, call: Call) -> Any:
        return self._node.repo(call.repo)

    async def _change(self, call: Call) -> Any:
        return await self._node.change(call.repo, call.body)

    async def _remove(self, call: Call) -> Any:
        return await self._node.remove(call.repo, purge=bool(call.query.get("purge")))

    async def _refresh_one(self, call: Call) -> Any:
        return (await self._node.refresh([call.repo]))[0]

    async def _refresh(self, call: Call) -> Any:
        return await self._node.refresh(call.body.get("repos") or [])

    async def _verify(self, call: Call) -> Any:
        return await self._node.verify(call.body.get("repos") or [], call.tell, full=bool(call.body.get("full")))

    async def _heal(self, call: Call) -> Any:
        return await self._node.heal(call.repo)

    async def _backup(self, call: Call) -> Any:
        to = call.body.get("to")
        if to is not None and not call.is_operator:
            hint = "leave it out: the backup goes to `[backup] to`"
            raise problem.Problem(problem.FORBIDDEN, "only operators of this node may say where", hint=hint)
        return await self._node.backup(to)

    async def _accept_loss(self, call: Call) -> Any:
        return await self._node.accept_loss()

    async def _kit(self, call: Call) -> Any:
        return Reply(self._node.guest_kit(), media_type=KIT_TYPE)
