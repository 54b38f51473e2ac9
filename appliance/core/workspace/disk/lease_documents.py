"""A lease as `disk --json` and the API show it."""

from __future__ import annotations

from typing import Any

from appliance.core.store.disk_leases import DiskLease
from appliance.core.units import rfc3339
from appliance.core.workspace.disk.images import DiskForm, DiskPlace


def lease_document(lease: DiskLease, place: DiskPlace) -> dict[str, Any]:
    """The document of a lease whose drives are in `place`.

    `mount` is the command for a guest in which the drives are `/dev/vdb` and, if there are two, `/dev/vdc`.
    """
    drives, data = [{"path": str(place.tree(lease)), "readonly": True, "role": "tree"}], place.data(lease)
    # A journal cannot be replayed on a read-only drive. `noload` makes sure that the kernel does not try.
    kind, options = ("ext4", "ro,noload") if lease.form == DiskForm.EXT4 else ("erofs", "ro")
    if data is not None:
        drives.append({"path": str(data), "readonly": True, "role": "data"})
        options = "ro,device=/dev/vdc"
    return {
        "id": lease.id,
        "repo": lease.repo,
        "branch": lease.branch,
        "commit": lease.commit,
        "form": lease.form,
        "guest": lease.guest,
        "drives": drives,
        "submodules": lease.modules is not None,
        "missing": list(lease.missing),
        "mount": f"mount -t {kind} -o {options} /dev/vdb MOUNTPOINT",
        "created_at": rfc3339(lease.created_at),
        "expires_at": rfc3339(lease.expires_at),
    }
