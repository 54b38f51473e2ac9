"""What `serve` does for the API, over its rooms."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from appliance.core.access.read_tokens import issue_token
from appliance.core.backup.schedule import Backups
from appliance.core.daemon.allowed_repos import AllowedRepos
from appliance.core.daemon.fleet_bringing import Brought
from appliance.core.daemon.guest_registry import GuestRegistry
from appliance.core.daemon.shared_registry import SharedRegistry
from appliance.core.daemon.state import ServeState
from appliance.core.daemon.status import Status
from appliance.core.errors import Conflict, GitmirrorError, NotFound, UsageError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.git.revisions import is_ref_name
from appliance.core.integrity.examination import failed_document, healing_document, require_cloned
from appliance.core.integrity.watch import IntegrityWatch
from appliance.core.models import Repo, Tell, Turn
from appliance.core.names import is_repo_name
from appliance.core.node.guests import guest_order
from appliance.core.node.registration import added_document, outcome_document
from appliance.core.recording.attached import open_attachment
from appliance.core.recording.compose import Recording
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.serving.fetch.warmer import Warmer
from appliance.core.store.registry import UnknownRepo
from appliance.core.store.stores import Stores
from appliance.core.store.turn_details import AttachmentRow
from appliance.core.text import escape
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.disk.images import DiskForm
from appliance.core.workspace.guest_kit import GuestKit
from appliance.core.workspace.snapshots import Snapshots

Changed = TypeVar("Changed")

LEASE = 86400.0
"""Seconds that a disk is leased for unless the request says how long."""
SETTLED = 10.0
"""Seconds that a change may take to end when `serve` stops."""


@dataclass(frozen=True)
class Operations:
    """Implements `api.operations.NodeOperations`.

    Database access runs in a thread, because another process may hold the database for a long time.
    """

    state: ServeState
    stores: Stores
    mirrors: Mirrors
    scheduler: Scheduler
    recording: Recording
    workspaces: Snapshots
    warmer: Warmer
    integrity: IntegrityWatch
    backups: Backups
    kit: GuestKit
    status_of: Status
    leases: Disks
    guests: GuestRegistry
    shared: SharedRegistry
    allowed: AllowedRepos
    brought: Brought
    _changing: set[asyncio.Task[Any]] = field(default_factory=set)
    _registering: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def status(self) -> dict[str, Any]:
        """The document of `status --json`."""
        return await self.status_of.status()

    async def storage(self) -> dict[str, Any]:
        """The document of `storage --json`."""
        return await self.status_of.storage.full()

    async def fleet(self) -> dict[str, Any]:
        """The document of `fleet status --json`."""
        return await self.status_of.fleet.full()

    async def forget_node(self, node: str) -> dict[str, Any]:
        """Has the fleet forget a node that is gone for good. Raises NotFound, Conflict, GitmirrorError."""
        return await self.status_of.fleet.forget(node)

    async def pulse(self) -> dict[str, Any]:
        """What only a running `serve` knows, without the repositories."""
        return await self.status_of.pulse() | {"known_guests": self.guests.pulse()}

    def transfers(self) -> list[dict[str, Any]]:
        """What guests are being sent now, the oldest first."""
        return self.status_of.fetching.engine.transfers.documents()

    def repos(self) -> list[dict[str, Any]]:
        """The registry, by name."""
        return self.status_of.repo_documents()

    def repo(self, name: str) -> dict[str, Any]:
        """One repository: its registration and its status. Raises UnknownRepo."""
        return self.status_of.repo_whole(self.state.find(name))

    async def add(self, arguments: Mapping[str, Any], tell: Tell) -> tuple[dict[str, Any], bool]:
        """Registers a repository and, unless `wait` is false, waits for its first clone. Returns whether it is new."""
        layout, config = self.state.layout, self.state.config
        # One after the other, so that only one of two at once is told that it is new.
        async with self._registering:
            repo, is_new = await self._to_the_end(self.shared.add(arguments))
        # Its mirror may already be on disk, with turns that the audit log does not know.
        await self.recording.found.look([repo.name])
        outcome = None
        if arguments.get("wait", True) and not self.scheduler.health(repo.id).cloned:
            outcome = await self.scheduler.refresh_now(repo, tell, insist=True)
        return added_document(repo, self.scheduler.health(repo.id), layout, config, outcome), is_new

    async def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Changes `enabled`, `branch` or `interval`. Raises UnknownRepo, Conflict, UsageError."""
        repo = await self._to_the_end(self.shared.change(name, changes))
        if repo.enabled:
            self.warmer.warm(repo)
        return self.status_of.repo_documents([repo])[0]

    async def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters a repository; with `purge`, also deletes its mirror and everything made of it."""
        await self._to_the_end(self.shared.remove(name, purge=purge))
        return {"name": name, "purged": purge}

    async def refresh(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Refreshes now and waits. No names mean all enabled repositories."""
        chosen = self._found(names) if names else [repo for repo in self.state.repos if repo.enabled]
        outcomes = await asyncio.gather(*(self.scheduler.refresh_now(repo, insist=True) for repo in chosen))
        return [outcome_document(outcome) for outcome in outcomes]

    def guest_kit(self) -> str:
        """The guest kit of this mirror."""
        return self.kit.render()

    async def lease_disk(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Leases the drives of a `branch` or a `commit` for `ttl` seconds. Raises UnknownRepo, NotFound, UsageError."""
        branch = request.get("branch")
        # By the rules of git, because the list of refs escapes bytes of a name, and what it lists can be leased.
        if branch is not None and not is_ref_name(branch):
            raise UsageError(
                f"{escape(branch)[:300]} is not a branch's name", hint="give it as `refs` does, without refs/heads/"
            )
        repo = self.state.find(name)
        # Now, because a disk takes a while to build, and its lease begins only then.
        self.allowed.used(repo)
        form = DiskForm.SINGLE if request.get("single") else DiskForm.EROFS
        return await self.leases.lease(
            repo,
            branch=branch,
            commit=request.get("commit"),
            guest=request.get("guest"),
            ttl=float(request.get("ttl", LEASE)),
            submodules=request.get("submodules"),
            form=DiskForm.EXT4 if request.get("format") == DiskForm.EXT4 else form,
        )

    async def disks(self) -> list[dict[str, Any]]:
        """The leases that have not ended."""
        return await self.leases.documents()

    async def release_disk(self, lease_id: str) -> dict[str, Any]:
        """Ends a lease, even if the client hangs up meanwhile. Raises NotFound."""
        return await self._to_the_end(self.leases.release(lease_id))

    async def add_guest(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Makes a guest known; returns whether it is new. Raises UsageError, Conflict, UnknownRepo."""
        directories = self.state.config.guests.socket_directories
        order = await asyncio.to_thread(guest_order, request, self.state.find, directories)
        return await self._to_the_end(self.guests.add(order))

    async def known_guests(self) -> list[dict[str, Any]]:
        """The known guests, by name."""
        return await self.guests.documents()

    async def remove_guest(self, name: str) -> dict[str, Any]:
        """Forgets a guest, ends its connections and removes its sockets. Raises UnknownGuest."""
        return await self._to_the_end(self.guests.remove(name))

    async def drop_session(self, repo: str, session: str, tip: str | None = None) -> dict[str, Any]:
        """Ends a session at once; with `tip`, only while that is its last commit. Raises NotFound, Conflict."""
        [owner] = self._found([repo])
        for row in await asyncio.to_thread(self.stores.sessions.matching, repo, session):
            if row["session"] == session:
                if tip not in (None, row["tip"]):
                    raise Conflict(f"{session} has a newer turn", hint="look at it again before you end it")
                await self._to_the_end(self.recording.retention.end(owner, [row], "ended by an operator"))
                return {"repo": repo, "session": session}
        raise NotFound(f"{repo} has no session {session}", hint=f"`sessions --repo {repo}` lists them")

    async def bring(self, turns: Sequence[Turn]) -> None:
        """Has the mirrors hold turns that other nodes took."""
        await self.brought.turns(turns)

    async def bring_ref(self, repo: str, ref: str | None) -> None:
        """Has a session's ref point to its last turn, whichever node took it."""
        await self.brought.ref(repo, ref)

    async def bring_attachment(self, row: AttachmentRow) -> None:
        """Has an attachment's file here, whichever node took it."""
        await self.brought.attachment(row)

    def open_attachment(self, row: AttachmentRow) -> BinaryIO:
        """Opens an attachment, whose bytes were checked. Raises GitmirrorError if it is missing or damaged."""
        return open_attachment(self.state.layout, row)

    def scratch(self) -> Path:
        """A directory on disk for temporary files."""
        return self.state.layout.cache

    def mirror(self, name: str) -> Mirror:
        """The mirror of a repository, registered or not, to be read. Raises NotFound if there is none on disk."""
        if not is_repo_name(name):
            raise UnknownRepo(name, [repo.name for repo in self.state.repos])
        mirror = self.mirrors(name)
        if not mirror.exists():
            known = self.state.find(name)
            raise NotFound(f"{known.name} was not cloned yet", hint="its status says why")
        return mirror

    def issue_token(self, repo: str, ttl: float, note: str) -> dict[str, Any]:
        """Issues a read token of a repository, valid for `ttl` seconds. Raises UnknownRepo."""
        return issue_token(self.stores.tokens, self.state.privacy, self.stores.registry.get(repo), ttl, note)

    async def accept_loss(self) -> dict[str, Any]:
        """Accepts an audit log that lacks events."""
        return dict(await self.recording.found.accept_loss())

    async def backup(self, to: str | None) -> dict[str, Any]:
        """Makes a backup now, to the directory `to` or the configured one."""
        return (await self.backups.make(to)).document()

    async def verify(self, names: Sequence[str], tell: Tell, *, full: bool) -> list[dict[str, Any]]:
        """Inspects mirrors now; no names mean all."""
        health = self.scheduler.health
        documents = []
        for repo in self._found(names) if names else [repo for repo in self.state.repos if health(repo.id).cloned]:
            tell(f"inspecting {repo.name}")
            try:
                require_cloned(repo, health(repo.id))
                documents.append((await self.integrity.inspect(repo, full=full)).document())
            except GitmirrorError as error:
                documents.append(failed_document(repo.name, full, error))
        return documents

    async def heal(self, name: str) -> dict[str, Any]:
        """Inspects one mirror now and heals it."""
        [repo] = self._found([name])
        require_cloned(repo, self.scheduler.health(repo.id))
        return healing_document(repo.name, await self.integrity.heal(repo))

    def _found(self, names: Sequence[str]) -> list[Repo]:
        return [self.state.find(name) for name in names]

    async def _to_the_end(self, work: Coroutine[Any, Any, Changed]) -> Changed:
        """Does all of `work` even if the client hangs up in between: half of it would be a node that nobody wanted."""
        changing = asyncio.create_task(work, name="change that a client asked for")
        self._changing.add(changing)
        changing.add_done_callback(self._changing.discard)
        return await asyncio.shield(changing)

    async def settle(self) -> None:
        """Waits for changes whose clients have gone, for SETTLED seconds at most."""
        if self._changing:
            await asyncio.wait(self._changing, timeout=SETTLED)
