"""One bare mirror on disk: create, configure, list the upstream's refs, fetch, anchors, HEAD.

A mirror is a full, bare repository. Private refs live below `refs/gitmirror/`, agents' refs below `refs/agents/`. The
refspecs name branches and tags only, so prune cannot touch either.
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
from appliance.core.git.command import Git, GitError
from appliance.core.git.ref_sets import (
    FOLLOWED,
    anchoring,
    beside,
    parse_local,
    parse_remote,
    refs_in_the_way,
)
from appliance.core.models import RefChange, RemoteRefs
from appliance.core.process.atomic_file import write_atomically
from appliance.core.upstream import same_upstream

log = logging.getLogger(__name__)

MARK = "fetched-with-credential"
"""A file in a mirror that was fetched with a credential; it holds the URL. It is removed together with the mirror."""

AWAITS = "awaits-upstream"
"""A file in a restored mirror that has the sessions, but no branch or tag before its first refresh."""

REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
QUICK = 60.0
"""The deadline of a local command on refs, in seconds."""
LINE = 64
"""A guess at the bytes that git prints for one ref, or for one file of a tree."""


def mirror_config(url: str) -> str:
    """The complete config file of a mirror. It is written whole, because a kill between two edits would leave half."""
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
    """The repository at `path`; `git` runs its commands."""

    path: Path
    git: Git

    def exists(self) -> bool:
        """Whether the mirror exists. It is always complete, because it is renamed into place after its first fetch."""
        return os.path.exists(f"{self.path}/HEAD")

    def is_there(self) -> bool:
        """Like `exists`, but raises OSError when the disk cannot be read, so that nobody recreates such a mirror."""
        try:
            os.stat(f"{self.path}/HEAD")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def configure(self, url: str) -> None:
        """Writes the config unless it is already correct."""
        config = self.path / "config"
        wanted = mirror_config(url)
        with contextlib.suppress(OSError):
            if config.read_bytes() == wanted.encode():
                return
        write_atomically(config, wanted)

    async def initialise(self, url: str) -> None:
        """Creates an empty bare repository at `path`, without a template."""
        self.path.mkdir(parents=True)
        await self.git.run("init", "--quiet", "--bare", "--template=", ".", cwd=self.path, deadline=QUICK)
        self.configure(url)

    async def remote_refs(self, deadline: float) -> RemoteRefs:
        """Lists the upstream's branches and tags, and the branch its HEAD points at. Raises GitError."""
        output = await self.git.run(
            "ls-remote", "--quiet", "--symref", "origin", cwd=self.path, deadline=deadline, asks_upstream=True
        )
        return await beside(len(output.stdout) // LINE, parse_remote, output.stdout)

    async def local_refs(self, *prefixes: str) -> dict[str, str]:
        """The refs below the prefixes (default: those that follow the upstream), as name to object id."""
        output = await self.git.run(
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            *(prefixes or FOLLOWED),
            cwd=self.path,
            deadline=QUICK,
        )
        return await beside(len(output.stdout) // LINE, parse_local, output.stdout)

    async def blobs(self, commit: str) -> list[bytes]:
        """Object ids of all blobs in a commit's tree, which is what a checkout needs. Raises GitError."""
        output = await self.git.run("ls-tree", "-r", "-z", "--full-tree", commit, cwd=self.path, deadline=QUICK)
        return await beside(len(output.stdout) // LINE, _blobs_of, output.stdout)

    def head(self) -> str | None:
        """The ref that HEAD points at."""
        text = os.fsdecode((self.path / "HEAD").read_bytes()).strip()
        return text.removeprefix("ref: ") if text.startswith("ref: ") else None

    async def set_head(self, ref: str) -> None:
        """Points HEAD at a branch, which need not exist (an upstream may be empty)."""
        await self.git.run("symbolic-ref", "HEAD", ref, cwd=self.path, deadline=QUICK)

    async def anchor(self, changes: Iterable[RefChange], branch: str | None) -> None:
        """Anchors the old value of each moved or deleted ref; for `branch` also where receive-pack advertises it."""
        changes = tuple(changes)
        await self.update_refs(await beside(len(changes), anchoring, changes, branch))

    async def make_way(self, remote: Mapping[str, str], local: Mapping[str, str]) -> None:
        """Deletes local refs whose names conflict with an upstream ref (`foo` when the upstream now has `foo/bar`).

        With such a ref in the way, every atomic fetch fails with `cannot lock ref`. The caller has anchored them.
        """
        doomed = await beside(len(remote) + len(local), refs_in_the_way, remote, local)
        await self.update_refs(f"delete {ref} {local[ref]}\n" for ref in doomed)

    async def update_refs(self, lines: Iterable[str]) -> None:
        """Runs one transaction of `git update-ref --stdin`. Raises GitError; no ref has moved then."""
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
        anew: bool = False,
    ) -> None:
        """Fetches branches and tags: all refs move, or none. Raises GitError.

        The refs in `without` stay as they are. With `only`, no other ref is fetched and none is removed. With `anew`,
        every object is fetched, even those that the mirror seems to have.
        """
        chosen = [f"+{ref}:{ref}" for ref in only]
        refspecs = chosen or [*REFSPECS, *(f"^{ref}" for ref in without)]
        await self.git.run(
            "fetch",
            "--atomic",
            *(() if chosen else ("--prune",)),
            *(("--refetch",) if anew else ()),
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
        """Records that the mirror's content was fetched from `url` with a credential. Raises OSError."""
        if not is_marked(self.path):
            write_atomically(self.path / MARK, f"{url}\n")

    def unmark(self, url: str) -> None:
        """Removes the mark, because everybody may read `url`. Raises OSError.

        A mark for another upstream stays, because the mirror still holds that upstream's content.
        """
        with contextlib.suppress(FileNotFoundError, UsageError):
            if same_upstream((self.path / MARK).read_text(encoding="utf-8").strip(), url):
                (self.path / MARK).unlink()

    def await_upstream(self) -> None:
        """Records that the mirror holds only recordings, so that it is not served to guests as an empty repository."""
        (self.path / AWAITS).touch()

    def awaits_upstream(self) -> bool:
        """Whether the mirror was restored and not refreshed since."""
        return os.path.exists(f"{self.path}/{AWAITS}")

    def caught_up(self) -> None:
        """Records that a refresh of the whole mirror succeeded. Raises OSError."""
        (self.path / AWAITS).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the repository from disk. Raises OSError."""
        discard_repository(self.path)

    def rename_to(self, path: Path) -> Mirror:
        """Renames the repository to `path` and syncs the directory. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(path)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return Mirror(path, self.git)

    def disk_size(self) -> int:
        """The size of all packs and loose objects on disk, in bytes."""
        total = 0
        for directory, _, files in os.walk(self.path / "objects"):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(f"{directory}/{name}").st_size
        return total

    def remove_leftovers(self) -> list[str]:
        """Removes the files that killed git processes left: locks, quarantines, half-written packs.

        Call this only when no process works on the mirror. Returns the removed paths, relative to the mirror.
        """
        removed = []
        for path in _leftovers(self.path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed.append(str(path.relative_to(self.path)))
        return removed


def _blobs_of(listing: bytes) -> list[bytes]:
    """The object ids of the blobs in the output of `ls-tree -z`."""
    words = (entry.partition(b"\t")[0].split(b" ") for entry in listing.split(b"\0") if entry)
    return [oid for _, kind, oid in words if kind == b"blob"]


def is_marked(path: Path) -> bool:
    """Whether the mirror at `path` was fetched with a credential; also True if that cannot be read from disk."""
    try:
        os.stat(path / MARK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def discard_repository(path: Path) -> None:
    """Removes a repository from disk if it exists. Raises OSError."""
    if path.exists():
        # Rename first, so that a kill never leaves a half-removed repository under its name.
        doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _leftovers(repository: Path) -> list[Path]:
    found = [
        *repository.glob("*.lock"),
        # git writes this file beside the lock, and a leftover one prevents any ref from being packed or deleted.
        *repository.glob("packed-refs.new"),
        *repository.glob("objects/info/**/*.lock"),
        *repository.glob("objects/info/commit-graphs/tmp_*"),
        *repository.glob("shallow_*"),
        # What `git repack` writes for dumb HTTP, unless it is told not to.
        *repository.glob("info/refs_*"),
        *repository.glob("objects/info/packs_*"),
        # Temporary files of write_atomically.
        *repository.glob(".*.new"),
    ]
    found += repository.glob("refs/**/*.lock")
    found += repository.glob("objects/pack/*.lock")
    found += [*repository.glob("objects/tmp_objdir-*"), *repository.glob("objects/incoming-*")]
    found += [*repository.glob("objects/pack/tmp_*"), *repository.glob("objects/pack/.tmp-*")]
    found += repository.glob("objects/??/tmp_obj_*")
    # index-pack holds a pack with a .keep file until its refs exist; a leftover would exempt it from every repack.
    found += [keep for keep in repository.glob("objects/pack/*.keep") if _is_of_a_transfer(keep)]
    return found


def _is_of_a_transfer(keep: Path) -> bool:
    with contextlib.suppress(OSError):
        return keep.read_bytes().startswith((b"fetch-pack ", b"receive-pack "))
    return False


async def has_object(mirror: Mirror, oid: str) -> bool:
    """Whether the mirror has an object. Never raises: if git fails, the answer is False."""
    try:
        await mirror.git.run("cat-file", "-e", oid, cwd=mirror.path, deadline=QUICK)
    except GitError:
        return False
    return True
