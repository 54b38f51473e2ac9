"""What a running `serve` does for the API. `daemon/operations.py` implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from appliance.core.git.mirror import Mirror
from appliance.core.models import Tell, Turn
from appliance.core.store.turn_details import AttachmentRow


class NodeOperations(Protocol):
    """The operations on one node. Each raises GitmirrorError and then has changed nothing.

    Documents are those that the commands print with `--json`.
    """

    async def status(self) -> dict[str, Any]:
        """The status of the node and of every repository."""
        ...

    async def storage(self) -> dict[str, Any]:
        """What the state directory takes, what goes next, and what went last."""
        ...

    async def fleet(self) -> dict[str, Any]:
        """The fleet of this node, and what waits to go out to it."""
        ...

    async def forget_node(self, node: str) -> dict[str, Any]:
        """Has the fleet forget a node that is gone for good. Raises NotFound, Conflict."""
        ...

    async def pulse(self) -> dict[str, Any]:
        """What only a running `serve` knows, without the repositories, so that it can be read every second."""
        ...

    def transfers(self) -> list[dict[str, Any]]:
        """What guests are being sent now, the oldest first."""
        ...

    def repos(self) -> list[dict[str, Any]]:
        """The registry, by name."""
        ...

    def repo(self, name: str) -> dict[str, Any]:
        """One repository: its registration and its status. Raises NotFound."""
        ...

    async def add(self, arguments: Mapping[str, Any], tell: Tell) -> tuple[dict[str, Any], bool]:
        """Registers a repository and, unless `wait` is false, waits for its first clone. Returns whether it is new."""
        ...

    async def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Changes `enabled`, `branch` or `interval`. Raises NotFound, and Conflict for one that the config lists."""
        ...

    async def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters a repository; with `purge`, also deletes its mirror. Raises NotFound, Conflict."""
        ...

    async def refresh(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Refreshes now and waits. No names mean all enabled repositories."""
        ...

    def guest_kit(self) -> str:
        """The guest kit of this mirror."""
        ...

    async def lease_disk(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Leases the drives of a `branch` or a `commit` for `ttl` seconds. Raises NotFound."""
        ...

    async def disks(self) -> list[dict[str, Any]]:
        """The leases that have not ended."""
        ...

    async def release_disk(self, lease_id: str) -> dict[str, Any]:
        """Ends a lease. Raises NotFound."""
        ...

    async def add_guest(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Makes a guest known; returns whether it is new. Raises NotFound for a repository, Conflict."""
        ...

    async def known_guests(self) -> list[dict[str, Any]]:
        """The known guests, by name."""
        ...

    async def remove_guest(self, name: str) -> dict[str, Any]:
        """Forgets a guest. Raises NotFound."""
        ...

    async def drop_session(self, repo: str, session: str, tip: str | None = None) -> dict[str, Any]:
        """Ends a session at once; with `tip`, only while that is its last commit. Raises NotFound, Conflict."""
        ...

    async def bring(self, turns: Sequence[Turn]) -> None:
        """Has the mirrors hold these turns, if other nodes of the fleet took them. Raises GitmirrorError."""
        ...

    async def bring_ref(self, repo: str, ref: str | None) -> None:
        """Has the ref of a session point to its last turn, if another node took that; other refs are passed over."""
        ...

    async def bring_attachment(self, row: AttachmentRow) -> None:
        """Has the file of an attachment here, if another node took its turn."""
        ...

    def open_attachment(self, row: AttachmentRow) -> BinaryIO:
        """Opens an attachment, whose bytes were checked. Raises GitmirrorError if it is missing or damaged."""
        ...

    def scratch(self) -> Path:
        """A directory on disk for temporary files."""
        ...

    def mirror(self, name: str) -> Mirror:
        """The mirror of a repository, to be read. Raises NotFound if there is none on disk."""
        ...

    def issue_token(self, repo: str, ttl: float, note: str) -> dict[str, Any]:
        """Issues a read token of a repository, valid for `ttl` seconds. Raises NotFound."""
        ...

    async def accept_loss(self) -> dict[str, Any]:
        """Accepts an audit log that lacks events."""
        ...

    async def backup(self, to: str | None) -> dict[str, Any]:
        """Makes a backup now and waits for it."""
        ...

    async def verify(self, names: Sequence[str], tell: Tell, *, full: bool) -> list[dict[str, Any]]:
        """Inspects mirrors now; no names mean all."""
        ...

    async def heal(self, name: str) -> dict[str, Any]:
        """Inspects one mirror now and heals it."""
        ...
