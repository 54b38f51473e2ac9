"""A node with snapshots, and guests that run the kit in a shell of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import clean_env, git, run_process, wait_until
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream
from tests.workspace.web import get

ROUNDS = int(os.environ.get("WORKSPACE_ROUNDS", "1"))
"""By how much the rounds of races, kills and random histories are multiplied; see CONTRIBUTING.md."""
SETTLED = {"interval": "1h", "stale_after": "1d"}
"""`[refresh]` of a node that has no reason to ask its upstream while a test runs."""
SHELLS = ("dash", "busybox", "bash")
EVERY_SHELL = (*SHELLS, "mksh")
"""With one whose traps and job control are of another family; a test skips what is not installed."""
SHELL_WORDS = {"busybox": "busybox sh", "bash": "bash --posix"}
"""How a shell is called, where that is not its name."""
ESSENTIAL = ("git", "mkdir", "mv", "rm", "rmdir", "sleep", "cat", "date")
"""What the kit may count on in every guest, besides a shell."""


@dataclass(frozen=True)
class Result:
    """What one run of the kit left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stdout."""
        return self.out.splitlines()[-1] if self.out else ""

    def hydrated(self, via: str) -> str:
        """Assert that the workspace came from `via` and that this is all that stdout says; return the commit."""
        assert self.code == 0, f"ended with {self.code}: {self.out}{self.err}"
        words = self.out.split()
        assert self.out.count("\n") == 1, self.out
        assert words[:2] == ["hydrated", f"via={via}"], f"{self.out}{self.err}"
        key, _, commit = words[2].partition("=")
        assert key == "commit" and len(commit) == 40
        assert words[3].startswith("ms=") and words[3][3:].isdigit() and len(words) == 5
        assert words[4] in ("history=full", "history=trees", "history=tip")
        return commit

    def recorded(self, session: str, code: int = 0) -> str:
        """Assert that the turn was recorded and that this is all that stdout says; return the commit.

        `code` 3: something could not be kept.
        """
        assert self.code == code, f"ended with {self.code}: {self.out}{self.err}"
        start = f"recorded ref=refs/agents/{session} commit="
        assert self.out.startswith(start) and self.out.count("\n") == 1, f"{self.out}{self.err}"
        return self.out.removeprefix(start).strip()


def shell_argv(words: str) -> list[str]:
    """The command of a shell, `busybox sh`, with its path; skips the test where there is none."""
    name, *rest = words.split()
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}")
    return [found, *rest]


def skip_where_the_shell_has_tools(shell: str) -> None:
    """Skips a test of a guest without tools where the shell has its own, as that of Debian's busybox-static does."""
    argv = [*shell_argv(SHELL_WORDS.get(shell, shell)), "-c", "command -v wget || command -v curl"]
    if run_process(argv, env={"PATH": "/nonexistent"}).returncode == 0:
        pytest.skip(f"the shell of this {shell} has wget and tar built in")


