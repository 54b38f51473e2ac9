"""One bare mirror on disk: create, configure, ask the upstream, fetch, anchors, HEAD.

A mirror is full and bare. Private refs live below `refs/gitmirror/`, agents' below `refs/agents/`; the
refspecs name branches and tags only, so prune can touch neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import UsageError
from appliance.core.git.command import Git, GitError, write_atomically
from appliance.core.git.ref_lists import (
    FOLLOWED,
    anchoring,
    beside,
    parse_local,
    parse_remote,
    refs_in_the_way,
)
from appliance.core.models import RefChange, RemoteRefs
from appliance.core.upstream import same_upstream

log = logging.getLogger(__name__)

MARK = "fetched-with-credential"
"""A file in a mirror that a credential has fetched, with the URL that was. It comes and goes with what it is about."""

REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
QUICK = 60.0
"""Seconds that a local command on refs may take."""
LINE = 64
"""Bytes of one ref in what git lists, at a guess."""


def mirror_config(url: str) -> str:
    """The whole config file of a mirror. Written, not edited: a kill between two edits would leave half of it."""
    quoted = url.replace("\\", "\\\\").replace('"', '\\"')
    return f"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
[remote "origin"]
\turl = "{quoted}"
\tfetch = +refs/heads/*:refs/heads/*
\tfetch = +refs/tags/*:refs/tags/*
\ttagOpt = --no-tags
[gc]
\tauto = 0
[maintenance]
\tauto = false
[receive]
\tautogc = false
\tfsckObjects = true
\tshallowUpdate = false
\tdenyDeletes = true
\thideRefs = refs/gitmirror
\thideRefs = !refs/gitmirror/tips
[uploadpack]
\tallowFilter = true
\tallowAnySHA1InWant = true
\thideRefs = refs/gitmirror
[repack]
\twriteBitmaps = true
[pack]
\twriteReverseIndex = true
"""


