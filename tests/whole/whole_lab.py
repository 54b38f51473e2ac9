"""A platform whose one repository needs everything: three levels of submodules, one of them private, and LFS files."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.access.conftest import TOKEN, USER, lock, write_secret
from tests.support.gitutil import clean_env, git, wait_until
from tests.support.guests import add_guest
from tests.support.lfs_server import LfsServer, pointer_of
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import CURL, SETTLED, Guest
from tests.workspace.web import get

APP, CORE, DEEP, SECRET = "acme/app", "acme/core", "other/deep", "acme/secret"
PLACES = {"": APP, "libs/core": CORE, "libs/core/vendor/deep": DEEP, "libs/core/vendor/deep/inner": SECRET}
"""The repositories by where they are in the workspace."""
INNERMOST = "libs/core/vendor/deep/inner"
SUBMODULE_TOOLS = ("sed", "basename", "uname", "env")
"""What `git submodule`, a shell script, needs."""


def noise(seed: int, size: int) -> bytes:
    """Bytes that no compression makes smaller."""
    return random.Random(seed).randbytes(size)


class Platform:
    """The upstreams with their LFS server, and a node that follows them all."""

    def __init__(self, base: Path, big: int, **workspace: str | bool) -> None:
        self.base = base
        self.upstream = HttpUpstream(base / "upstream")
        self.lfs = LfsServer(base / "lfs", self.upstream)
        self.work = base / "work"
        self.objects = {
            (APP, "assets/model one.bin"): noise(1, big),
            (APP, "assets/data.bin"): noise(2, 4096),
            (CORE, "weights.bin"): noise(3, 70_000),
            (SECRET, "keys.bin"): noise(4, 5000),
        }
        for name in (SECRET, DEEP, CORE, APP):
            self._make(name)
        lock(self.upstream, SECRET)
        token = write_secret(base / "token", TOKEN)
        url = self.lfs.url
        self.token = ""
        """That of a guest who may read everything."""
        self.serve = Serve(
            base / "state",
            repos=[url(name) for name in (APP, CORE, DEEP, SECRET)],
            refresh=SETTLED,
            workspace={"submodules": True, "lfs": "content", **workspace},
            credentials=[{"url": url(SECRET), "token_file": str(token)}],
        )

    def _make(self, name: str) -> None:
        self.upstream.add(name)
        work = self.work / name
        work.mkdir(parents=True)
        git("init", "--quiet", "--initial-branch=main", cwd=work)
        files = {path: data for (repo, path), data in self.objects.items() if repo == name}
        (work / "README.md").write_text(f"{name}\n")
        (work / "tools").mkdir()
        (work / "tools" / "run.sh").write_text("#!/bin/sh\n")
        (work / "tools" / "run.sh").chmod(0o755)
        (work / "link").symlink_to("README.md")
        if files:
            (work / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
        for path, data in files.items():
            (work / path).parent.mkdir(exist_ok=True)
            (work / path).write_bytes(pointer_of(data))
            self.lfs.add(name, data)
        git("add", ".", cwd=work)
        for module, path, url in {
            APP: [(CORE, "libs/core", "../core")],
            CORE: [(DEEP, "vendor/deep", self.lfs.url(DEEP))],
            DEEP: [(SECRET, "inner", "../../acme/secret")],
        }.get(name, []):
            for key, value in {"path": path, "url": url}.items():
                git("config", "--file", ".gitmodules", f"submodule.{path}.{key}", value, cwd=work)
            git("add", ".", cwd=work)
            tip = git("rev-parse", "refs/heads/main", cwd=self.upstream.path(module))
            git("update-index", "--add", "--cacheinfo", f"160000,{tip},{path}", cwd=work)
        git("commit", "--quiet", "-m", f"{name} begins", cwd=work)
        git("push", "--quiet", str(self.upstream.path(name)), "main", cwd=work)

    @property
    def tip(self) -> str:
        """`main` of the repository that has everything."""
        return git("rev-parse", "refs/heads/main", cwd=self.upstream.path(APP))

    def start(self) -> None:
        """Starts the node, clones as a person does, waits for all that the node fetches, and ends the upstreams."""
        self.serve.start()
        for name in PLACES.values():
            self.serve.wait_for_repo(name, timeout=120)
        granted = {"repos": [APP, SECRET], "sessions": ["agent-*"], "token": True}
        self.token = add_guest(self.serve, "agent", **granted)["token"]
        self.person = self._clone_as_a_person(self.base / "person")
        for is_known in (True, False):
            wait_until(partial(self._tar_is_whole, is_known), message="a whole tar", timeout=300)
        self.upstream.refuse()
        self.lfs.close()

    def _tar_is_whole(self, is_known: bool) -> bool:
        found = get(f"{self.serve.http_url}/{APP}/workspace.tar", method="HEAD", **self._authorization(is_known))
        return found.status == 200 and not self.serve.status()["warnings"]

    def _clone_as_a_person(self, home: Path) -> Seen:
        """What somebody with the credential and git-lfs has."""
        home.mkdir()
        plain = self.lfs.url(SECRET)
        env = clean_env(
            home,
            GIT_CONFIG_GLOBAL=str(home / ".gitconfig"),
            GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0=f"url.{plain.replace('//', f'//{USER}:{TOKEN}@')}.insteadOf",
            GIT_CONFIG_VALUE_0=plain,
        )
        git("lfs", "install", "--skip-repo", cwd=home, env=env)
        top = home / "ws"
        git("clone", "--quiet", self.lfs.url(APP), str(top), cwd=home, env=env)
        git("submodule", "--quiet", "update", "--init", "--recursive", cwd=top, env=env)
        return seen(listing(top), top, lambda place, *words: git(*words, cwd=top / place, env=env))

    def guest(self, home: Path, *, has_lfs: bool, is_known: bool = True, tools: tuple[str, ...] | None = None) -> Guest:
        """A guest of the node, with git-lfs or without."""
        home.mkdir()
        kit = home / "guest.sh"
        kit.write_bytes(get(f"{self.serve.http_url}/guest.sh", **self._authorization(is_known)).body)
        env = {"GITMIRROR_DEADLINE": "100", "GITMIRROR_DRIVES": ""}
        if is_known:
            env["GITMIRROR_TOKEN"] = self.token
        guest = Guest(home, kit, "dash", tools if has_lfs else (*CURL, *SUBMODULE_TOOLS), env)
        if has_lfs:
            guest.git("lfs", "install", "--skip-repo", cwd=home)
        return guest

    def _authorization(self, is_known: bool) -> dict[str, Any]:
        return {"authorization": f"Bearer {self.token}"} if is_known else {}

    def close(self) -> None:
        """Ends everything."""
        self.serve.close()
        self.lfs.close()
        self.upstream.close()


def listing(top: Path, leave_out: Iterable[str] = (".git",)) -> dict[str, tuple[str, str]]:
    """Every file below a directory with its mode, and the hash of its contents or the target of a link."""
    found: dict[str, tuple[str, str]] = {}
    left_out = set(leave_out)
    for parent, directories, files in os.walk(top):
        directories[:] = [name for name in directories if name not in left_out]
        for name in [*files, *(each for each in directories if Path(parent, each).is_symlink())]:
            if name in left_out:
                continue
            path = Path(parent, name)
            status = path.lstat()
            what = os.readlink(path) if stat.S_ISLNK(status.st_mode) else hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(top))] = oct(status.st_mode), what
    return found


@dataclass(frozen=True)
class Seen:
    """What git says of a workspace and of each repository in it."""

    files: dict[str, tuple[str, str]]
    submodules: str
    repositories: dict[str, dict[str, str]]


Ask = Callable[..., str]
"""Runs git in one of the repositories, which is named by its place in the workspace."""


def seen(files: dict[str, tuple[str, str]], top: Path, ask: Ask) -> Seen:
    """What a person would compare of the workspace at `top`, after seeing that it is clean."""
    repositories = {}
    for place in PLACES:
        assert ask(place, "status", "--porcelain", "--ignore-submodules=none") == "", place
        assert ask(place, "diff") == "" and ask(place, "diff", "--cached") == "", place
        repositories[place] = {
            "head": ask(place, "rev-parse", "HEAD"),
            "branch": ask(place, "branch", "--show-current"),
            "files": ask(place, "ls-files", "-s"),
            "origin": ask(place, "config", "remote.origin.url"),
            "git": ask(place, "rev-parse", "--absolute-git-dir").removeprefix(str(top)),
            "submodules": ask(place, "config", "--get-regexp", "^submodule\\..*\\.(url|active)$")
            if place != INNERMOST
            else "",
        }
    return Seen(files, ask("", "submodule", "status", "--recursive").strip(), repositories)
