"""Pushes of guests that know little: thin packs, and objects that upstream no longer shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, new_session, session_of
from tests.serving.conftest import Node
from tests.support.generate import add_commit, add_commits, force_push
from tests.support.gitutil import clean_env, git, run_process

TIPS = 500


def push_and_count(guest: Path, name: str, home: Path) -> tuple[int, str]:
    """Push with progress and trace; return how many objects travelled and what was traced."""
    trace = home / f"{name}.trace"
    env = clean_env(home, GIT_TRACE_PACKET=str(trace), GIT_TRACE=str(trace))
    argv = ["git", "push", "--progress", "--force", "origin", f"HEAD:{AGENTS}{name}"]
    done = run_process(argv, cwd=guest, env=env)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    total = re.search(r"Total (\d+) ", said)
    assert total, said
    return int(total[1]), trace.read_text()


def change_a_line(guest: Path) -> None:
    """Change one line of the README, in each guest another one, and commit."""
    readme = guest / "README.md"
    readme.write_text(readme.read_text() + f"one more line by {guest.name}\n")
    git("commit", "--quiet", "--all", "-m", "a line", cwd=guest)


@pytest.mark.slow
def test_a_guest_of_five_hundred_tips_ago_sends_a_handful_of_objects(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """A week of upstream commits later a one-line change is under ten objects, and no blob is fetched for it.

    The upstream moves tip by tip and is rewritten at the end, so that the guest's commit is on no branch.
    """
    node = make_node()
    shallow = node.guest(tmp_path / "shallow", "--depth=1")
    sparse = node.guest(tmp_path / "sparse", "--depth=1", "--filter=blob:none", "--sparse")
    start, upstream = node.tip, node.upstream.path(WIDGETS)
    for number in range(10):
        add_commits(
            upstream,
            "main",
            [{f"src/new-{number}.txt": f"{each}\n", "README.md": f"{number} {each}\n"} for each in range(TIPS // 10)],
        )
        node.serve.here("refresh", WIDGETS)
    force_push(upstream, "main", depth=TIPS)
    node.serve.here("refresh", WIDGETS)
    for guest in (shallow, sparse):
        name = new_session()
        change_a_line(guest)
        objects, trace = push_and_count(guest, name, tmp_path)
        assert 3 <= objects < 10
        assert "git-upload-pack" not in trace and "fetch>" not in trace, "the push fetched something first"
        row = session_of(node, name)
        assert row is not None and (row["base"], row["files_changed"], row["insertions"]) == (start, 1, 1)


@pytest.mark.slow
def test_a_guest_at_an_old_tip_sends_a_handful_of_objects(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """The same over one refresh with a forced push: the old tip is shown to the push as one that the mirror has."""
    node = make_node()
    guest = node.guest(tmp_path / "guest", "--depth=1", "--filter=blob:none", "--sparse")
    force_push(node.upstream.path(WIDGETS), "main", depth=2)
    node.serve.here("refresh", WIDGETS)
    change_a_line(guest)
    objects, trace = push_and_count(guest, new_session(), tmp_path)
    assert objects == 3 and "git-upload-pack" not in trace


@pytest.mark.slow
def test_blobs_of_a_tip_that_was_forced_away_are_still_fetched(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A guest without blobs reads its whole commit after upstream has dropped it, a blob of that commit alone too."""
    node = make_node()
    upstream = node.upstream.path(WIDGETS)
    add_commit(upstream, "main", {"src/only-here.txt": "only in the tip that goes\n"})
    node.serve.here("refresh", WIDGETS)
    guest = node.guest(tmp_path / "guest", "--depth=1", "--filter=blob:none", "--no-checkout")
    force_push(upstream, "main", depth=2)
    git("reflog", "expire", "--all", "--expire=now", cwd=upstream)
    git("gc", "--quiet", "--prune=now", cwd=upstream)
    node.serve.here("refresh", WIDGETS)
    assert git("show", "HEAD:src/only-here.txt", cwd=guest) == "only in the tip that goes"
    git("checkout", "--quiet", "--force", "HEAD", cwd=guest)
    assert (guest / "src" / "only-here.txt").exists()
