"""One generation of drives: the blob file that all its images share, and the catalogue of what lies where in it.

The blob file only grows. New contents are written behind its end and synced. Then one transaction of the catalogue
adds them and moves the end. What a killed build left behind the end is cut off by the next one. No image refers to it,
because an image is published after that transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self
from urllib.parse import quote

from appliance.core.workspace.disk.header import BLOCK, header

_SCHEMA = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE contents (key BLOB PRIMARY KEY, block INTEGER NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE packs (id INTEGER PRIMARY KEY, member TEXT NOT NULL, name TEXT NOT NULL, pack_block INTEGER NOT NULL,
    pack_size INTEGER NOT NULL, idx_block INTEGER NOT NULL, idx_size INTEGER NOT NULL,
    in_use INTEGER NOT NULL DEFAULT 1);
CREATE TABLE packed (id INTEGER PRIMARY KEY, member TEXT NOT NULL, ref BLOB NOT NULL, oid TEXT NOT NULL,
    UNIQUE (member, ref, oid));
CREATE TABLE images (name TEXT PRIMARY KEY, parts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (start INTEGER PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT NOT NULL);
"""
CATALOGUE = "catalogue.db"
_PER_QUERY = 500
_COPY = 2**22
_ZEROS = bytes(BLOCK)
OWN = ""
"""The workspace's own repository among the members. The others are submodules, by the name of their registration."""


