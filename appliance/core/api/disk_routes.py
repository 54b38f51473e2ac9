"""The routes about disks: a branch's tree as drives that a platform attaches to the VM of a guest."""

from __future__ import annotations

from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import Answer, Call, Header, Operation, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.paging import AFTER, LIMIT, limit_of, paged
from appliance.core.errors import NotFound, UsageError
from appliance.core.store import cursors
from appliance.core.store.disk_leases import LONGEST
from appliance.core.workspace.disk.images import DiskForm

_LEASE = "/v1/disks/{disk}"
_LOCATION = {"Location": Header(schemas.TEXT, "The path of the lease.")}

_DRIVE = schemas.document(
    "Drive",
    path=schemas.TEXT, role=schemas.one_of("tree", "data"), readonly=schemas.SWITCH,
)  # fmt: skip
_MISSING = schemas.document("Missing", path=schemas.TEXT, reason=schemas.TEXT)
_DISK = schemas.document(
    "Disk",
    id=schemas.TEXT, repo=schemas.TEXT, branch=schemas.TEXT, commit=schemas.OID,
    guest=schemas.nullable(schemas.TEXT), form=schemas.one_of(*DiskForm), drives=schemas.listed(_DRIVE),
    submodules=schemas.SWITCH, missing=schemas.listed(_MISSING),
    mount=schemas.TEXT, created_at=schemas.TIME, expires_at=schemas.TIME,
)  # fmt: skip


class DiskRoutes:
    """Answers requests about the disks of `node`."""

    def __init__(self, node: NodeOperations) -> None:
        self._node = node

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "POST", "/v1/repos/{owner}/{repo}/disks", "lease-disk", "Lease a workspace as read-only drives",
                Scope.OPERATE, self._lease,
                {201: Answer("The lease, as `disk --json`.", _DISK, headers=_LOCATION)},
                (problem.INVALID, problem.NOT_FOUND, problem.CONFLICT, problem.TOO_LARGE_BODY, problem.FAILED),
                body=schemas.given(
                    branch=schemas.NAME, commit=schemas.OID, guest=schemas.NAME, ttl=schemas.duration(1, int(LONGEST)),
                    single=schemas.SWITCH, format=schemas.one_of("erofs", "ext4"), submodules=schemas.SWITCH,
                ),
                details="The workspace is the tip of `branch`, or `commit`, which must be on an upstream branch. Send "
                "one of them at most; the default is the tip of the followed branch. The response comes when the "
                "drives are built. They do not change until the lease ends, `ttl` later (24 hours by default). "
                "`single` puts everything on one drive, as does `format` \"ext4\". `guest` is a label for the guest, "
                "which the list of leases shows. `submodules` includes those whose upstreams are mirrored here, "
                "private ones if `guest` is the name of a known guest that may read them; the default is the setting. "
                "`missing` has the submodules that are empty and the LFS files that are pointers, at most 100, with "
                "the reasons. `mount` is the command for a guest in which the drives are "
                "`/dev/vdb` and `/dev/vdc`. docs/disks.md describes what the node and the guest have to do.",
                example={"branch": "main", "guest": "vm-7", "ttl": "2h"},
            ),
            Operation(
                "GET", "/v1/disks", "list-disks", "List leases, newest first", Scope.READ, self._leases,
                {200: Answer("A page of the leases that have not ended, as `disks --json`.", schemas.page(_DISK))},
                (problem.INVALID,), query=(LIMIT, AFTER),
            ),
            Operation(
                "GET", _LEASE, "get-disk", "One lease", Scope.READ, self._one,
                {200: Answer("The lease.", _DISK)}, (problem.NOT_FOUND,),
            ),
            Operation(
                "DELETE", _LEASE, "release-disk", "End a lease", Scope.OPERATE, self._release,
                {200: Answer("The lease that has ended.", _DISK)}, (problem.NOT_FOUND,),
                details="Its drives may be removed from then on. A guest that still has them attached can go on "
                "reading them, because its VMM holds the files open. Ending a lease again changes nothing.",
            ),
        ]  # fmt: skip

    async def _lease(self, call: Call) -> Any:
        if "branch" in call.body and "commit" in call.body:
            raise UsageError("branch and commit cannot be combined", hint="send one of them")
        leased = await self._node.lease_disk(call.repo, call.body)
        return Reply(leased, 201, headers={"Location": f"/v1/disks/{leased['id']}"})

    async def _leases(self, call: Call) -> Any:
        found = sorted(await self._node.disks(), key=_place, reverse=True)
        if "after" in call.query:
            after = tuple(cursors.decode("disks", call.query["after"], str, str))
            found = [lease for lease in found if _place(lease) < after]
        return paged(*cursors.cut("disks", found, limit_of(call), _place))

    async def _one(self, call: Call) -> Any:
        for lease in await self._node.disks():
            if lease["id"] == call.path["disk"]:
                return lease
        raise NotFound(f"there is no lease {call.path['disk']!a:.100}", hint="GET /v1/disks lists them")

    async def _release(self, call: Call) -> Any:
        return await self._node.release_disk(call.path["disk"])


def _place(lease: dict[str, Any]) -> tuple[str, str]:
    """The position of a lease in the list. Several may have been made in one millisecond."""
    return lease["created_at"], lease["id"]
