"""What goes on around a serve that is killed: an upstream that moves, guests that clone and push."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.generate import add_commit, delete_branch, force_push, rename_branch
from tests.support.gitutil import GitFailed, commit_files, git, git_result, refs
from tests.support.serve import Serve


@dataclass(frozen=True)
class Push:
    """One push that a guest tried: `seen` tells whether its git said that it was done."""

    repo: str
    ref: str
    oid: str
    seen: bool


class Worker(threading.Thread):
    """Does `step` again and again until it is stopped. An error of it is raised by `finish`."""

    def __init__(self, step: Callable[[], None], pause: float) -> None:
        super().__init__(daemon=True)
        self._step = step
        self._pause = pause
        self._enough = threading.Event()
        self._error: BaseException | None = None
        self.steps = 0

    def run(self) -> None:
        """The loop."""
        try:
            while not self._enough.wait(self._pause):
                self._step()
                self.steps += 1
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Let the step under way end, and raise what went wrong."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive(), "a worker does not end"
        if self._error is not None:
            raise self._error


@dataclass
class Mover:
    """Somebody who works on the upstream's repositories, force pushes and renames included."""

    repos: dict[str, Path]
    rng: random.Random
    count: int = 0

    def step(self) -> None:
        """Change one repository in one way."""
        self.count += 1
        path = self.repos[self.rng.choice(sorted(self.repos))]
        match self.rng.randrange(6):
            case 0 | 1:
                add_commit(path, "main", {f"file-{self.count}": f"{self.count}\n" * 20})
            case 2:
                force_push(path, "main", depth=self.rng.randint(1, 3))
            case 3:
                add_commit(path, f"topic-{self.count}", {"topic": f"{self.count}\n"})
            case 4:
                self._delete_one(path)
            case _:
                self._turn_name_into_directory(path)

    def _delete_one(self, path: Path) -> None:
        topics = [name for name in refs(path) if name.startswith("refs/heads/topic-")]
        if topics:
            delete_branch(path, self.rng.choice(topics).removeprefix("refs/heads/"))

    def _turn_name_into_directory(self, path: Path) -> None:
        if "refs/heads/foo" in refs(path):
            rename_branch(path, "foo", "foo/bar")
        elif "refs/heads/foo/bar" in refs(path):
            rename_branch(path, "foo/bar", "foo")
        else:
            add_commit(path, "foo", {"foo": "1\n"})


@dataclass
class Pusher:
    """A guest that records turn after turn, each under a ref of its own, with a second ref that it moves on."""

    serve: Serve
    repo: str
    work: Path
    name: str
    pushes: list[Push] = field(default_factory=list)
    count: int = 0

    def prepare(self) -> None:
        """Clone, while all is well."""
        self.serve.clone(self.work, self.repo, "--depth=1")

    def step(self) -> None:
        """Commit and push once. A push that fails is tried no second time."""
        self.count += 1
        oid = commit_files(self.work, {"work.txt": f"{self.name} {self.count}\n" * 50}, f"Turn {self.count}")
        refs_pushed = [f"refs/agents/{self.name}-{self.count}", f"refs/agents/{self.name}"]
        specs = [f"+HEAD:{ref}" for ref in refs_pushed]
        code, _, said = git_result("push", "--quiet", "origin", *specs, cwd=self.work, timeout=60)
        assert "fatal: internal" not in said
        self.pushes += [Push(self.repo, ref, oid, code == 0) for ref in refs_pushed]


@dataclass
class Cloner:
    """Guests that come and go. `url` is the mirror's."""

    url: str
    repos: list[str]
    place: Path
    rng: random.Random
    cloned: int = 0

    def step(self) -> None:
        """Clone one repository; a clone that git calls good is whole."""
        guest = self.place / "guest"
        how = self.rng.choice([(), ("--depth=1",), ("--depth=1", "--filter=blob:none"), ("--bare",)])
        try:
            git("clone", "--quiet", *how, f"{self.url}/{self.rng.choice(self.repos)}", str(guest), timeout=60)
        except GitFailed:
            pass
        else:
            self.cloned += 1
            if "--filter=blob:none" not in how:
                git("fsck", "--connectivity-only", cwd=guest)
        shutil.rmtree(guest, ignore_errors=True)
