"""What `serve` does when another command asks for it over the control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from appliance.core.daemon.control_server import Handler
from appliance.core.daemon.live import Live
from appliance.core.errors import GitmirrorError
from appliance.core.node.registration import added_document, outcome_document, register, unregister
from appliance.core.process.control import Tell

Arguments = Mapping[str, Any]


class Commands:
    """The handlers, over one running serve. Each raises GitmirrorError, and then changed nothing."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def handlers(self) -> dict[str, Handler]:
        """By the name that goes over the socket."""
        return {
            "status": self._status,
            "pulse": self._pulse,
            "repos": self._repos,
            "add": self._add,
            "remove": self._remove,
            "set-enabled": self._set_enabled,
            "refresh": self._refresh,
            "guest-kit": self._guest_kit,
            "session-drop": self._session_drop,
            "accept-loss": self._accept_loss,
        }

    async def _status(self, arguments: Arguments, tell: Tell) -> Any:
        return await self._live.status()

    async def _pulse(self, arguments: Arguments, tell: Tell) -> Any:
        return await self._live.pulse()

    async def _repos(self, arguments: Arguments, tell: Tell) -> Any:
        return self._live.repo_documents()

    async def _add(self, arguments: Arguments, tell: Tell) -> Any:
        live = self._live
        repo = register(live.stores, live.layout, live.config, arguments)
        live.follow_registry()
        # Its mirror may have been here before, or been put here, with turns that the log does not know.
        await live.found.look([repo.name])
        outcome = None
        if arguments.get("wait", True) and not live.scheduler.health(repo.id).cloned:
            outcome = await live.scheduler.refresh_now(repo, tell, insist=True)
        return added_document(repo, live.scheduler.health(repo.id), live.layout, live.config, outcome)

    async def _remove(self, arguments: Arguments, tell: Tell) -> Any:
        live, name, purge = self._live, arguments["name"], bool(arguments.get("purge"))
        unregister(live.stores, live.layout, live.config, name, purge=purge)
        live.follow_registry()
        if purge:
            async with live.locks.exclusive(name):
                await asyncio.to_thread(live.mirror(name).discard)
            await live.workspaces.delete(name)
        return {"name": name, "purged": purge}

    async def _set_enabled(self, arguments: Arguments, tell: Tell) -> Any:
        live = self._live
        repo = live.stores.registry.set_enabled(arguments["name"], bool(arguments["enabled"]))
        live.follow_registry()
        if repo.enabled:
            live.warmer.warm(repo)
        return live.repo_documents([repo])[0]

    async def _session_drop(self, arguments: Arguments, tell: Tell) -> Any:
        live = self._live
        repo = live.stores.registry.get(arguments["repo"])
        for session in live.stores.sessions.matching(repo.name, arguments["session"]):
            if session["session"] == arguments["session"]:
                await live.retention.end(repo, [session], "ended by an operator")
                return {"repo": repo.name, "session": session["session"]}
        raise GitmirrorError(f"{repo.name} has no session {arguments['session']}")

    async def _accept_loss(self, arguments: Arguments, tell: Tell) -> Any:
        return await self._live.found.accept_loss()

    async def _guest_kit(self, arguments: Arguments, tell: Tell) -> Any:
        return self._live.guest_kit()

    async def _refresh(self, arguments: Arguments, tell: Tell) -> Any:
        live = self._live
        names = arguments.get("names") or [repo.name for repo in live.repos if repo.enabled]
        chosen = [live.stores.registry.get(name) for name in names]
        outcomes = await asyncio.gather(*(live.scheduler.refresh_now(repo, insist=True) for repo in chosen))
        return [outcome_document(outcome) for outcome in outcomes]
