"""The packs of a snapshot, which each tip adds to instead of packing everything again.

A repository without refs, beside the tar, keeps them. Its `packs.json` says which packs count: first those of the
history, each of which leads from one tip of the branch to a later one, then those of the tip's blobs (`TREES`) or of
the tip alone (`TIP`), and one of the annotated tags, which is always written anew. Everything in them is reachable from
the tip: when the branch was rewritten, the packs begin anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.workspace.cone import in_cone
from appliance.core.workspace.consolidation import newest_to_merge
from appliance.core.workspace.history import History
from appliance.core.workspace.kept_packs import KeptPacks, load_packs, take_over
from appliance.core.workspace.refs import TAGS_FORMAT, Tag, peel_nested, read_tags

DEADLINE = 1800.0
"""Seconds for one git command."""
MOST_BLOB_PACKS = 8
"""Packs of blobs from which on they become one, of exactly the tip's: what earlier tips had is dropped then."""
_CHECKSUM = 20
"""Bytes of SHA-1 with which packs, their indexes and commit-graphs end (gitformat-pack, gitformat-commit-graph)."""
_BLOB_MODES = (b"100644", b"100755", b"120000", b"100664")
_QUIET = ("-c", "pack.writeReverseIndex=false", "-c", "pack.packSizeLimit=0")


class DamagedPacks(GitmirrorError):
    """A kept pack is not what was written."""


