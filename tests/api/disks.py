"""A stand-in for `Disks`, and the API of a node that has it: the real routes over the real operations of `serve`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

from appliance.core.api.declaration import Operation
from appliance.core.api.disk_routes import DiskRoutes
from appliance.core.config.settings import Config
from appliance.core.daemon.operations import Operations
from appliance.core.daemon.state import ServeState
from appliance.core.errors import GitmirrorError, NotFound
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.units import rfc3339
from appliance.core.workspace.disk.images import DiskForm
from tests.api.server import ApiServer

REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
TIP, OLD = "1" * 40, "2" * 40
NOW = 4_000_000_000.0
"""Far from now, so that no lease ends during a test. Every lease is made in this moment."""
LACKING = [{"path": f"module-{number}", "reason": "too many"} for number in range(12)]
"""What a disk with submodules lacks."""


class FakeDisks:
    """Leases drives in `place`: those of `main`, whose tip is TIP, and of the commit OLD.

    `asked` is what each call of `lease` wanted. With `failure`, `lease` raises it.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.asked: list[dict[str, Any]] = []
        self.failure: GitmirrorError | None = None
        self._leases: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)

    async def lease(
        self,
        repo: Repo,
        *,
        branch: str | None,
        commit: str | None,
        guest: str | None,
        ttl: float,
        form: DiskForm,
        submodules: bool | None = None,
    ) -> dict[str, Any]:
        """Leases a disk."""
        asked = {"branch": branch, "commit": commit, "guest": guest, "ttl": ttl, "form": form}
        self.asked.append(asked if submodules is None else asked | {"submodules": submodules})
        if self.failure is not None:
            raise self.failure
        if branch not in (None, "main"):
            raise NotFound(f"{repo.name} has no branch {branch}")
        if commit not in (None, OLD):
            raise NotFound(f"{repo.name} has no commit {commit}")
        roles = ("tree", "data") if form is DiskForm.EROFS else ("tree",)
        lease_id = f"lease-{next(self._numbers):04}"
        self._leases[lease_id] = {
            "id": lease_id,
            "repo": repo.name,
            "branch": "main",
            "commit": commit or TIP,
            "guest": guest,
            "form": str(form),
            "drives": [{"path": str(self.place / role), "role": role, "readonly": True} for role in roles],
            "submodules": bool(submodules),
            "missing": LACKING if submodules else [],
            "mount": "mount -t erofs -o ro,device=/dev/vdc /dev/vdb /workspace",
            "created_at": rfc3339(NOW),
            "expires_at": rfc3339(NOW + ttl),
        }  # fmt: skip
        return self._leases[lease_id]

    async def documents(self) -> list[dict[str, Any]]:
        """The leases, the oldest first."""
        return list(self._leases.values())

    async def release(self, lease_id: str) -> dict[str, Any]:
        """Ends a lease; nothing changes if it has ended."""
        if lease_id in self._leases:
            self._ended[lease_id] = self._leases.pop(lease_id)
        if lease_id not in self._ended:
            raise NotFound(f"there is no lease {lease_id}", hint="`disks` lists them")
        return self._ended[lease_id]


class DiskServer(ApiServer):
    """An API with the routes of disks, over `disks`."""

    def __init__(self, layout: Layout) -> None:
        self.disks = FakeDisks(layout.state)
        self._state = ServeState(layout, Config(), [REPO])
        super().__init__(layout)

    def _operations(self) -> list[Operation]:
        # The other rooms of `serve` have no part in it.
        rooms = cast(dict[str, Any], dict.fromkeys(
            ("stores", "mirrors", "scheduler", "recording", "workspaces", "warmer", "integrity", "backups", "kit",
             "status_of", "guests", "shared", "brought"))
        )  # fmt: skip
        node = Operations(state=self._state, leases=cast(Any, self.disks), allowed=Mock(), **rooms)
        return DiskRoutes(node).operations()