@dataclass(frozen=True)
class Mirror:
    """The repository at `path`, worked on with `git`."""

    path: Path
    git: Git

    def exists(self) -> bool:
        """Whether there is a whole mirror: it is renamed into place when its first fetch is done."""
        return os.path.exists(f"{self.path}/HEAD")

    def is_there(self) -> bool:
        """As `exists`, but raises OSError when that cannot be seen: a mirror that cannot be read is not one to make."""
        try:
            os.stat(f"{self.path}/HEAD")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def configure(self, url: str) -> None:
        """Writes the config if it is not already what it must be."""
        config = self.path / "config"
        wanted = mirror_config(url)
        with contextlib.suppress(OSError):
            if config.read_bytes() == wanted.encode():
                return
        write_atomically(config, wanted)

    async def initialise(self, url: str) -> None:
        """Makes an empty bare repository at `path`, with nothing of a template in it."""
        self.path.mkdir(parents=True)
        await self.git.run("init", "--quiet", "--bare", "--template=", ".", cwd=self.path, deadline=QUICK)
        self.configure(url)

    async def remote_refs(self, deadline: float) -> RemoteRefs:
        """Asks the upstream for its branches, its tags and the branch that HEAD points at. Raises GitError."""
        output = await self.git.run(
            "ls-remote", "--quiet", "--symref", "origin", cwd=self.path, deadline=deadline, asks_upstream=True
        )
        return await beside(len(output.stdout) // LINE, parse_remote, output.stdout)

    async def local_refs(self, *prefixes: str) -> dict[str, str]:
        """Refs below the prefixes (default: those that follow the upstream), name to object id."""
        output = await self.git.run(
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            *(prefixes or FOLLOWED),
            cwd=self.path,
            deadline=QUICK,
        )
        return await beside(len(output.stdout) // LINE, parse_local, output.stdout)

    async def blobs(self, commit: str) -> list[bytes]:
        """Object ids of all blobs of a commit's tree, as a checkout needs them. Raises GitError."""
        output = await self.git.run("ls-tree", "-r", "-z", "--full-tree", commit, cwd=self.path, deadline=QUICK)
        words = (entry.partition(b"\t")[0].split(b" ") for entry in output.stdout.split(b"\0") if entry)
        return [oid for _, kind, oid in words if kind == b"blob"]

    def head(self) -> str | None:
        """The ref that HEAD points at."""
        text = os.fsdecode((self.path / "HEAD").read_bytes()).strip()
        return text.removeprefix("ref: ") if text.startswith("ref: ") else None

    async def set_head(self, ref: str) -> None:
        """Points HEAD at a branch, which need not exist (an upstream may be empty)."""
        await self.git.run("symbolic-ref", "HEAD", ref, cwd=self.path, deadline=QUICK)

    async def anchor(self, changes: Iterable[RefChange], branch: str | None) -> None:
        """Keeps the old value of each moved or deleted ref; those of `branch` also where receive-pack shows them."""
        changes = tuple(changes)
        await self.update_refs(await beside(len(changes), anchoring, changes, branch))

    async def make_way(self, remote: Mapping[str, str], local: Mapping[str, str]) -> None:
        """Deletes local refs that no upstream ref can be created beside (`foo` when it now has `foo/bar`).

        An atomic fetch never gets past one: `cannot lock ref`, for ever. They were anchored before.
        """
        doomed = await beside(len(remote) + len(local), refs_in_the_way, remote, local)
        await self.update_refs(f"delete {ref} {local[ref]}\n" for ref in doomed)

    async def update_refs(self, lines: Iterable[str]) -> None:
        """One transaction of `git update-ref --stdin`. Raises GitError, then no ref moved."""
        text = "".join(lines)
        if text:
            stdin = text.encode("utf-8", "surrogateescape")
            await self.git.run("update-ref", "--stdin", cwd=self.path, deadline=QUICK, stdin=stdin)

    async def fetch(
        self,
        deadline: float,
        on_progress: Callable[[str], None] | None = None,
        *,
        without: Iterable[str] = (),
        only: Iterable[str] = (),
    ) -> None:
        """Fetches branches and tags: all refs move, or none. Raises GitError.

        `without` are refs that stay as they are; with `only`, no other is fetched and none is removed.
        """
        chosen = [f"+{ref}:{ref}" for ref in only]
        refspecs = chosen or [*REFSPECS, *(f"^{ref}" for ref in without)]
        await self.git.run(
            "fetch",
            "--atomic",
            *(() if chosen else ("--prune",)),
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--no-show-forced-updates",
            "--no-recurse-submodules",
            "--progress" if on_progress else "--quiet",
            "--stdin",
            "origin",
            cwd=self.path,
            deadline=deadline,
            stdin="".join(f"{refspec}\n" for refspec in refspecs).encode("utf-8", "surrogateescape"),
            on_progress=on_progress,
            asks_upstream=True,
        )

    def mark(self, url: str) -> None:
        """Notes that a credential fetches from `url` what is in the mirror. Raises OSError."""
        if not is_marked(self.path):
            write_atomically(self.path / MARK, f"{url}\n")

    def unmark(self, url: str) -> None:
        """Takes the mark away: everybody may read what is at `url`. Raises OSError.

        Not when the mark is of another upstream: what came from there is in the mirror still.
        """
        with contextlib.suppress(FileNotFoundError, UsageError):
            if same_upstream((self.path / MARK).read_text(encoding="utf-8").strip(), url):
                (self.path / MARK).unlink()

    def discard(self) -> None:
        """Removes the repository from disk. Raises OSError."""
        discard_repository(self.path)

    def rename_to(self, path: Path) -> Mirror:
        """Moves the repository to its place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return Mirror(path, self.git)

    def disk_size(self) -> int:
        """Bytes of packs and loose objects on disk."""
        total = 0
        for directory, _, files in os.walk(self.path / "objects"):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(f"{directory}/{name}").st_size
        return total

    def remove_leftovers(self) -> list[str]:
        """Removes what killed git processes left: lock files, quarantines, half-written packs.

        Only to be called when no process works on the mirror. Returns what was removed, relative to the mirror.
        """
        removed = []
        for path in _leftovers(self.path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed.append(str(path.relative_to(self.path)))
        return removed


def is_marked(path: Path) -> bool:
    """Whether a credential has fetched what is in the mirror at `path`; taken for so while that cannot be seen."""
    try:
        os.stat(path / MARK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def discard_repository(path: Path) -> None:
    """Removes a repository from disk, if it is there. Raises OSError."""
    if path.exists():
        # Out of the way first: a half-removed repository must not be found under its name after a kill.
        doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _leftovers(repository: Path) -> list[Path]:
    found = [
        *repository.glob("*.lock"),
        *repository.glob("objects/info/**/*.lock"),
        *repository.glob("shallow_*"),
    ]
    found += repository.glob("refs/**/*.lock")
    found += repository.glob("objects/pack/*.lock")
    found += [*repository.glob("objects/tmp_objdir-*"), *repository.glob("objects/incoming-*")]
    found += [*repository.glob("objects/pack/tmp_*"), *repository.glob("objects/pack/.tmp-*")]
    found += repository.glob("objects/??/tmp_obj_*")
    # index-pack keeps a pack until its refs are there; a kill in between would keep it from every repack for ever.
    found += [keep for keep in repository.glob("objects/pack/*.keep") if _is_of_a_transfer(keep)]
    return found


def _is_of_a_transfer(keep: Path) -> bool:
    with contextlib.suppress(OSError):
        return keep.read_bytes().startswith((b"fetch-pack ", b"receive-pack "))
    return False


async def has_object(mirror: Mirror, oid: str) -> bool:
    """Whether the mirror has an object. Never raises: an answer that cannot be had is no."""
    try:
        await mirror.git.run("cat-file", "-e", oid, cwd=mirror.path, deadline=QUICK)
    except GitError:
        return False
    return True