class SnapshotPacks:
    """The packs in the repository at `path`, for one shape of the workspace. `mirror` has the objects.

    With `only`, blobs outside of these directories are left out, except from a whole history. `others` are the packs of
    other shapes of the branch, whose history may be the same; then its packs are linked.
    """

    def __init__(
        self,
        path: Path,
        history: History,
        mirror: Mirror,
        git: Git,
        only: tuple[str, ...] = (),
        others: Sequence[Path] = (),
    ) -> None:
        self._path = path
        self._history = history
        self._mirror = mirror
        self._git = git
        self._only = only
        self._others = others
        self._objects = path / "objects"
        self._lacks_blobs = False
        self._kept = KeptPacks()

    async def bring_forward(self, commit: str) -> list[Tag]:
        """Makes the packs those of `commit`; returns the tags on it. Raises GitError, OSError."""
        tags = await self._tags(commit) if self._history is not History.TIP else []
        self._kept = load_packs(self._path) or KeptPacks()
        before = self._kept.commit
        if not before or not await self._is_ancestor(before, commit):
            self._begin()
            await self._take_over(commit)
        self._remove_unknown()
        # The mirror's directory may have any name, and git wants it quoted.
        quoted = str(self._mirror.path / "objects").replace("\\", "\\\\").replace('"', '\\"')
        alternates = self._objects / "info" / "alternates"
        alternates.write_text(f'"{quoted}"\n', errors="surrogateescape")
        if self._kept.commit != commit or self._lacks_blobs:
            await (self._pack_tip(commit) if self._history is History.TIP else self._add(commit))
        await self._pack_tags(tags)
        self._kept.commit = commit
        alternates.unlink()
        if self._history is not History.TIP:
            await self._write_graph(commit)
        self._kept.shape = self._history
        self._kept.note(self._path)
        self._remove_unknown()
        return tags

    def files(self) -> list[Path]:
        """What goes into the tar's `.git/objects`, relative to `path`/objects. Raises OSError."""
        return self._kept.files(self._objects)

    def verify(self) -> None:
        """Reads the packs, and compares their checksums. Raises DamagedPacks, OSError."""
        for name in self.files():
            if name.suffix != "" and not _is_whole(self._objects / name):
                raise DamagedPacks(f"{name.name} has changed since it was written")

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Forgets all packs. Another repository takes the place of the old one."""
        if self._path.exists():
            shutil.rmtree(self._path)
        (self._objects / "pack").mkdir(parents=True)
        (self._path / "refs").mkdir()
        (self._path / "HEAD").write_text("ref: refs/heads/none\n")
        (self._path / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
        self._kept = KeptPacks()

    async def _take_over(self, commit: str) -> None:
        """Begins with the history of another shape of the branch, instead of packing the same again."""
        for other in self._others if self._history is not History.TIP else ():
            kept = load_packs(other)
            if kept is None or kept.shape != self._history or not await self._is_ancestor(kept.commit, commit):
                continue
            if (taken := take_over(kept, other, self._path)) is None:
                self._begin()
                continue
            self._kept = taken
            # A whole history has the blobs of the tip.
            self._lacks_blobs = self._history is not History.FULL
            return

    def _remove_unknown(self) -> None:
        """Removes the packs that do not count, and what a killed git left."""
        info = self._objects / "info"
        info.mkdir(exist_ok=True)
        for lock in [*info.glob("*.lock"), *info.glob("commit-graphs/*.lock"), *info.glob("commit-graphs/tmp_*")]:
            lock.unlink()
        known = set(self._kept.names())
        for file in (self._objects / "pack").iterdir():
            if file.stem not in known:
                file.unlink()

    # -- what is packed -----------------------------------------------------------------------------------------------

    async def _run(self, *words: str, stdin: bytes = b"") -> bytes:
        output = await self._git.run(
            *_QUIET, f"--git-dir={self._path}", *words, cwd=self._path, deadline=DEADLINE, stdin=stdin
        )
        return output.stdout

    async def _is_ancestor(self, old: str, new: str) -> bool:
        """Whether the history of `new` has everything that the history of `old` has."""
        words = ("rev-list", "--max-count=1", old, f"^{new}")
        try:
            return not (await self._git.run(*words, cwd=self._mirror.path, deadline=DEADLINE)).stdout
        except GitError:
            # The mirror no longer has the old tip.
            return False

    async def _add(self, commit: str) -> None:
        """Adds a pack that leads from the last tip to `commit`, and for `TREES` the blobs that it lacks."""
        kept = self._kept
        before = kept.commit
        if self._history is History.TREES:
            await self._add_blobs(before, commit)
        self._lacks_blobs = False
        if before == commit:
            return
        kept.history.append([await self._pack_history(before, commit), commit])
        sizes = [(self._objects / "pack" / f"{name}.pack").stat().st_size for name, _ in kept.history]
        if count := newest_to_merge(sizes):
            rest = kept.history[:-count]
            start = rest[-1][1] if rest else ""
            kept.history = [*rest, [await self._pack_history(start, commit), commit]]

    async def _pack_history(self, start: str, commit: str) -> str:
        """Packs what `commit` reaches and `start` does not; without a start, everything."""
        revisions = f"{commit}\n" + (f"^{start}\n" if start else "")
        if self._history is History.FULL:
            output = await self._run(*_PACK, "--revs", str(self._objects / "pack" / "pack"), stdin=revisions.encode())
            return f"pack-{output.decode().strip()}"
        with TemporaryFile(dir=self._path) as listed:
            await self._git.run(
                f"--git-dir={self._path}", "rev-list", "--objects", "--filter=blob:none", "--stdin",
                cwd=self._path, deadline=DEADLINE, stdin=revisions.encode(), into=listed,
            )  # fmt: skip
            listed.seek(0)
            words = (*_QUIET, f"--git-dir={self._path}", *_PACK, str(self._objects / "pack" / "pack"))
            output = (await self._git.run(*words, cwd=self._path, deadline=DEADLINE, source=listed)).stdout
        return f"pack-{output.decode().strip()}"

    async def _pack_listed(self, lines: list[bytes]) -> str:
        """Packs the objects of these lines: an id, and the path it is at, which tells git what to compare it with."""
        stdin = b"".join(line + b"\n" for line in lines)
        output = await self._run(*_PACK, str(self._objects / "pack" / "pack"), stdin=stdin)
        return f"pack-{output.decode().strip()}"

    async def _pack_tip(self, commit: str) -> None:
        """Makes one pack of exactly the commit, its trees and its blobs."""
        words = ("--filter=blob:none",) if self._only else ()
        listed = await self._run("rev-list", "--objects", "--no-walk", *words, commit)
        lines = listed.splitlines() + (await self._blobs_of(commit) if self._only else [])
        self._kept.blobs = [await self._pack_listed(lines)]

    async def _add_blobs(self, before: str, commit: str) -> None:
        """Adds a pack of the blobs of the tip that the last tip did not have, or makes one of all."""
        kept, lines = self._kept, []
        if before and not self._lacks_blobs and len(kept.blobs) < MOST_BLOB_PACKS:
            changed = await self._run("diff-tree", "-r", "--raw", "-z", "--no-renames", before, commit)
            fields = iter(changed.split(b"\0"))
            for entry in fields:
                # ":100644 100644 OLD NEW M", and the path after a NUL.
                if entry:
                    words, path = entry.split(b" "), next(fields)
                    if words[1] in _BLOB_MODES and self._has(path):
                        lines.append(_line(words[3], path))
            if lines:
                kept.blobs.append(await self._pack_listed(lines))
            return
        lines = await self._blobs_of(commit)
        kept.blobs = [await self._pack_listed(lines)] if lines else []

    async def _blobs_of(self, commit: str) -> list[bytes]:
        """The lines for the blobs of a commit that the workspace has."""
        lines = []
        for entry in (await self._run("ls-tree", "-r", "-z", "--full-tree", commit)).split(b"\0"):
            facts, _, path = entry.partition(b"\t")
            if facts[7:11] == b"blob" and self._has(path):
                lines.append(_line(facts[12:], path))
        return lines

    def _has(self, path: bytes) -> bool:
        """Whether the workspace has the file at `path`."""
        return in_cone(os.fsdecode(path), self._only)

    # -- tags ---------------------------------------------------------------------------------------------------------

    async def _tags(self, commit: str) -> list[Tag]:
        """The tags on the commit and its ancestors, by name."""
        words = ("for-each-ref", f"--merged={commit}", f"--format={TAGS_FORMAT}", "refs/tags")
        output = await self._git.run(*words, cwd=self._mirror.path, deadline=DEADLINE)
        tags, nested = read_tags(output.stdout)
        peeled = ""
        if nested:
            stdin = "".join(f"{oid}^{{}}\n" for oid in nested).encode()
            command = ("cat-file", "--batch-check=%(objectname)")
            checked = await self._git.run(*command, cwd=self._mirror.path, deadline=DEADLINE, stdin=stdin)
            peeled = checked.stdout.decode()
        return peel_nested(tags, nested, peeled.split())

    async def _pack_tags(self, tags: list[Tag]) -> None:
        """Packs the objects of annotated tags, and of the tags that these name. One that is gone is packed no more."""
        wanted = [[tag.ref, tag.oid] for tag in tags]
        if wanted == self._kept.tags:
            return
        found: dict[str, None] = {}
        pending = sorted({tag.oid for tag in tags if tag.peeled})
        while pending:
            found |= dict.fromkeys(pending)
            pending = [oid for oid in await self._tags_in(pending) if oid not in found]
        lines = [oid.encode() for oid in found]
        self._kept.tagged = await self._pack_listed(lines) if lines else ""
        self._kept.tags = wanted

    async def _tags_in(self, oids: list[str]) -> list[str]:
        """The ids of the tags that these tags name. Raises GitError."""
        stdin = "".join(f"{oid}\n" for oid in oids).encode()
        output, at, found = await self._run("cat-file", "--batch", stdin=stdin), 0, []
        while at < len(output):
            end = output.index(b"\n", at)
            oid, *facts = output[at:end].split()
            if len(facts) < 2:
                # "OID missing": the mirror's objects cannot be read any more, and git does not call that an error.
                raise GitError(f"the tag {oid.decode()} cannot be read from the mirror")
            size = int(facts[1])
            # "object OID", "type tag" and so on (git-mktag).
            head = output[end + 1 : end + 1 + size].split(b"\n", 2)
            if head[1:2] == [b"type tag"]:
                found.append(head[0][7:].decode())
            at = end + size + 2
        return found

    # -- commit-graph -------------------------------------------------------------------------------------------------

    async def _write_graph(self, commit: str) -> None:
        """Adds the new commits to the commit-graph, with the filters that `git log -- PATH` reads instead of trees."""
        words = ("commit-graph", "write", "--stdin-commits", "--split", "--changed-paths", "--no-progress")
        await self._run(*words, stdin=f"{commit}\n".encode())


_PACK = ("pack-objects", "--quiet", "--delta-base-offset")


def _line(oid: bytes, path: bytes) -> bytes:
    return oid + b" " + path.replace(b"\n", b"?")


def _is_whole(file: Path) -> bool:
    """Whether a file of git ends with the checksum of all before it."""
    with file.open("rb", buffering=0) as opened, contextlib.suppress(OSError):
        digest, tail = hashlib.sha1(usedforsecurity=False), b""
        while piece := opened.read(2**20):
            tail += piece
            digest.update(tail[:-_CHECKSUM])
            tail = tail[-_CHECKSUM:]
        return digest.digest() == tail
    return False
