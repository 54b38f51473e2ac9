"""Agents: each works off the plan of a session on a guest, and records every turn, with notes and a transcript."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.demo.content import Project, SessionPlan, TurnPlan
from appliance.demo.guests import DemoGuest

Pause = Callable[[], Awaitable[None]]
"""Waits as long as an agent thinks."""


@dataclass
class Agent:
    """Does the session of `project` again and again, each time under another name, at one guest and then another."""

    project: Project
    plan: SessionPlan
    guests: Sequence[DemoGuest]
    think: Pause
    _begun: int = field(default=0)

    async def work(self) -> None:
        """One session, or what of it succeeds. Its last turn is at another guest, as when a VM is gone.

        Every second one leaves out the last turn of the plan, so that two sessions of a repository can be compared.
        """
        self._begun += 1
        session = self.plan.name if self._begun == 1 else f"{self.plan.name}-{self._begun}"
        here, there = self.guests
        turns = self.plan.turns if self._begun % 2 else self.plan.turns[:-1]
        first, rest = (turns[:-1], turns[-1:]) if len(turns) > 1 else (turns, ())
        if await self._work_at(here, session, first, "") and rest:
            await self.think()
            await self._work_at(there, session, rest, f"session:{session}")

    async def _work_at(self, guest: DemoGuest, session: str, turns: Sequence[TurnPlan], want: str) -> bool:
        workspace = await guest.hydrate(self.project.name, want)
        if workspace is None:
            return False
        try:
            for turn in turns:
                await self.think()
                transcript = await asyncio.to_thread(self._edit, workspace, turn, guest.disk / "transcript.json")
                notes = {"model": self.plan.model, "task": self.plan.task}
                if not await guest.record(session, workspace, turn.message, notes, [transcript]):
                    return False
            return True
        finally:
            guest.clear(workspace)

    def _edit(self, workspace: Path, turn: TurnPlan, transcript: Path) -> Path:
        for edit in turn.edits:
            path = workspace / edit.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(edit.apply(path.read_text() if path.exists() else ""))
        said = [{"role": "user", "text": self.plan.task}, {"role": "agent", "text": turn.said}]
        transcript.write_text(json.dumps(said, indent=2) + "\n")
        return transcript
