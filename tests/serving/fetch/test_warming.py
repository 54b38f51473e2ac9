"""Warming: after a refresh the answers that guests will ask for are there before they do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.core.git.mirror import Mirror
from appliance.core.models import Health, Repo
from appliance.core.serving.fetch.warmer import KIT_SHAPES, Warmer
from appliance.core.serving.wire.v2 import FetchShape
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.serving.fetch.conftest import Counting, GatedFactory, GatedNode, a_cold_shape, status_of, wait_warm
from tests.serving.fetch.test_flight import ends, start_guest
from tests.serving.fetch.wire import ask, fetch_request
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until

KIT = (("--depth=1",), ("--depth=1", "--filter=blob:none"))
"""What the guest kit clones with."""


def move_tip(node: GatedNode, text: str) -> str:
    """Move the upstream's main, have it refreshed, and return the new tip."""
    tip = add_commit(node.upstream.path(WIDGETS), "main", {"moved.txt": text})
    node.serve.cli("refresh", WIDGETS)
    return tip


@pytest.mark.slow
def test_the_kits_clones_are_hits_after_a_refresh(gated: GatedFactory, tmp_path: Path) -> None:
    """Depth 1, and clones without blobs with their checkout: the first guest after a push waits for no upload-pack."""
    node = gated()
    for number, protocol in enumerate(("git", "http")):
        tip = move_tip(node, protocol)
        warmed = wait_warm(node.serve, tip=tip)
        assert (warmed["tip"], warmed["answers"], warmed["wanted"]) == (tip, 6, 6)
        packing, counting = node.gate.packing(), Counting(node.serve)
        for options in KIT:
            path = tmp_path / f"clone{number}{len(options)}"
            node.serve.clone(path, WIDGETS, *options, http=protocol == "http")
            assert git("rev-parse", "HEAD", cwd=path) == tip
            assert git("status", "--porcelain", cwd=path) == ""
        assert counting.since() == {"hits": 3}
        assert node.gate.packing() == packing


def test_warming_runs_at_low_priority(gated_node: GatedNode, tmp_path: Path) -> None:
    """What nobody waits for yet is nice to what somebody does."""
    node, own = gated_node, os.nice(0)
    gentle = min(19, own + 10)
    assert set(node.gate.priorities()[: status_of(node.serve)["warmed"][WIDGETS]["wanted"]]) <= {own, gentle}
    assert gentle in node.gate.priorities()
    node.serve.clone(tmp_path / "clone", WIDGETS, a_cold_shape())
    assert node.gate.priorities()[-1] == own


@pytest.mark.slow
def test_shapes_lately_seen_are_warmed_for_the_next_tip(gated: GatedFactory, tmp_path: Path) -> None:
    """Whatever guests cloned the tip with, and the checkout of a clone without blobs of the whole history."""
    node = gated()
    shapes = (
        ("--depth=3",),
        ("--filter=blob:none", "--single-branch"),
        ("--depth=1", "--filter=tree:0", "--no-checkout"),
    )
    for number, options in enumerate(shapes):
        node.serve.clone(tmp_path / f"before{number}", WIDGETS, *options)
    tip = move_tip(node, "seen")
    assert wait_warm(node.serve, tip=tip)["wanted"] == 6 + len(shapes) - 1
    counting = Counting(node.serve)
    for number, options in enumerate(shapes):
        node.serve.clone(tmp_path / f"after{number}", WIDGETS, *options)
    assert counting.since() == {"hits": 4}


@pytest.mark.slow
def test_what_hostile_guests_ask_for_does_not_crowd_out_the_rest(gated: GatedFactory, tmp_path: Path) -> None:
    """Only so many shapes are remembered, the newest of them."""
    node = gated()
    for depth in range(2, 22):
        ask(node.serve, WIDGETS, fetch_request(node.tip, "ofs-delta", f"deepen {depth}"))
    node.serve.clone(tmp_path / "before", WIDGETS, "--depth=2", "--no-tags")
    tip = move_tip(node, "crowd")
    assert wait_warm(node.serve, tip=tip)["wanted"] == 6 + 16
    counting = Counting(node.serve)
    node.serve.clone(tmp_path / "after", WIDGETS, "--depth=2", "--no-tags")
    assert counting.since() == {"hits": 1}


