"""Reads the files of a mirror without git, and says what is wrong with them.

git stops at the first file that it cannot read: a cut-off `packed-refs` ends every command, and a truncated pack hides
all that is in it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_TRAILER = 20
"""The bytes of the SHA-1 at the end of packs and of all files that git derives from them. Mirrors use only SHA-1."""
_COUNT_V2, _COUNT_V1 = 1028, 1020
"""The offset of the number of objects in an index: the end of its fan-out table."""
_PIECE = 2**20
_PACKED = re.compile(rb"([0-9a-f]{40}) (refs/[^\n]+)")
_PEELED = re.compile(rb"\^[0-9a-f]{40}")
_LOOSE = re.compile(rb"([0-9a-f]{40})(?:\s|$)")
_OBJECT = re.compile(r"[0-9a-f]{38}")
_SYMBOLIC = re.compile(rb"ref: *refs/")
_NOBODYS_FAULT = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing about the content of a file."""
DERIVED = (".idx", ".rev", ".bitmap", ".mtimes")
"""Files that git computes from a pack; each ends in the SHA-1 of itself."""


@dataclass
class RefFiles:
    """The refs of a repository as its files store them, and the files that hold no valid ref.

    `broken` are loose files that hold no ref, by ref name. `packed` are the valid lines of `packed-refs`, each with its
    peeled line; None if the file is valid or does not exist.
    """

    refs: dict[str, str] = field(default_factory=dict)
    broken: dict[str, Path] = field(default_factory=dict)
    packed: list[bytes] | None = None
    faults: list[str] = field(default_factory=list)


def read_ref_files(repository: Path) -> RefFiles:
    """Reads every ref. Raises OSError if the files cannot be read now, which does not mean that they are damaged."""
    found = RefFiles()
    loose: dict[str, str] = {}
    # Loose ones first, because git writes packed-refs before it removes the loose refs.
    for ref, path in _loose_files(repository / "refs", "refs"):
        content = _content(path)
        match = _LOOSE.match(content) if content is not None else None
        if match and match[1].strip(b"0"):
            loose[ref] = match[1].decode("ascii")
        elif content is None or not _SYMBOLIC.match(content):
            if content is None and not os.path.lexists(path):
                continue
            found.broken[ref] = path
            found.faults.append(f"the file of {ref} holds no ref" if content else f"the file of {ref} is empty")
    _read_packed(repository / "packed-refs", found)
    found.refs |= loose
    for ref in found.broken:
        found.refs.pop(ref, None)
    return found


def _loose_files(directory: Path, name: str) -> Iterator[tuple[str, Path]]:
    waiting = [(str(directory), name)]
    while waiting:
        path, prefix = waiting.pop()
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            if error.errno in _NOBODYS_FAULT:
                raise
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, f"{prefix}/{entry.name}"))
            elif not entry.name.endswith(".lock"):
                yield f"{prefix}/{entry.name}", Path(entry.path)


