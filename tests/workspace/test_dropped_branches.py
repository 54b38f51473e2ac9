"""A branch whose snapshot goes while a guest's request for it is worked out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.models import Health
from appliance.core.workspace.shape import WantedShape
from appliance.core.workspace.snapshots import Snapshots
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.support.generate import copy_repository


def test_a_branch_that_is_dropped_and_asked_for_anew(
    tmp_path: Path, generated_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited to learn its submodules gets the same snapshot as who came later: it is built once."""
    lab, branch = Lab(tmp_path / "state"), "develop"
    copy_repository(generated_bare, lab.layout.mirror(WIDGETS))
    repo = lab.repo(generated_bare, name=WIDGETS)
    health = Health(cloned=True, head="refs/heads/main")

    async def test() -> None:
        snapshots = Snapshots(lab.layout, lab.mirror, lambda _: health, settings=WorkspaceConfig)
        snapshots.look()
        await snapshots.get(repo, branch)
        asked, goes_on, shape_for = asyncio.Event(), asyncio.Event(), snapshots.modules.shape_for

        async def hold(*words: Any) -> Any:
            asked.set()
            await goes_on.wait()
            return await shape_for(*words)

        monkeypatch.setattr(snapshots.modules, "shape_for", hold)
        early = asyncio.create_task(snapshots.get(repo, branch, WantedShape(submodules=True)))
        await asked.wait()
        for known, found, kept in [each for each in snapshots.kept.all() if each[1].name == branch]:
            snapshots.kept.drop(known, found, kept)
        monkeypatch.setattr(snapshots.modules, "shape_for", shape_for)
        late, _ = await snapshots.get(repo, branch)
        goes_on.set()
        assert (await early)[0] is late
        await snapshots.stop()

    lab.run(test())
    lab.close()