@pytest.mark.slow
def test_a_new_tip_supersedes_the_warming_of_the_old_one(gated: GatedFactory, tmp_path: Path) -> None:
    """What was being made for the old tip is ended, and the new one is warmed."""
    node = gated()
    node.gate.close()
    before = node.gate.packing()
    old = move_tip(node, "old")
    wait_until(lambda: node.gate.packing() - before, message="it is being warmed")
    assert status_of(node.serve)["warmed"][WIDGETS] == {"tip": old, "answers": 0, "wanted": 6}
    superseded = node.gate.packing() - before
    node.gate.open_for_others()
    new = move_tip(node, "new")
    wait_warm(node.serve, tip=new)
    wait_until(lambda: not superseded & set(node.serve.processes()), message="the old one is ended")
    node.gate.open()
    counting = Counting(node.serve)
    clone = node.serve.clone(tmp_path / "clone", WIDGETS, *KIT[1])
    assert git("rev-parse", "HEAD", cwd=clone) == new
    assert counting.since() == {"hits": 2}


@pytest.mark.slow
def test_a_guest_that_comes_while_it_is_warmed_joins(gated: GatedFactory, tmp_path: Path) -> None:
    """And keeps it alive when the tip moves on meanwhile."""
    node = gated()
    node.gate.close()
    before = node.gate.packing()
    old = move_tip(node, "old")
    wait_until(lambda: node.gate.packing() - before, message="it is being warmed")
    counting = Counting(node.serve)
    guest = start_guest(node, tmp_path / "clone", *KIT[0])
    wait_until(lambda: counting.since() == {"joined": 1}, message="it has joined")
    node.gate.open_for_others()
    new = move_tip(node, "new")
    wait_warm(node.serve, tip=new)
    assert guest.poll() is None
    node.gate.open()
    assert ends(guest) == (0, "")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == old


def test_the_registered_branch_is_what_is_warmed(gated_node: GatedNode, tmp_path: Path) -> None:
    """Not the upstream's HEAD, when the registry names another."""
    node, branch = gated_node, "release/1.0"
    node.serve.cli("add-repo", node.upstream.url(WIDGETS), "--name", "acme/other", "--branch", branch)
    tip = git("rev-parse", branch, cwd=node.mirror)
    wait_warm(node.serve, "acme/other", tip=tip)
    counting = Counting(node.serve)
    node.serve.clone(tmp_path / "clone", "acme/other", "--depth=1", f"--branch={branch}")
    assert counting.since() == {"hits": 1}


def test_a_large_tree_is_worked_out_in_threads(tmp_path: Path) -> None:
    """The shapes of its checkouts are ready when the engine gets them, so the event loop hashes no file list."""
    lab = Lab(tmp_path / "state")
    asked: list[tuple[FetchShape, bool]] = []

    async def open_answer(repo: Repo, shape: FetchShape, *, warming: bool) -> None:
        asked.append((shape, "_digest" in vars(shape)))

    async def warm(mirror: Mirror) -> None:
        await mirror.initialise("https://example.com/acme/widgets")
        files = "".join(f"100644 blob {number:040x}\t{number}\n" for number in range(1, 5001))
        tree = git("mktree", "--missing", cwd=mirror.path, input=files)
        tip = git("commit-tree", "-m", "many files", tree, cwd=mirror.path)
        engine, cache = SimpleNamespace(open_answer=open_answer), SimpleNamespace(unpin=lambda repo_id: None)
        warmer = Warmer(cast(Any, engine), cast(Any, cache), lab.mirror, lambda repo_id: Health(tip=tip))
        warmer.warm(lab.repo("https://example.com/acme/widgets"))
        async with asyncio.timeout(60):
            while len(asked) < len(KIT_SHAPES) + 2:
                await asyncio.sleep(0.005)
        await warmer.stop()

    lab.run(warm(lab.mirror()))
    lab.close()
    checkouts = asked[len(KIT_SHAPES) :]
    assert [shape.wants for shape, _ in checkouts] == [tuple(b"%040x" % number for number in range(1, 5001))] * 2
    assert all(ready for _, ready in checkouts)
