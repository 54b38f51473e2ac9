"""A node whose state directory is on a small disk of its own, with guests that never stop fetching and pushing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.gitutil import commit_files, git, git_result, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

MIB = 2**20
REPO = "acme/large"
BRANCHES = tuple(f"b{number}" for number in range(6))
SETTLED = {"interval": "1h", "stale_after": "1d"}


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """An ext4 file system of this size at `place`, in a sparse file. Needs root and loop devices."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("making a disk needs root and e2fsprogs")
    image = place.with_name(f"{place.name}.img")
    place.mkdir(parents=True)
    for argv in (
        ["truncate", "-s", size, str(image)],
        ["mkfs.ext4", "-q", "-m0", str(image)],
        ["mount", "-o", "loop", str(image), str(place)],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{argv[0]}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        image.unlink()


def make_upstream(root: Path, size: int) -> HttpUpstream:
    """An upstream with `acme/large`: `main` and BRANCHES, each with a file of its own of `size` random bytes."""
    work = root / "work"
    git("init", "--quiet", "--initial-branch=main", str(work))
    # Random bytes only cost time to compress.
    git("config", "core.compression", "0", cwd=work)
    commit_files(work, {"README": "large\n", "main.bin": os.urandom(size)}, "main")
    for branch in BRANCHES:
        git("switch", "--quiet", "--create", branch, "main", cwd=work)
        commit_files(work, {f"{branch}.bin": os.urandom(size)}, branch)
    git("switch", "--quiet", "main", cwd=work)
    git("clone", "--quiet", "--bare", "--config=core.compression=0", str(work), str(root / "bare.git"))
    upstream = HttpUpstream(root / "upstream")
    upstream.add(REPO, root / "bare.git")
    return upstream


@dataclass
class Traffic:
    """Guests that fetch and push, one after the other, until they are stopped, and what failed of that."""

    serve: Serve
    place: Path
    failures: list[str] = field(default_factory=list)
    done: int = 0
    turns: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Traffic:
        git("clone", "--quiet", "--depth=1", f"{self.serve.git_url}/{REPO}", str(self.place / "guest"))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        guest, number = self.place / "guest", 0
        while not self._stop.is_set():
            number += 1
            fresh = self.place / f"clone-{number}"
            code, _, said = git_result("clone", "--quiet", "--depth=1", f"{self.serve.git_url}/{REPO}", str(fresh))
            shutil.rmtree(fresh, ignore_errors=True)
            if code:
                self.failures.append(f"clone {number}: {said}")
            commit = commit_files(guest, {"turn.txt": f"{number}\n"}, f"turn {number}")
            code, _, said = git_result("push", "--quiet", "origin", f"HEAD:refs/agents/s{number}", cwd=guest)
            if code:
                self.failures.append(f"push {number}: {said}")
            else:
                self.turns.append(commit)
            self.done += 1
            self._stop.wait(0.8)

    def go_on(self) -> None:
        """Wait until a few more guests came, and require that all got what they wanted."""
        before = self.done
        wait_until(lambda: self.failures or self.done > before + 2, timeout=60, message="guests come")
        assert not self.failures, f"{self.failures}\n{self.serve.log()}"


@dataclass
class SmallNode:
    """A node on a small disk."""

    serve: Serve
    upstream: HttpUpstream
    traffic: Traffic

    def storage(self) -> dict[str, Any]:
        """`storage` of `status --json`, as measured now."""
        return dict(self.serve.status()["storage"])

    def settled(self, look: Callable[[dict[str, Any]], bool], message: str) -> dict[str, Any]:
        """Wait until the storage is so, while guests come and go."""

        def is_so() -> dict[str, Any] | None:
            found = self.storage()
            return found if look(found) else None

        found = wait_until(is_so, timeout=150, interval=0.25, message=f"{message}\n{self.serve.log()[-4000:]}")
        self.traffic.go_on()
        return found

    def keeps_budget(self) -> dict[str, Any]:
        """Wait until something was removed and the state directory is within its budget."""
        return self.settled(
            lambda found: found["removed"]["count"] and found["used"] <= found["budget"], "the budget is kept"
        )

    def removals(self, words: str) -> list[str]:
        """The lines of the log about what was removed."""
        return [line for line in self.serve.log().splitlines() if f": removed {words}" in line]


@contextlib.contextmanager
def small_node(
    tmp_path: Path,
    *,
    disk: str,
    size: int,
    budget: str,
    snapshots: bool = True,
    prepare: Callable[[Path], object] | None = None,
) -> Iterator[SmallNode]:
    """A node with `[storage] budget` on a disk of this size, whose repository has files of `size` bytes.

    `prepare` changes the state directory, in which the repository is already, before the node starts once more.
    """
    tmp_path.joinpath("guests").mkdir()
    with (
        small_disk(tmp_path / "disk", disk) as place,
        make_upstream(tmp_path, size) as upstream,
        Serve(
            place / "state",
            repos=[upstream.url(REPO)],
            refresh=SETTLED,
            storage={"budget": budget},
            workspace={"enabled": snapshots},
        ) as serve,
    ):
        serve.start()
        serve.wait_for_repo(REPO)
        if prepare is not None:
            serve.terminate()
            prepare(serve.state)
            serve.start()
            serve.wait_for_repo(REPO)
        with Traffic(serve, tmp_path / "guests") as traffic:
            yield SmallNode(serve, upstream, traffic)
            traffic.go_on()
        for commit in traffic.turns:
            assert git("cat-file", "-t", commit, cwd=serve.mirror(REPO)) == "commit"
