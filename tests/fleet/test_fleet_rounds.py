"""Rounds of work in which a node or a NATS server is killed, frozen, cut off, or loses its disk.

`FLEET_ROUNDS=50` does as many with each of four seeds, two hundred in all, and `FLEET_SEED` adds to the seeds. Without
`FLEET_ROUNDS`, one seed does a dozen, on nodes of which some tell that a turn is recorded once the fleet has it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.fleet import NODES
from tests.support.fleet_rounds import Storm
from tests.support.generate import generate_repository
from tests.support.nats import WHY_NOT
from tests.support.netns import Cable, why_no_cable

ROUNDS = int(os.environ.get("FLEET_ROUNDS", "12"))
SEEDS = [(1, "mixed"), (2, "async"), (3, "sync"), (4, "async")][: 4 if "FLEET_ROUNDS" in os.environ else 1]
"""What each storm begins with: a seed, and how durable recorded turns are."""
DURABILITY = {
    "mixed": {"a": "sync", "b": "async", "c": "sync"},
    "sync": dict.fromkeys(NODES, "sync"),
    "async": dict.fromkeys(NODES, "async"),
}
SEED = int(os.environ.get("FLEET_SEED", "0"))
HEAL_EVERY = 10
CUT_OFF = 60.0
"""Seconds for which nodes are cut off."""
EACH = 7.5
"""Seconds that a round takes at least meanwhile."""
FAULTS = ("kill-node", "kill-node", "kill-node", "freeze-node", "kill-node", "kill-server")
"""What happens round after round. Servers have time between, so that two of three are there but for a moment."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300 + 10 * ROUNDS),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "nats-server is there"),
]


@pytest.fixture
def small_bare(tmp_path: Path) -> Path:
    """A repository that is cloned in a moment."""
    return generate_repository(tmp_path / "small.git", files=6, commits=4, branches=1, tags=1)


@pytest.mark.parametrize(("seed", "durability"), SEEDS, ids=str)
def test_rounds(tmp_path: Path, small_bare: Path, seed: int, durability: str) -> None:
    """After each few rounds the nodes agree on all, no turn that was told is missing, and every log verifies."""
    with Storm(tmp_path, small_bare, SEED + seed, DURABILITY[durability]) as storm, storm.explained():
        began = time.monotonic()
        for number in range(ROUNDS):
            storm.round = number
            storm.work()
            kind = FAULTS[number % len(FAULTS)]
            if number % 15 == 8:
                kind = "lose-disk"
            elif kind == "kill-server" and number % 4 == 1:
                kind = "freeze-server"
            storm.fault(kind, storm.rng.choice(NODES), storm.rng.choice(storm.nats.servers))
            if number % HEAL_EVERY == HEAL_EVERY - 1 or number == ROUNDS - 1:
                storm.heal()
        took = time.monotonic() - began
        print(f"\n{ROUNDS} rounds in {took:.0f} s, {len(storm.ledger.turns)} turns told, {storm.faults}")
        assert len(storm.ledger.turns) > ROUNDS / 2, "hardly anything was recorded"
        storm.bring_everywhere(tmp_path / "replays")


def test_nodes_are_cut_off_for_a_minute(tmp_path: Path, small_bare: Path) -> None:
    """Every packet to and from them is lost, while others are killed and all go on; then they agree."""
    if reason := why_no_cable():
        pytest.skip(reason)
    durability, far = {"a": "sync", "b": "async", "c": "sync", "d": "async"}, ("c", "d")
    with Cable() as cable, Storm(tmp_path, small_bare, SEED + 9, durability, cable, far) as storm, storm.explained():
        storm.work(6)
        storm.heal()
        cut = time.monotonic()
        cable.cut()
        while time.monotonic() < cut + CUT_OFF:
            storm.work(2)
            storm.work(2, far)
            if storm.round % 3 == 0:
                storm.fault("kill-node", storm.rng.choice(("a", "b")), storm.nats.servers[0])
            storm.settle()
            storm.round += 1
            # More of the same would show no more.
            time.sleep(max(0.0, min(cut + EACH * storm.round, cut + CUT_OFF) - time.monotonic()))
        told = [turn.node for turn in storm.ledger.turns if turn.node in far and turn.began > cut]
        cable.mend()
        storm.heal()
        print(f"\n{len(storm.ledger.turns)} turns told, {len(told)} by the nodes that were cut off")
        assert "c" not in told, "what the fleet cannot have was told to be in it"
        assert told.count("d") > 1, "a node that was cut off recorded nothing"
        storm.work(6)
        storm.heal()
