"""Builds the image of one commit."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.git.mirror import Mirror
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace


@dataclass(frozen=True)
class DiskOrder:
    """What is to be built: `commit` as the tip of `branch` of `repo`, whose upstream is `url`.

    `history` is "full" or "tip", `visibility` "open" or "private". `group` is the name of the group that may read the
    drives, or empty.
    """

    repo: str
    url: str
    branch: str
    commit: str
    form: DiskForm
    history: str
    visibility: str
    group: str


async def build_disk(place: DiskPlace, mirror: Mirror, order: DiskOrder) -> DiskImage:
    """Returns the image of an order, built if there is none. Raises GitmirrorError."""
    raise NotImplementedError
