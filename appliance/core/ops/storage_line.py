"""What fills the disk, in one line for `doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.core.units import format_size

MOST_NAMED = 3
STORAGE_MEND = (
    "raise [storage] budget, or remove sessions, repositories (`remove-repo --purge`) or leases of disks; "
    "`storage` lists what takes the most"
)


def storage_line(found: Mapping[str, Any]) -> str:
    """The sizes by kind, the largest repositories, and what goes next, of a document of `storage --json`."""
    of = f" of a budget of {format_size(found['budget'])}" if found["has_budget"] else ", no budget"
    taken = sorted(found["by"].items(), key=lambda each: -each[1])
    parts = [
        f"{format_size(found['used'])}{of}",
        ", ".join(f"{kind} {format_size(size)}" for kind, size in taken if size),
    ]
    largest = [f"{repo['name']} {format_size(repo['bytes'])}" for repo in found["repos"][:MOST_NAMED]]
    if largest:
        parts.append(f"largest: {', '.join(largest)}")
    if found["next"]:
        first = found["next"][0]
        whose = f"{first['repo']}, " if first["repo"] else ""
        parts.append(f"first to go: {first['what']} ({whose}{format_size(first['bytes'])})")
    return "; ".join(part for part in parts if part)
