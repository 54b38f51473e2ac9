"""What `serve` does for the commands that call it over the control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from appliance.core.daemon.compose import Assembly
from appliance.core.daemon.control_arguments import taking
from appliance.core.daemon.control_server import Handler
from appliance.core.errors import GitmirrorError
from appliance.core.integrity.examination import failed_document, healing_document, require_cloned
from appliance.core.node.registration import added_document, outcome_document, register, unregister
from appliance.core.process.control import Tell

Arguments = Mapping[str, Any]
Changed = TypeVar("Changed")


class CommandHandlers:
    """The handlers, over the rooms of one running `serve`. Each raises GitmirrorError and then has changed nothing.

    Database access runs in a thread, because another process may hold the database for a long time.
    """

    def __init__(self, rooms: Assembly) -> None:
        self._rooms = rooms
        self._state = rooms.state
        self._changing: set[asyncio.Task[Any]] = set()

    def handlers(self) -> dict[str, Handler]:
        """Returns the handler of each command, keyed by the command's name on the socket."""
        return {
            "status": self._status,
            "pulse": self._pulse,
            "repos": self._repos,
            "add": taking(
                self._add,
                url="text",
                name="text?",
                branch="text?",
                interval="seconds?",
                allow_local="switch?",
                wait="switch?",
            ),
            "remove": taking(self._remove, name="text", purge="switch?"),
            "set-enabled": taking(self._set_enabled, name="text", enabled="switch"),
            "refresh": taking(self._refresh, names="texts?"),
            "guest-kit": self._guest_kit,
            "session-drop": taking(self._session_drop, repo="text", session="text"),
            "accept-loss": self._accept_loss,
            "backup": taking(self._backup, to="text?"),
            "verify": taking(self._verify, names="texts?", full="switch?"),
            "heal": taking(self._heal, name="text"),
        }

    async def _change(self, change: Callable[[], Changed]) -> Changed:
        """Changes the registry and then follows it. Both happen even if the client hangs up in between."""

        async def work() -> Changed:
            changed = await asyncio.to_thread(change)
            await self._rooms.follower.follow()
            return changed

        changing = asyncio.create_task(work(), name="change of the registry")
        self._changing.add(changing)
        changing.add_done_callback(self._changing.discard)
        return await asyncio.shield(changing)

    async def _status(self, arguments: Arguments, tell: Tell) -> Any:
        return await self._rooms.status.status()

    async def _pulse(self, arguments: Arguments, tell: Tell) -> Any:
        return await self._rooms.status.pulse()

    async def _repos(self, arguments: Arguments, tell: Tell) -> Any:
        return self._rooms.status.repo_documents()

    async def _add(self, arguments: Arguments, tell: Tell) -> Any:
        rooms, layout, config = self._rooms, self._state.layout, self._state.config
        scheduler = rooms.refreshing.scheduler
        repo = await self._change(partial(register, rooms.stores, layout, config, arguments))
        # Its mirror may already be on disk, with turns that the audit log does not know.
        await rooms.recording.found.look([repo.name])
        outcome = None
        if arguments.get("wait", True) and not scheduler.health(repo.id).cloned:
            outcome = await scheduler.refresh_now(repo, tell, insist=True)
        return added_document(repo, scheduler.health(repo.id), layout, config, outcome)

    async def _remove(self, arguments: Arguments, tell: Tell) -> Any:
        rooms, name, purge = self._rooms, arguments["name"], bool(arguments.get("purge"))
        await self._change(partial(unregister, rooms.stores, self._state.layout, self._state.config, name, purge=purge))
        if purge:
            async with rooms.mirrors.locks.exclusive(name):
                await asyncio.to_thread(rooms.mirrors(name).discard)
            await rooms.workspaces.delete(name)
        return {"name": name, "purged": purge}

    async def _set_enabled(self, arguments: Arguments, tell: Tell) -> Any:
        rooms, enabled = self._rooms, bool(arguments["enabled"])
        repo = await self._change(partial(rooms.stores.registry.set_enabled, arguments["name"], enabled))
        if repo.enabled:
            rooms.fetching.warmer.warm(repo)
        return rooms.status.repo_documents([repo])[0]

    async def _session_drop(self, arguments: Arguments, tell: Tell) -> Any:
        rooms, name = self._rooms, arguments["session"]
        repo = self._state.find(arguments["repo"])
        for session in await asyncio.to_thread(rooms.stores.sessions.matching, repo.name, name):
            if session["session"] == name:
                await rooms.recording.retention.end(repo, [session], "ended by an operator")
                return {"repo": repo.name, "session": name}
        raise GitmirrorError(f"{repo.name} has no session {name}", hint=f"`sessions --repo {repo.name}` lists them")

    async def _accept_loss(self, arguments: Arguments, tell: Tell) -> Any:
        return await self._rooms.recording.found.accept_loss()

    async def _backup(self, arguments: Arguments, tell: Tell) -> Any:
        return (await self._rooms.backups.make(arguments.get("to"))).document()

    async def _verify(self, arguments: Arguments, tell: Tell) -> Any:
        state, full = self._state, bool(arguments.get("full"))
        health = self._rooms.refreshing.scheduler.health
        names = arguments.get("names") or [repo.name for repo in state.repos if health(repo.id).cloned]
        documents = []
        for repo in [state.find(name) for name in names]:
            tell(f"inspecting {repo.name}")
            try:
                require_cloned(repo, health(repo.id))
                documents.append((await self._rooms.integrity.inspect(repo, full=full)).document())
            except GitmirrorError as error:
                documents.append(failed_document(repo.name, full, error))
        return documents

    async def _heal(self, arguments: Arguments, tell: Tell) -> Any:
        repo = self._state.find(arguments["name"])
        require_cloned(repo, self._rooms.refreshing.scheduler.health(repo.id))
        return healing_document(repo.name, await self._rooms.integrity.heal(repo))

    async def _guest_kit(self, arguments: Arguments, tell: Tell) -> Any:
        return self._rooms.kit.render()

    async def _refresh(self, arguments: Arguments, tell: Tell) -> Any:
        state, scheduler = self._state, self._rooms.refreshing.scheduler
        names = arguments.get("names") or [repo.name for repo in state.repos if repo.enabled]
        chosen = [state.find(name) for name in names]
        outcomes = await asyncio.gather(*(scheduler.refresh_now(repo, insist=True) for repo in chosen))
        return [outcome_document(outcome) for outcome in outcomes]