class Extent(NamedTuple):
    """Where contents lie in the blob file: from which block on, and how many bytes. Empty contents take no block."""

    block: int
    size: int

    @property
    def blocks(self) -> int:
        """How many blocks the contents take."""
        return -(-self.size // BLOCK)


class Pack(NamedTuple):
    """A pack in the blob file; `name` is that of its files without the suffix."""

    id: int
    name: str
    pack: Extent
    idx: Extent


class ImageParts(NamedTuple):
    """What an image has: the commit of each member in it, and the keys in hex of its LFS objects."""

    commits: list[list[str]]
    large: list[str]


class Generation:
    """The generation in `directory`, opened to be built in. Its methods raise OSError and sqlite3.Error.

    Opening one whose catalogue is damaged may raise ValueError, TypeError or LookupError too.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Not created where it is missing: what was left behind must stay so.
        self._catalogue = sqlite3.connect(f"file:{quote(str(directory / CATALOGUE))}?mode=rw", uri=True)
        self._catalogue.isolation_level = None
        self._catalogue.execute("PRAGMA synchronous = FULL")
        self._facts: dict[str, str] = dict(self._catalogue.execute("SELECT key, value FROM facts"))
        self._contents: list[tuple[bytes, int, int]] = []
        self._segment = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.end = int(self._facts["end"])
        """The first block of the blob file that is free; all before it is of finished builds, or of this one."""
        self._committed = self.end
        # Cutting the file at a wrong end would take contents from guests.
        [(written,)] = self._catalogue.execute("SELECT max(start + size) FROM segments")
        if written != self.end * BLOCK:
            raise ValueError("its catalogue contradicts itself about the end of the blob file")
        # A killed build may have left contents that upstream has dropped since. Whoever has the drive could read them.
        with contextlib.suppress(FileNotFoundError):
            if self.data.stat().st_size > self._committed * BLOCK:
                os.truncate(self.data, self._committed * BLOCK)

    @classmethod
    def create(cls, directory: Path, facts: Mapping[str, str]) -> Self:
        """Creates an empty generation in a new directory, with `facts` that say what it was made for."""
        (directory / "images").mkdir(parents=True)
        catalogue = sqlite3.connect(directory / CATALOGUE, isolation_level=None)
        try:
            catalogue.executescript(_SCHEMA)
            data_id = secrets.token_hex(16)
            first = header({"role": "data", "id": data_id}).ljust(BLOCK, b"\0")
            (directory / "data").write_bytes(first)
            everything = {**facts, "id": data_id, "end": "1"}
            catalogue.execute("BEGIN")
            catalogue.executemany("INSERT INTO facts VALUES (?, ?)", everything.items())
            catalogue.execute("INSERT INTO segments VALUES (0, ?, ?)", [BLOCK, hashlib.sha256(first).hexdigest()])
            catalogue.execute("COMMIT")
        finally:
            catalogue.close()
        return cls(directory)

    @property
    def data(self) -> Path:
        """The blob file."""
        return self.directory / "data"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            # What a failed build wrote takes no room until the next one. On a full disk, closing may fail, too.
            with contextlib.suppress(OSError):
                self._file.close()
            os.truncate(self.data, self._committed * BLOCK)
        self._catalogue.close()

    @property
    def id(self) -> str:
        """The id of the data drive, which is in its header and in those of all tree drives."""
        return self._facts["id"]

    def fact(self, key: str) -> str | None:
        """What was stored under `key`."""
        return self._facts.get(key)

    def is_whole(self) -> bool:
        """Whether the blob file has all that the catalogue says is in it."""
        try:
            return os.stat(self.data).st_size >= self._committed * BLOCK
        except FileNotFoundError:
            return False

    def find(self, keys: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
        """The first block and the size of the contents with these keys, of those that are there."""
        wanted = keys if isinstance(keys, dict) else set(keys)
        [(known,)] = self._catalogue.execute("SELECT count(*) FROM contents")
        if known < 4 * len(wanted):
            # Reading everything in its order is then several times faster than looking for each key.
            rows = self._catalogue.execute("SELECT key, block, size FROM contents")
            return {key: (block, size) for key, block, size in rows if key in wanted}
        found: dict[bytes, tuple[int, int]] = {}
        ordered = sorted(wanted)
        for at in range(0, len(ordered), _PER_QUERY):
            some = ordered[at : at + _PER_QUERY]
            query = f"SELECT key, block, size FROM contents WHERE key IN ({','.join('?' * len(some))})"
            found |= {key: (block, size) for key, block, size in self._catalogue.execute(query, some)}
        return found

    # -- the blob file ------------------------------------------------------------------------------------------------

    def _grown(self) -> BinaryIO:
        """The blob file, positioned at its end."""
        if self._file is None:
            self._file = self.data.open("r+b", buffering=2**20)
            self._file.truncate(self._committed * BLOCK)
            self._file.seek(self._committed * BLOCK)
        return self._file

    def append(self, pieces: Iterable[bytes]) -> Extent:
        """Writes contents behind the end of the blob file."""
        data, size, start = self._grown(), 0, self.end
        for piece in pieces:
            data.write(piece)
            self._segment.update(piece)
            size += len(piece)
        if padding := -size % BLOCK:
            zeros = _ZEROS[:padding]
            data.write(zeros)
            self._segment.update(zeros)
        self.end += -(-size // BLOCK)
        return Extent(start if size else 0, size)

    def append_file(self, path: Path) -> Extent:
        """Writes the contents of a file behind the end of the blob file."""
        with path.open("rb", buffering=0) as file:
            return self.append(iter(lambda: file.read(_COPY), b""))

    def add(self, key: bytes, pieces: Iterable[bytes]) -> Extent:
        """Writes contents, and has them found under `key` once they are committed."""
        extent = self.append(pieces)
        self._contents.append((key, *extent))
        return extent

    def commit(
        self,
        *,
        facts: Mapping[str, str] | None = None,
        member: str = OWN,
        packs: Sequence[tuple[str, Extent, Extent]] = (),
        replaced: Iterable[int] = (),
        packed: Mapping[str, str] | None = None,
        superseded: Iterable[tuple[str, str]] = (),
        images: Mapping[str, ImageParts] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Syncs the blob file, and stores what was added to it.

        `packs` are new packs of `member`, which take the place of those with the ids `replaced`. `packed` maps refs to
        the objects that its packs now reach, beyond what they reached before. `superseded` are earlier ones that these
        reach, too. `images` says what new images have, by name; what is known of others that are not `kept` is then
        forgotten.
        """
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        size, run = (self.end - self._committed) * BLOCK, self._catalogue
        self._facts |= {**(facts or {}), "end": str(self.end)}
        run.execute("BEGIN IMMEDIATE")
        run.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", self._contents)
        run.executemany("UPDATE packs SET in_use = 0 WHERE id = ?", [[number] for number in replaced])
        run.executemany(
            "INSERT INTO packs (member, name, pack_block, pack_size, idx_block, idx_size) VALUES (?, ?, ?, ?, ?, ?)",
            [(member, name, *pack, *index) for name, pack, index in packs],
        )
        gone, added = ([(member, *pair) for pair in _in_bytes(pairs)] for pairs in (superseded, (packed or {}).items()))
        run.executemany("DELETE FROM packed WHERE member = ? AND ref = ? AND oid = ?", gone)
        run.executemany("INSERT OR REPLACE INTO packed (member, ref, oid) VALUES (?, ?, ?)", added)
        if images:
            known = [name for (name,) in run.execute("SELECT name FROM images").fetchall()]
            run.executemany("DELETE FROM images WHERE name = ?", [[name] for name in known if name not in kept])
            noted = [(name, json.dumps(parts)) for name, parts in images.items()]
            run.executemany("INSERT OR REPLACE INTO images VALUES (?, ?)", noted)
        run.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", self._facts.items())
        if size:
            segment = [self._committed * BLOCK, size, self._segment.hexdigest()]
            run.execute("INSERT INTO segments VALUES (?, ?, ?)", segment)
        run.execute("COMMIT")
        self._committed, self._contents, self._segment = self.end, [], hashlib.sha256()

    # -- packs --------------------------------------------------------------------------------------------------------

    def packs(self, member: str | None = OWN) -> list[Pack]:
        """The packs of a member for a new image, or of all members, the oldest first."""
        rows = self._catalogue.execute(
            """SELECT id, name, pack_block, pack_size, idx_block, idx_size FROM packs
               WHERE in_use AND member = coalesce(?, member) ORDER BY id""",
            [member],
        )
        return [Pack(row[0], row[1], Extent(*row[2:4]), Extent(*row[4:6])) for row in rows]

    def packed(self, member: str = OWN) -> list[tuple[str, str]]:
        """What a member's packs reach: each ref with each object that it named when it was packed, the oldest first.

        A ref is there with several objects if a later one does not reach an earlier one.
        """
        rows = self._catalogue.execute("SELECT ref, oid FROM packed WHERE member = ? ORDER BY id", [member])
        return [(ref.decode("utf-8", "surrogateescape"), oid) for ref, oid in rows]

    # -- images -------------------------------------------------------------------------------------------------------

    def parts_of(self, names: Collection[str]) -> Iterator[ImageParts]:
        """What those of these images have that are noted."""
        for name, parts in self._catalogue.execute("SELECT name, parts FROM images"):
            if name in names:
                yield ImageParts(*json.loads(parts))


def _in_bytes(pairs: Iterable[tuple[str, str]]) -> list[tuple[bytes, str]]:
    """The same with refs as bytes, because they need not be UTF-8."""
    return [(ref.encode("utf-8", "surrogateescape"), oid) for ref, oid in pairs]
