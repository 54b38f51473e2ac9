"""Reads a mirror for a build, with git as a child of this process, and never writes into it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from appliance.core.errors import GitmirrorError
from appliance.core.git.error_lines import last_errors

_PIECE = 2**20
MOST_ENTRIES = 2_000_000
"""The most files and directories of a tree; twenty times those of linux."""

REGULAR = 0o100644
EXECUTABLE = 0o100755
TREE = 0o040000
LINK = 0o120000
GITLINK = 0o160000


TreeEntry = tuple[int, bytes, bytes]
"""An entry of a listing: its mode as in a tree object, the object's id in binary, and its path from the top. It is a
plain tuple, because there may be a hundred thousand of them, and making a named one takes four times as long."""


class MirrorReader:
    """The mirror at `mirror`. What git has to write goes below the directory `scratch`.

    Every method raises GitmirrorError if git fails, and OSError.
    """

    def __init__(self, mirror: Path, scratch: Path) -> None:
        self.scratch = scratch
        objects = scratch / "objects"
        (objects / "pack").mkdir(parents=True, exist_ok=True)
        (objects / "info").mkdir(exist_ok=True)
        self.packs = objects / "pack"
        self._words = ("git", f"--git-dir={mirror}")
        # pack-objects puts its temporary files below the object directory, so this is not the mirror's.
        # git separates alternates by colons, so one that has a colon must be quoted.
        quoted = str(mirror / "objects").replace("\\", "\\\\").replace('"', '\\"')
        self.environment = os.environ | {
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
            "GIT_OPTIONAL_LOCKS": "0",
        }

    def run(
        self,
        *words: str,
        stdin: Iterable[bytes] = (),
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> bytes:
        """Runs a command to its end and returns what it printed. `stdin` goes to a file first, so both may be large."""
        with self._spooled(stdin) as source, tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [*self._words, *before, *words],
                stdin=source, stdout=subprocess.PIPE, stderr=errors, cwd=self.scratch,
                env=self.environment | (environment or {}), check=False,
            )  # fmt: skip
            if done.returncode:
                raise _failure(words, done.returncode, errors)
            return done.stdout

    @contextlib.contextmanager
    def stream(self, *words: str, stdin: Iterable[bytes] = ()) -> Iterator[IO[bytes]]:
        """Runs a command, whose output is to be read to its end."""
        with self._spooled(stdin) as source, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [*self._words, *words],
                stdin=source, stdout=subprocess.PIPE, stderr=errors, cwd=self.scratch, env=self.environment,
                bufsize=_PIECE,
            )  # fmt: skip
            assert child.stdout is not None
            try:
                yield child.stdout
            except BaseException:
                child.kill()
                raise
            finally:
                child.stdout.close()
                code = child.wait()
            if code:
                raise _failure(words, code, errors)

    @contextlib.contextmanager
    def _spooled(self, lines: Iterable[bytes]) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile(dir=self.scratch) as file:
            file.writelines(lines)
            file.seek(0)
            yield file

    def tree_of(self, commit: str) -> str:
        """The id of a commit's tree."""
        return self.run("rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}").decode().strip()

    def listing(self, commit: str) -> list[TreeEntry]:
        """Everything in the tree of a commit: a directory before what is in it, otherwise in the order of the index."""
        modes: dict[bytes, int] = {}
        entries: list[TreeEntry] = []
        rest = b""
        with self.stream("ls-tree", "-r", "-t", "-z", "--full-tree", commit) as output:
            while piece := output.read(_PIECE):
                *records, rest = (rest + piece).split(b"\0")
                for record in records:
                    # "100644 blob OID\tPATH", and "160000 commit OID\tPATH" for a submodule.
                    at = 14 if record.startswith(b"160000") else 12
                    mode = modes.get(record[:6])
                    if mode is None:
                        mode = modes[record[:6]] = int(record[:6], 8)
                    entries.append((mode, unhexlify(record[at : at + 40]), record[at + 41 :]))
                if len(entries) > MOST_ENTRIES:
                    raise GitmirrorError(f"cannot build a disk of {commit}: its tree has over {MOST_ENTRIES:,} entries")
        return entries

    def contents(self, oids: Sequence[bytes]) -> Iterator[tuple[bytes, int, Iterator[bytes]]]:
        """The size and the bytes of each of these objects; all pieces must be taken before the next is asked for."""
        ids = (b"%s\n" % oid.hex().encode() for oid in oids)
        with self.stream("cat-file", "--batch", "--buffer", stdin=ids) as output:
            for oid in oids:
                words = output.readline().split()
                if len(words) != 3:
                    raise GitmirrorError(f"the mirror lacks object {oid.hex()}", hint="verify it: `verify REPO --full`")
                yield oid, int(words[2]), _pieces(output, int(words[2]))
                output.read(1)

    def whole(self, oids: Iterable[bytes], most: int) -> dict[bytes, bytes | None]:
        """The bytes of objects by id, None for those with more than `most` bytes."""
        wanted = list(dict.fromkeys(oids))
        found: dict[bytes, bytes | None] = {}
        for oid, size, pieces in self.contents(wanted) if wanted else ():
            if size <= most:
                found[oid] = b"".join(pieces)
            else:
                found[oid] = None
                for _ in pieces:
                    pass
        return found


def _pieces(output: IO[bytes], left: int) -> Iterator[bytes]:
    while left:
        piece = output.read(min(left, _PIECE))
        if not piece:
            raise GitmirrorError("git cat-file ended in the middle of an object")
        left -= len(piece)
        yield piece


def _failure(words: Sequence[str], code: int, errors: IO[bytes]) -> GitmirrorError:
    errors.seek(0)
    text = errors.read(65536).decode("utf-8", "replace")
    command = next(word for word in words if word != "-c" and "=" not in word)
    return GitmirrorError(f"git {command} failed: {last_errors(text) or f'exit code {code}'}")
