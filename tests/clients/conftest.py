"""Other git clients, as `scripts/get_clients.sh` leaves them, and a node that they all talk to."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.access.conftest import TOKEN, lock, write_secret
from tests.conftest import WIDGETS
from tests.serving.conftest import SETTLED
from tests.support.generate import add_commit
from tests.support.gitutil import clean_env, git, kill_group, run_process
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

PROGRAMS = Path(__file__).with_name("programs")
# Read now, because a fixture takes these variables away from each test.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
GOT = Path(os.environ.get("GITMIRROR_CLIENTS") or _CACHE / "gitmirror" / "clients").absolute()
"""Where `scripts/get_clients.sh` leaves the clients."""


@dataclass(frozen=True)
class Said:
    """How a client ended, and everything that its user could read."""

    code: int
    text: str


@dataclass(frozen=True)
class Client:
    """A git client, and how it talks: over git:// or HTTP, in which version of git's protocol (None: as it likes).

    `argv` runs git itself, or a program that takes `clone URL DIR DEPTH`, `fetch DIR` and `push DIR REFSPEC`. A `$HOME`
    in it is the test's.
    """

    name: str
    road: str
    argv: tuple[str, ...]
    version: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    """The file of `programs` from which `scripts/get_clients.sh` compiled the program."""
    kept: Kept | None = None
    """Where its program is left running, if it is a library that takes longer to load than to do anything."""

    @property
    def id(self) -> str:
        """Of its tests."""
        return f"{self.name}-{self.road}" + ("" if self.version is None else f"-v{self.version}")

    @property
    def missing(self) -> str | None:
        """Why there is no such client here; None if there is."""
        if self.name == "dulwich":
            return None
        if not (GOT / self.name / "version").exists():
            return f"{self.name} is not in {GOT}: scripts/get_clients.sh gets it"
        if self.name == "pygit2" and not list(GOT.glob(f"pygit2/lib/pygit2/*{sysconfig.get_config_var('EXT_SUFFIX')}")):
            return f"pygit2 in {GOT} is for another Python: scripts/get_clients.sh makes it anew"
        if self.source and (GOT / self.name / "program").read_bytes() != (PROGRAMS / self.source).read_bytes():
            return f"{self.name} in {GOT} is of another {self.source}: scripts/get_clients.sh makes it anew"
        return None

    def clone(self, url: str, directory: Path, depth: int = 0) -> Said:
        """Clone everything, or so many commits of the default branch."""
        if self._is_git:
            return self.run("clone", *([f"--depth={depth}"] if depth else []), url, str(directory))
        return self.run("clone", url, str(directory), str(depth))

    def fetch(self, directory: Path) -> Said:
        """Fetch what is new from origin."""
        return self.run("-C", str(directory), "fetch") if self._is_git else self.run("fetch", str(directory))

    def push(self, directory: Path, refspec: str) -> Said:
        """Push to origin."""
        if self._is_git:
            return self.run("-C", str(directory), "push", "origin", refspec)
        return self.run("push", str(directory), refspec)

    @property
    def _is_git(self) -> bool:
        return self.name in ("git-oldest", "git-newest")

    def run(self, *args: str) -> Said:
        """Run it with these arguments."""
        if self.kept is not None:
            return self.kept.ask(self, args)
        argv, env = self.command(Path(os.environ["HOME"]))
        done = run_process([*argv, *args], env=env, timeout=120)
        return Said(done.returncode, (done.stdout + done.stderr).decode(errors="replace"))

    def command(self, home: Path) -> tuple[list[str], dict[str, str]]:
        """The first words and the environment of its program, with this home and the right version there."""
        # JGit knows no other place.
        config = home / ".gitconfig"
        config.write_text("" if self.version is None else f"[protocol]\n\tversion = {self.version}\n")
        env = clean_env(home, GIT_CONFIG_GLOBAL=str(config), **self.env)
        return [each.replace("$HOME", str(home)) for each in self.argv], env


class Kept:
    """The programs of clients that do one thing after another, as an editor or a build server does.

    Each reads the words of an action from a line, separated by tabs, and prints a line with a NUL and the exit code
    after what its user could read.
    """

    def __init__(self, homes: Path) -> None:
        self._homes = homes
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def ask(self, client: Client, words: Sequence[str], timeout: float = 120) -> Said:
        """What the client did. If it does not end in time its program is killed, and the next action has a new one."""
        key = f"{client.id} {sorted(client.env.items())}"
        process = self._running.get(key) or self._start(client)
        self._running[key] = process
        try:
            return self._answer(process, "\t".join(words), timeout)
        except BaseException:
            kill_group(self._running.pop(key))
            raise

    def close(self) -> None:
        """End all programs."""
        for process in self._running.values():
            kill_group(process)
        self._running.clear()

    def _start(self, client: Client) -> subprocess.Popen[bytes]:
        home = self._homes / str(len(self._running))
        home.mkdir(exist_ok=True)
        argv, env = client.command(home)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0, start_new_session=True
        )

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], line: str, timeout: float) -> Said:
        assert process.stdin is not None
        assert process.stdout is not None
        os.write(process.stdin.fileno(), f"{line}\n".encode())
        said, ends = b"", time.monotonic() + timeout
        while not (ended := re.search(rb"\0(\d+)\n$", said)):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"not done after {timeout} s: {said.decode(errors='replace')}"
            read = os.read(process.stdout.fileno(), 65536)
            assert read, f"the program has ended: {said.decode(errors='replace')}"
            said += read
        return Said(int(ended[1]), said[: ended.start()].decode(errors="replace"))


def _git(name: str) -> list[Client]:
    argv = (str(GOT / name / "bin" / "git"),)
    return [Client(name, road, argv, version) for road in ("git", "http") for version in (0, 1, 2)]


def _python(name: str, program: str) -> list[Client]:
    argv, env = (sys.executable, str(PROGRAMS / program)), {"PYTHONPATH": f"{GOT / name / 'lib'}:{ROOT}"}
    return [Client(name, road, argv, env=env) for road in ("git", "http")]


def _jgit() -> list[Client]:
    folder = GOT / "jgit"
    quick = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    argv = ("java", *quick, "-Duser.home=$HOME", "-cp", f"{folder}/classes:{folder}/lib/*", "JgitClient")
    # Java takes the encoding of file names from the locale. JGit measures the clock of the file system unless it finds
    # there what an earlier one has measured, and that is two thirds of the time of a clone.
    env = {"LC_ALL": "C.UTF-8", "XDG_CONFIG_HOME": str(folder / "measured")}
    return [
        Client("jgit", road, argv, version, env, "JgitClient.java") for road in ("git", "http") for version in (0, 2)
    ]


CLIENTS = [
    *_git("git-oldest"),
    *_git("git-newest"),
    *_python("dulwich", "dulwich_client.py"),
    *_python("pygit2", "pygit2_client.py"),
    Client(
        "isomorphic-git",
        "http",
        ("node", str(PROGRAMS / "isomorphic.cjs")),
        env={"NODE_PATH": str(GOT / "isomorphic-git" / "node_modules")},
    ),
    *_jgit(),
    *(Client("go-git", road, (str(GOT / "go-git" / "client"),), source="gogit.go") for road in ("git", "http")),
]
"""Each client over each protocol that it speaks."""
LIBRARIES = ("dulwich", "pygit2", "isomorphic-git", "jgit")
"""Those whose programs are left running: loading the library is most of what an action takes."""


@dataclass(frozen=True)
class Hub:
    """A running appliance and its upstream, which it asks only when told to."""

    serve: Serve
    upstream: HttpUpstream

    @property
    def mirror(self) -> Path:
        """The bare mirror of `acme/widgets`."""
        return self.serve.mirror(WIDGETS)

    def url(self, client: Client, repo: str = WIDGETS) -> str:
        """Of a repository, for this client."""
        return f"{self.serve.git_url if client.road == 'git' else self.serve.http_url}/{repo}"

    def tip(self, ref: str = "refs/heads/main") -> str:
        """The commit that a ref of the mirror is at; empty if there is no such ref."""
        return git("for-each-ref", "--format=%(objectname)", ref, cwd=self.mirror)

    def move(self, text: str) -> str:
        """Add a commit to the upstream's main, let the mirror follow, and return its id."""
        add_commit(self.upstream.path(WIDGETS), "main", {"moved.txt": text})
        call(Layout(self.serve.state), "POST", f"/v1/repos/{WIDGETS}/refresh", timeout=60.0)
        return self.tip()


