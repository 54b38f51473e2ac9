"""A hundred agents at once, while everything else goes on."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.recording.conftest import AGENTS, TURNS, Book
from tests.serving.conftest import wait_settled
from tests.support.generate import add_commit, force_push
from tests.support.gitutil import clean_env, commit_files, fsck, git, refs
from tests.support.upstream import HttpUpstream

AGENTS_AT_ONCE = int(os.environ.get("CROWD_AGENTS", "100"))
REPOS = [WIDGETS, *(f"acme/other-{number}" for number in range(4))]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_agents_record_at_once_in_five_repositories(
    serve_factory: ServeFactory, upstream: HttpUpstream, generated_bare: Path, tmp_path: Path
) -> None:
    """Refreshes, forced pushes upstream and packing run meanwhile: each applied push is in table, log and mirror."""
    for name in REPOS[1:]:
        upstream.add(name, generated_bare)
    serve = serve_factory(
        repos=[upstream.url(name) for name in REPOS], refresh={"interval": "2s", "stale_after": "1h"}
    ).start()
    guests: dict[str, Path] = {}
    for name in REPOS:
        serve.wait_for_repo(name, timeout=60)
        guests[name] = serve.clone(tmp_path / name.replace("/", "-"), name, "--depth=1")
        commit_files(guests[name], {"turn.txt": f"{name}\n"}, "a turn")
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(1.0):
            for name in REPOS:
                add_commit(upstream.path(name), "main", {"moved.txt": f"{name}\n"})
                force_push(upstream.path(name), "main", depth=2)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        pushes = []
        for number in range(AGENTS_AT_ONCE):
            name = REPOS[number % len(REPOS)]
            argv = ["git", "push", "--quiet", "origin", f"HEAD:{AGENTS}s{number}"]
            pushes.append(subprocess.Popen(argv, cwd=guests[name], env=clean_env(tmp_path), stderr=subprocess.PIPE))
        told = {number: push.communicate(timeout=200)[1] for number, push in enumerate(pushes)}
    finally:
        stop.set()
        mover.join()
    assert [told[number] for number, push in enumerate(pushes) if push.returncode] == []
    entries = wait_settled(serve, timeout=60)
    applied = {entry["id"]: entry for entry in entries if entry["outcome"] == "applied"}
    assert sorted(entry["session"] for entry in applied.values()) == sorted(f"s{n}" for n in range(AGENTS_AT_ONCE))
    with Book(serve) as book:
        rows = {(row["repo"], row["session"]): row for row in book.stores.sessions.all()}
        assert book.stores.audit.verify().broken is None
    assert {key: row["tip"] for key, row in rows.items()} == {
        (entry["repo"], entry["session"]): entry["new"] for entry in applied.values()
    }
    assert serve.terminate() == 0
    for name in REPOS:
        found = refs(serve.mirror(name))
        for number, entry in applied.items():
            if entry["repo"] == name:
                assert found[f"{TURNS}{number}"] == found[entry["ref"]] == entry["new"]
        fsck(serve.mirror(name))
    serve.start()
    for name in REPOS:
        tip = git("rev-parse", "HEAD", cwd=guests[name])
        fresh = tmp_path / f"fresh-{name.replace('/', '-')}"
        git("init", "--quiet", str(fresh))
        git("fetch", "--quiet", "--depth=1", f"{serve.git_url}/{name}", tip, cwd=fresh)