@dataclass
class Guest:
    """A machine with a HOME of its own, a kit, a shell, and only the named tools on its PATH (None: all there are)."""

    home: Path
    kit: Path
    shell: str = "dash"
    tools: tuple[str, ...] | None = None
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The whole environment. It has no identity for commits."""
        names = [f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL", "DATE")]
        base = clean_env(self.home, GIT_CONFIG_GLOBAL=None, GITMIRROR_DRIVES=None, **dict.fromkeys(names))
        if self.tools is not None:
            base["PATH"] = str(self._path())
        return base | self.env

    def run(self, script: str, *, cwd: Path | None = None, timeout: float = 60) -> Result:
        """Run a script in which the kit was sourced, under `set -eu`."""
        whole = f"set -eu\n. '{self.kit}'\n{script}\n"
        argv = shell_argv(SHELL_WORDS.get(self.shell, self.shell))
        done = run_process([*argv, "-c", whole], cwd=cwd or self.home, env=self.environment(), timeout=timeout)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace"))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run the kit as a program of its own, in a session of its own, with pipes for stdout and stderr."""
        argv = [*shell_argv(SHELL_WORDS.get(self.shell, self.shell)), str(self.kit), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, cwd=self.home, env=self.environment(), stdout=pipe, stderr=pipe, start_new_session=True
        )

    def hydrate(self, dest: Path | str, want: str = "", *, repo: str = WIDGETS, timeout: float = 60) -> Result:
        """`gitmirror_hydrate`."""
        words = [repo, str(dest), *([want] if want else [])]
        return self.run("gitmirror_hydrate " + " ".join(map(quote, words)), timeout=timeout)

    def record(self, session: str, place: Path, *, timeout: float = 60) -> Result:
        """`gitmirror_record`."""
        return self.run(f"gitmirror_record {quote(session)} {quote(str(place))}", timeout=timeout)

    def with_(self, **env: object) -> Guest:
        """The same guest with more environment."""
        return Guest(self.home, self.kit, self.shell, self.tools, self.env | {k: str(v) for k, v in env.items()})

    def git(self, *args: str, cwd: Path) -> str:
        """Run git as this guest does by hand."""
        return git(*args, cwd=cwd, env=self.environment())

    def _path(self) -> Path:
        tools = self.home / "bin"
        tools.mkdir(exist_ok=True)
        for tool in (*ESSENTIAL, *(self.tools or ())):
            name, _, by = tool.partition("=")
            target = shutil.which(by or name)
            if target is None:
                pytest.skip(f"there is no {by or name}")
            if not (tools / name).exists():
                (tools / name).symlink_to(target)
        return tools


CURL = ("curl", "tar", "timeout")
BUSYBOX = ("wget=busybox", "tar=busybox", "timeout=busybox")
GNU_WGET = ("wget", "tar")
NOTHING: tuple[str, ...] = ()


def quote(word: str) -> str:
    """One word for a shell."""
    return "'" + word.replace("'", "'\\''") + "'"


@dataclass(frozen=True)
class Node:
    """A running appliance, its upstream, and guests of it. It refreshes when told."""

    serve: Serve
    upstream: HttpUpstream

    @property
    def tip(self) -> str:
        """`main` upstream."""
        return git("rev-parse", "refs/heads/main", cwd=self.upstream.path(WIDGETS))

    def tar_url(self, branch: str | None = None) -> str:
        """Of `acme/widgets`."""
        return f"{self.serve.http_url}/{WIDGETS}/workspace.tar" + (f"?ref={branch}" if branch else "")

    def refresh(self) -> None:
        """Follow the upstream now."""
        self.serve.here("refresh", WIDGETS)

    def wait_for_snapshot(self, commit: str | None = None) -> str:
        """Wait until the followed branch's snapshot is at `commit` (default: the upstream's tip); return it."""
        commit = commit or self.tip
        wait_until(
            lambda: get(self.tar_url(), method="HEAD").headers.get("x-gitmirror-commit") == commit,
            message=f"a snapshot of {commit}",
        )
        return commit

    def guest(self, home: Path, *, shell: str = "dash", tools: tuple[str, ...] | None = None, **env: str) -> Guest:
        """A guest whose HOME is made at `home`, with this node's kit."""
        home.mkdir(parents=True, exist_ok=True)
        kit = home / "guest.sh"
        kit.write_bytes(get(f"{self.serve.http_url}/guest.sh").body)
        # Drives of other tests are for these alone.
        return Guest(home, kit, shell, tools, {"GITMIRROR_DEADLINE": "20", "GITMIRROR_DRIVES": "", **env})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that all tests of a module share: none may change more than its own sessions."""
    base = tmp_path_factory.mktemp("node")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            made = Node(serve, upstream)
            made.wait_for_snapshot()
            yield made


@pytest.fixture
def make_node(serve_factory: ServeFactory, upstream: HttpUpstream) -> Callable[..., Node]:
    """Make a node of this test alone; arguments are sections of its config."""

    def make(**sections: Mapping[str, Value]) -> Node:
        serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, **sections).start()  # type: ignore[arg-type]
        serve.wait_for_repo(WIDGETS)
        return Node(serve, upstream)

    return make


@pytest.fixture
def own_node(make_node: Callable[..., Node]) -> Node:
    """A node of this test alone, its snapshot ready."""
    made = make_node()
    made.wait_for_snapshot()
    return made