@pytest.fixture(scope="module")
def hub_of_clients(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Hub]:
    """A node that the tests of a module share."""
    base = tmp_path_factory.mktemp("clients")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            yield Hub(serve, upstream)


@pytest.fixture(scope="module")
def private_hub(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Hub]:
    """A node that mirrors `acme/widgets` with a credential, so that guests need a read token."""
    base = tmp_path_factory.mktemp("private")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        lock(upstream, WIDGETS)
        url, secret = upstream.url(WIDGETS), write_secret(base / "token", TOKEN)
        entries = [{"url": url, "token_file": str(secret)}]
        with Serve(base / "state", repos=[url], refresh=SETTLED, credentials=entries).start() as serve:
            serve.wait_for_repo(WIDGETS)
            yield Hub(serve, upstream)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """The programs that the tests of a module share."""
    programs = Kept(tmp_path_factory.mktemp("homes"))
    yield programs
    programs.close()


@pytest.fixture(params=CLIENTS, ids=[client.id for client in CLIENTS])
def client(request: pytest.FixtureRequest, kept: Kept) -> Client:
    """Each client over each protocol. Skips the test if there is no such client on this machine."""
    found: Client = request.param
    if found.missing:
        pytest.skip(found.missing)
    return replace(found, kept=kept) if found.name in LIBRARIES else found
