"""Who holds which drives, and until when."""

from __future__ import annotations

import secrets
import time
from typing import Any

from appliance.core.errors import NotFound
from appliance.core.models import Repo
from appliance.core.units import rfc3339
from appliance.core.workspace.disk.images import DiskForm


class UnknownLease(NotFound):
    """No lease of that id holds a disk."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"there is no lease {lease_id!a:.100}", hint="`disks` lists them; one that ended is gone")


class Disks:
    """Leases disks, and keeps every drive that somebody holds. The documents are those that `disk --json` prints."""

    def __init__(self) -> None:
        self._leases: dict[str, dict[str, Any]] = {}

    async def lease(
        self, repo: Repo, *, branch: str | None, commit: str | None, guest: str | None, ttl: float, form: DiskForm
    ) -> dict[str, Any]:
        """Leases the disk of a branch (default: the followed one) or of a commit for `ttl` seconds."""
        now = time.time()
        lease_id = secrets.token_hex(8)
        document = {
            "id": lease_id,
            "repo": repo.name,
            "branch": branch or "main",
            "commit": commit or "0" * 40,
            "guest": guest,
            "form": str(form),
            "drives": [{"path": "/tree", "role": "tree", "readonly": True}],
            "mount": "mount -t erofs -o ro /dev/vdb /mnt",
            "created_at": rfc3339(now),
            "expires_at": rfc3339(now + ttl),
        }
        self._leases[lease_id] = document
        return document

    async def documents(self) -> list[dict[str, Any]]:
        """The leases that hold a disk now."""
        return list(self._leases.values())

    async def release(self, lease_id: str) -> dict[str, Any]:
        """Ends a lease, and returns its document. Raises UnknownLease."""
        if lease_id not in self._leases:
            raise UnknownLease(lease_id)
        return self._leases.pop(lease_id)
