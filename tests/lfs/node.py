"""A node whose upstream has LFS, and guests with git-lfs."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.access.conftest import SECRET, SETTLED, TOKEN, lock, write_secret
from tests.conftest import WIDGETS
from tests.support.generate import add_commit, create_repository
from tests.support.gitutil import clean_env, git, run_process
from tests.support.lfs_server import MEDIA, LfsServer, pointer_of
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream

DATA = {name: f"the contents of {name}\n".encode() * 20_000 for name in ("one.bin", "two.bin")}
HIDDEN = b"only the private repository has this\n" * 100
ELSEWHERE = "acme/elsewhere"
"""A repository whose .lfsconfig names another LFS server."""
ATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n"


def needs_git_lfs() -> None:
    """Skips the test where git-lfs is missing."""
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed")


@dataclass(frozen=True)
class LfsNode:
    """A running appliance, its upstream, and the LFS server in front of that."""

    serve: Serve
    upstream: HttpUpstream
    lfs: LfsServer
    place: Path

    def guest(self, name: str, **env: str) -> dict[str, str]:
        """The environment of a guest with git-lfs."""
        home = self.place / name
        home.mkdir(exist_ok=True)
        config = home / ".gitconfig"
        env = clean_env(home, GIT_CONFIG_GLOBAL=str(config), **env)
        if not config.exists():
            git("lfs", "install", env=env)
        return env

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Sends one request to the guests' HTTP port: the status, the headers, the body."""
        connection = http.client.HTTPConnection(self.serve.http_url.removeprefix("http://"), timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Accept": MEDIA, "Content-Type": MEDIA, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def token(self, repo: str) -> str:
        """A read token."""
        issued = json.loads(self.serve.here("token", "issue", "--repo", repo, "--ttl", "1h", "--json"))
        return str(issued["token"])

    def batch(self, path: str, *pointers: tuple[str, int], **headers: str) -> tuple[int, dict[str, Any]]:
        """What a batch request for objects is answered."""
        objects = [{"oid": oid, "size": size} for oid, size in pointers]
        body = {"operation": "download", "transfers": ["x", "basic"], "objects": objects}
        status, found, data = self.ask("POST", f"{path}/info/lfs/objects/batch", body, headers)
        assert status == 307 or found["content-type"] == MEDIA, found
        return status, json.loads(data)


def add_repository(
    upstream: HttpUpstream, lfs: LfsServer, name: str, files: Mapping[str, bytes], **more: bytes
) -> None:
    """An upstream repository with LFS files."""
    path = create_repository(upstream.path(name))
    pointers = {file: pointer_of(data) for file, data in files.items()}
    add_commit(path, "main", {".gitattributes": ATTRIBUTES, **pointers, **more})
    for data in files.values():
        lfs.add(name, data)


@contextmanager
def lfs_node(
    place: Path,
    cache: Mapping[str, Value] | None = None,
    serve: Mapping[str, Value] | None = None,
    workspace: Mapping[str, Value] | None = None,
) -> Iterator[LfsNode]:
    """A node that mirrors an open repository and a private one, both with LFS."""
    token_file = write_secret(place / "token", TOKEN + "\n")
    with HttpUpstream(place / "upstream") as upstream, LfsServer(place / "lfs", upstream) as lfs:
        add_repository(upstream, lfs, WIDGETS, DATA)
        add_repository(upstream, lfs, SECRET, {"hidden.bin": HIDDEN})
        named = f"[lfs]\n\turl = http://127.0.0.1:{lfs.port}/objects-of/elsewhere/info/lfs\n".encode()
        add_repository(upstream, lfs, ELSEWHERE, {"there.bin": HIDDEN}, **{".lfsconfig": named})
        lfs.path(ELSEWHERE, next(iter(lfs.place.joinpath("acme+elsewhere").iterdir())).name).unlink()
        lfs.add("objects-of/elsewhere", HIDDEN)
        lock(upstream, SECRET)
        with Serve(
            place / "state",
            repos=[lfs.url(name) for name in (WIDGETS, SECRET, ELSEWHERE)],
            refresh=SETTLED,
            cache=cache or {},
            credentials=[{"url": lfs.url(SECRET), "token_file": str(token_file)}],
            serve=serve or {},
            workspace=workspace or {},
        ).start() as running:
            for name in (WIDGETS, SECRET, ELSEWHERE):
                running.wait_for_repo(name)
            lfs.forget()
            yield LfsNode(running, upstream, lfs, place)


def contents(work: Path) -> dict[str, bytes]:
    """The LFS files of a work tree."""
    return {path.name: path.read_bytes() for path in work.glob("*.bin")}


def run_git(*words: str, env: Mapping[str, str], cwd: Path | None = None) -> tuple[int, str]:
    """Runs git as a guest; returns the exit code and everything it said."""
    done = run_process(["git", *words], env=env, cwd=cwd, timeout=90)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")
