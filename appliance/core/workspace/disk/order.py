"""What somebody wants to have built as a disk."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.workspace.disk.images import DiskForm


@dataclass(frozen=True)
class DiskOrder:
    """An image of `commit` on `branch` of the repository `repo`, whose upstream is `url`.

    `history` is "full" or "tip", `visibility` "open" or "private".
    """

    repo: str
    url: str
    branch: str
    commit: str
    form: DiskForm
    history: str
    visibility: str
