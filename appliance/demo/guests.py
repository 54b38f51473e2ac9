"""A guest: runs the real guest kit in processes of its own, on a disk and a road of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.process.children import Children
from appliance.core.process.run import run_child
from appliance.demo.roads import GuestRoad

DEADLINE = 180.0
"""Seconds for one command of a guest. The slow one takes a quarter of a minute."""


@dataclass
class DemoGuest:
    """One guest. `disk` is its directory, `kit` the guest kit, and `env` what its processes begin with."""

    name: str
    road: GuestRoad
    disk: Path
    kit: Path
    children: Children
    env: Mapping[str, str]
    _made: int = field(default=0)

    async def hydrate(self, repo: str, want: str = "", *, by_git: bool = False) -> Path | None:
        """Makes a workspace, by git if the tar is not wanted, and returns it; None if that failed."""
        self._made += 1
        workspace = self.disk / f"workspace-{self._made}"
        roads = {"GITMIRROR_GIT": self.road.git, "GITMIRROR_HTTP": "" if by_git else self.road.http}
        words = ["hydrate", repo, str(workspace), *([want] if want else [])]
        return workspace if await self._run(["sh", str(self.kit), *words], roads) else None

    async def record(
        self, session: str, workspace: Path, message: str, notes: Mapping[str, str], files: Sequence[Path]
    ) -> bool:
        """Records a turn. Returns whether it is in the mirror."""
        words = ["record", session, str(workspace), "--message", message]
        words += [word for key, value in notes.items() for word in ("--note", f"{key}={value}")]
        words += [word for file in files for word in ("--attach", str(file))]
        return await self._run(
            ["sh", str(self.kit), *words], {"GITMIRROR_GIT": self.road.git, "GITMIRROR_HTTP": self.road.http}
        )

    async def push(self, repo: str, workspace: Path, ref: str) -> bool:
        """Pushes HEAD to a ref by git alone. Returns whether the mirror took it."""
        return await self._run(
            ["git", "-C", str(workspace), "push", "--quiet", f"{self.road.git}/{repo}", f"HEAD:{ref}"], {}
        )

    def clear(self, workspace: Path) -> None:
        """Removes a workspace."""
        shutil.rmtree(workspace, ignore_errors=True)

    async def _run(self, argv: Sequence[str], env: Mapping[str, str]) -> bool:
        code, _ = await run_child(
            self.children, argv, env={**self.env, **env}, cwd=self.disk, deadline=DEADLINE, on_error=lambda said: None
        )
        return code == 0