def _content(path: Path) -> bytes | None:
    """The content of a small file; None if it cannot be read or is gone."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in _NOBODYS_FAULT:
            raise
        return None


def _read_packed(path: Path, found: RefFiles) -> None:
    data = _content(path)
    if data is None:
        if os.path.lexists(path):
            found.packed = []
            found.faults.append("packed-refs cannot be read")
        return
    lines, names, bad = data.split(b"\n"), [], 0
    kept: list[bytes] = []
    for number, line in enumerate(lines[:-1]):
        if match := _PACKED.fullmatch(line):
            oid, name = match.groups()
            names.append(name)
            found.refs[name.decode("utf-8", "surrogateescape")] = oid.decode("ascii")
            kept.append(line)
        elif kept and _PEELED.fullmatch(line) and kept[-1][:1] != b"^":
            kept.append(line)
        elif not (line.startswith(b"#") and number == 0):
            bad += 1
    fault = None
    if not data:
        fault = "packed-refs is empty"
    elif lines[-1]:
        fault = "packed-refs is cut off in the middle of a line"
    elif bad:
        fault = f"packed-refs has {bad} invalid lines"
    elif not data.startswith(b"#") or b" sorted" in lines[0]:
        # git does a binary search in a file that is marked as sorted, and would not find a ref that is out of order.
        fault = None if all(map(bytes.__lt__, names, names[1:])) else "packed-refs is not sorted"
    if fault is not None:
        found.faults.append(fault)
        found.packed = kept


def file_faults(repository: Path) -> list[str]:
    """What is wrong with HEAD, config and the pack files. Raises OSError when they cannot be read now.

    A pack that git is just writing or removing seems to lack its index; check again before you count it.
    """
    faults = []
    head, config = _content(repository / "HEAD"), _content(repository / "config")
    if head is None or not (_SYMBOLIC.match(head) or _LOOSE.match(head)):
        faults.append("HEAD is missing" if head is None else "HEAD names no branch")
    if config is None or b"[core]" not in config or b"[remote " not in config:
        faults.append("the config is missing" if config is None else "the config is not one of a mirror")
    if not os.path.isdir(repository / "objects") or not os.path.isdir(repository / "refs"):
        faults.append("its objects or refs directory is missing")
    faults += [f"{path.name} {fault}" for path, fault in pack_faults(repository).items()]
    return faults + [
        f"the file of the object {path.parent.name}{path.name} is empty" for path in empty_objects(repository)
    ]


def empty_objects(repository: Path) -> list[Path]:
    """The loose objects whose file is empty, as after a power cut. git counts them as present until it reads them."""
    found = []
    for directory in sorted(_names(repository / "objects")):
        if len(directory) != 2:
            continue
        try:
            entries = list(os.scandir(repository / "objects" / directory))
        except OSError as error:
            if error.errno in _NOBODYS_FAULT:
                raise
            continue
        for entry in entries:
            # They are renamed into place, and a repack may remove one meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if _OBJECT.fullmatch(entry.name) and not entry.stat(follow_symlinks=False).st_size:
                    found.append(Path(entry.path))
    return found


def pack_faults(repository: Path) -> dict[Path, str]:
    """Packs and indexes that cannot be used, and why. Only their first and last bytes are read."""
    faults = {}
    names = _names(repository / "objects" / "pack")
    for name in sorted(names):
        path = repository / "objects" / "pack" / name
        stem, _, extension = name.rpartition(".")
        if not name.startswith("pack-") or extension not in ("pack", "idx"):
            continue
        if f"{stem}.{'idx' if extension == 'pack' else 'pack'}" not in names:
            faults[path] = "lacks its index" if extension == "pack" else "lacks its pack"
        elif extension == "pack" and (fault := _pack_fault(path)):
            faults[path] = fault
    return faults


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError as error:
        if error.errno in _NOBODYS_FAULT:
            raise
        return set()


def _pack_fault(path: Path) -> str | None:
    try:
        with path.open("rb") as pack, path.with_suffix(".idx").open("rb") as index:
            begins = pack.read(12)
            count = os.pread(index.fileno(), 4, _COUNT_V2 if index.read(4) == b"\xfftOc" else _COUNT_V1)
            ends = _last(pack, _TRAILER, _TRAILER)
            expected = _last(index, 2 * _TRAILER, _TRAILER)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NOBODYS_FAULT:
            raise
        return f"cannot be read: {error.strerror}"
    if begins[:4] != b"PACK" or begins[8:] != count:
        return "does not begin as its index expects"
    return None if ends == expected and len(ends) == _TRAILER else "is cut off or changed at its end"


def _last(file: IO[bytes], offset: int, count: int) -> bytes:
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, count, max(0, size - offset))


def derived_faults(repository: Path) -> dict[Path, str]:
    """The indexes, bitmaps and commit-graphs whose content has changed. Reads them fully: 5% of the size of the packs.

    Raises OSError when they cannot be read now.
    """
    return {path: "is damaged" for path in derived_files(repository) if not has_own_hash(path)}


def derived_files(repository: Path) -> list[Path]:
    """Every file that git derives from the packs, except the chain file of commit-graphs, which is text."""
    pack, info = repository / "objects" / "pack", repository / "objects" / "info"
    found = [pack / name for name in _names(pack) if name.endswith(DERIVED) or name == "multi-pack-index"]
    found += [info / name for name in _names(info) if name == "commit-graph"]
    chain = info / "commit-graphs"
    found += [chain / name for name in _names(chain) if name.endswith(".graph")]
    return sorted(found)


def has_own_hash(path: Path) -> bool:
    """Whether a file ends in the SHA-1 of the bytes before it. Also true if the file has gone meanwhile."""
    found, rest = hashlib.sha1(usedforsecurity=False), b""
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                rest += piece
                found.update(rest[:-_TRAILER])
                rest = rest[-_TRAILER:]
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in _NOBODYS_FAULT:
            raise
        return False
    return rest == found.digest()


def unreadable(repository: Path) -> Path | None:
    """A file or directory of objects that this user may not read, so git would report it as missing."""
    objects = repository / "objects"
    for directory in (repository, objects, objects / "pack", *(objects / name for name in _names(objects))):
        if directory.exists() and not os.access(directory, os.R_OK | (os.X_OK if directory.is_dir() else 0)):
            return directory
    pack = objects / "pack"
    return next((pack / name for name in sorted(_names(pack)) if not os.access(pack / name, os.R_OK)), None)
