"""What is withdrawn, because it was not stored where it has to be, leaves the ref at what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from appliance.core.models import PushDecision, RefCommand
from appliance.core.recording.durability import Confirmations, ThisNodeAlone
from appliance.core.recording.turns import TurnRecorder
from tests.recording.conftest import AGENTS
from tests.recording.retained import Bench, retained
from tests.support.gitutil import clean_env, git, refs

bench = pytest.fixture(retained)
REF = f"{AGENTS}young"


@dataclass
class Pushes:
    """Pushes to one session that are not confirmed."""

    bench: Bench
    confirmations: Confirmations

    @property
    def tip(self) -> str:
        """Where the session's ref is."""
        return refs(self.bench.mirror)[REF]

    def push(self, name: str, commit: str = "") -> PushDecision:
        """Moves the ref as receive-pack does, to a new commit unless one is given."""
        old = self.tip
        commit = commit or git("commit-tree", f"{old}^{{tree}}", "-p", old, "-m", name, cwd=self.bench.mirror)
        env = clean_env(self.bench.mirror.parent, GIT_COMMITTER_EMAIL=name)
        git("-c", "core.logAllRefUpdates=always", "update-ref", REF, commit, old, cwd=self.bench.mirror, env=env)
        return PushDecision(name, self.bench.repo, "c", (RefCommand(old, commit, REF),), attempts=(1,))

    def withdraw(self, *pushes: PushDecision) -> None:
        """One after the other."""
        for each in pushes:
            self.bench.lab.run(self.confirmations.withdraw(each, {REF: "not stored"}))


@pytest.fixture
def pushes(bench: Bench) -> Pushes:
    """Those to the session `young`."""
    nowhere: Any = ThisNodeAlone()
    recorder = TurnRecorder(bench.stores.sessions, bench.lab.mirror)
    made = Pushes(bench, Confirmations(nowhere, recorder, bench.lab.mirror))
    # What the session has is known by its log too, as of every ref that a guest has pushed.
    made.push("p0")
    return made


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_pushes_that_went_on_from_each_other_are_all_put_back(pushes: Pushes, order: Sequence[int]) -> None:
    """Each came while the one before waited, and whichever gives up first, nothing of them is left."""
    before = pushes.tip
    made = [pushes.push(f"p{number}") for number in (1, 2, 3)]
    pushes.withdraw(*(made[number] for number in order))
    assert pushes.tip == before


def test_a_push_that_went_on_and_was_stored_stays(pushes: Pushes) -> None:
    """It has what the withdrawn one had."""
    withdrawn, stored = pushes.push("p1"), pushes.push("p2")
    pushes.withdraw(withdrawn)
    assert pushes.tip == stored.commands[0].new
    another = pushes.push("p3")
    pushes.withdraw(another)
    assert pushes.tip == stored.commands[0].new


def test_a_withdrawal_that_is_repeated_leaves_the_next_push_alone(pushes: Pushes) -> None:
    """The guest pushed the same commit again, as it was told to."""
    withdrawn = pushes.push("p1")
    pushes.withdraw(withdrawn)
    commit = withdrawn.commands[0].new
    again = pushes.push("p2", commit)
    pushes.withdraw(withdrawn)
    assert pushes.tip == commit
    pushes.withdraw(again)
    assert pushes.tip == withdrawn.commands[0].old
