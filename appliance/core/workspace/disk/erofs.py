"""Writes an EROFS image of a tree: superblock, device table, inodes, directories and small files.

The contents of other files are in a data area, on a second device or after everything that is written here. The writer
walks the tree twice. It first assigns each node its position, then it writes the blocks from the first to the last, so
the image is never in memory.

Inodes are in the order in which git walks its index, and a directory's contents are near its inode. So a cold `git
status`, which looks at every file once, reads the image from its beginning to its end. `.git` comes after everything
else. An inode and its inline data never cross the end of a block, because the kernel refuses that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import BinaryIO, ClassVar, TypeAlias, final

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape
from appliance.core.workspace.disk import erofs_format as form
from appliance.core.workspace.disk.erofs_format import BLOCK, COMPACT, ENTRY, EXTENDED, NID_UNIT

LEAST_MAPPED = 1 << 24
"""The block address at which a second device begins, unless the image itself has more blocks (64 GiB)."""

_MOST_COMPACT_LINKS = 0xFFFF
_MOST_COMPACT_SIZE = 0xFFFFFFFF
_NIDS = BLOCK // NID_UNIT
"""Nids in a block."""
_ONE_LINK = form.extended_links(1)
_PLAIN_FILE = form.extended_head(form.PLAIN, form.FILE_MODE)
_PLAIN_EXECUTABLE = form.extended_head(form.PLAIN, form.EXECUTABLE_MODE)


@final
class DataFile:
    """A file whose contents are in the data area, from its block `block` on.

    `size` is in bytes and `mtime` in whole Unix seconds. If `size` is 0, `block` means nothing.
    """

    __slots__ = ("block", "executable", "mtime", "nid", "size")
    type: ClassVar[int] = form.FILE
    nid: int

    def __init__(self, block: int, size: int, mtime: int, executable: bool) -> None:
        self.block = block
        self.size = size
        self.mtime = mtime
        self.executable = executable


@final
class OwnFile:
    """A file whose contents are in the image itself. `mtime` is in whole Unix seconds."""

    __slots__ = ("content", "first", "mtime", "nid")
    type: ClassVar[int] = form.FILE
    mode: ClassVar[int] = form.FILE_MODE
    nid: int
    first: int

    def __init__(self, content: bytes, mtime: int) -> None:
        self.content = content
        self.mtime = mtime


@final
class Link:
    """A symbolic link. `mtime` is in whole Unix seconds."""

    __slots__ = ("content", "first", "mtime", "nid")
    type: ClassVar[int] = form.LINK
    mode: ClassVar[int] = form.LINK_MODE
    nid: int
    first: int

    def __init__(self, target: bytes, mtime: int) -> None:
        self.content = target
        self.mtime = mtime


@final
class Directory:
    """A directory. A node may be an entry of one directory only, and only once."""

    __slots__ = ("entries", "first", "links", "names", "nid", "parent", "size")
    type: ClassVar[int] = form.DIRECTORY
    nid: int
    first: int
    links: int
    names: list[bytes]
    parent: Directory
    size: int

    def __init__(self, entries: dict[bytes, Node] | None = None) -> None:
        self.entries: dict[bytes, Node] = {} if entries is None else entries


Node: TypeAlias = Directory | DataFile | OwnFile | Link
# `nid`, `first` (the first block of contents), `links`, `names`, `parent` and `size` of a directory are set by
# `write_image`. They are kept in the nodes because a table beside them would take several times the memory.


@dataclass(frozen=True)
class ImageSize:
    """What was written: `metadata` bytes, a multiple of BLOCK, with `inodes` inodes.

    The data area begins at block address `data_at`. On one device, this is where the metadata ends.
    """

    metadata: int
    inodes: int
    data_at: int


def write_image(
    file: BinaryIO,
    root: Directory,
    *,
    label: bytes,
    uuid: bytes,
    build_time: int,
    data_blocks: int,
    data_tag: bytes | None,
) -> ImageSize:
    """Writes the image of `root` at the beginning of an empty file, and leaves its first 1024 bytes zero.

    With `data_tag`, the data area is a second device with `data_blocks` blocks; EROFS wants the tag but does not
    compare it. Without, the caller appends the data area to the file. `build_time` is the mtime of directories, in
    Unix seconds. The same tree gives the same bytes.

    Raises GitmirrorError if Linux or EROFS cannot represent the tree, and OSError.
    """
    assert len(label) <= form.LABEL_BYTES and len(uuid) == 16
    assert data_tag is None or 0 < len(data_tag) <= form.TAG_BYTES
    nodes = _walk(root)
    blocks = form.INODES_BLOCK + _place(nodes)
    # A power of two, so that an address tells at a glance whether it is on the second device, and where.
    data_at = blocks if data_tag is None else max(LEAST_MAPPED, 1 << blocks.bit_length())
    data_end = data_at + data_blocks
    if data_end > form.MOST_BLOCKS:
        raise GitmirrorError(
            f"the disk would need {data_end} block addresses, and EROFS has {form.MOST_BLOCKS}",
            hint="leave large files or old history out",
        )
    file.write(
        form.first_block(
            root_nid=root.nid,
            inodes=len(nodes),
            blocks=blocks if data_tag else blocks + data_blocks,
            label=label,
            uuid=uuid,
            build_time=build_time,
            device=(data_tag, data_blocks, data_at) if data_tag else None,
        )
    )
    _write_nodes(file, nodes, data_at, data_end, build_time)
    return ImageSize(blocks * BLOCK, len(nodes), data_at)


def _walk(root: Directory) -> list[Node]:
    """All nodes, in the order of their inodes. Sets `parent`, `names` and `links` of directories."""
    root.parent = root
    nodes: list[Node] = []
    stack: list[Node] = [root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        if type(node) is not Directory:
            continue
        entries = node.entries
        _check_names(node)
        below = set()
        for name, child in entries.items():
            if type(child) is Directory:
                child.parent = node
                below.add(name)
            elif type(child) is Link and (not 0 < len(child.content) <= form.TARGET_BYTES or b"\0" in child.content):
                raise _refused(node, name, f"a link needs a target of 1 to {form.TARGET_BYTES} bytes other than NUL")
        node.links = 2 + len(below)
        order = sorted(entries)
        node.names = sorted([b".", b"..", *order])
        if below:  # git compares whole paths, in which a slash follows the name of a directory.
            order.sort(key=lambda name: name + b"/" if name in below else name)
        if node is root and b".git" in entries:
            order.remove(b".git")
            order.append(b".git")
        stack += [entries[name] for name in reversed(order)]
    return nodes


def _check_names(directory: Directory) -> None:
    names = directory.entries
    joined = b"".join(names)
    if names and (b"/" in joined or b"\0" in joined or not all(names) or max(map(len, names)) > form.NAME_BYTES):
        for name in names:
            if len(name) > form.NAME_BYTES:
                raise _refused(directory, name, f"a name of {len(name)} bytes, and Linux takes {form.NAME_BYTES}")
            if not name or b"/" in name or b"\0" in name:
                raise _refused(directory, name, "an empty name, or one with a slash or a NUL")
    for name in (b".", b".."):
        if name in names:
            raise _refused(directory, name, "a name that stands for a directory already")


def _refused(directory: Directory, name: bytes, what: str) -> GitmirrorError:
    parts = [name]
    while directory.parent is not directory:
        parts.append(next(name for name, node in directory.parent.entries.items() if node is directory))
        directory = directory.parent
    path = escape(b"/".join(reversed(parts)).decode(errors="surrogateescape"))
    return GitmirrorError(
        f"no disk can be made with the path '{path}': {what}", hint="change it upstream, or use the tree without a disk"
    )


def _place(nodes: list[Node]) -> int:
    """Sets `nid` of each node, `first` where contents have whole blocks, and `size` of directories.

    Returns the number of blocks after the first one. Whole blocks of contents come after the block that is being filled
    with inodes, and that block is filled before another one is begun.
    """
    nid, end, free = 1, _NIDS, 1  # Readers of directories take nid 0 for a removed entry.
    extended = EXTENDED.size // NID_UNIT
    for node in nodes:
        whole, length = 0, extended
        if type(node) is Directory:
            node.size = _directory_size(node.names)
            whole, tail = _split(node.size, head := _head_size(node))
            length = -(-(head + tail) // NID_UNIT)
        elif type(node) is not DataFile:
            whole, tail = _split(len(node.content), EXTENDED.size)
            length = -(-(EXTENDED.size + tail) // NID_UNIT)
        if nid + length > end:
            nid, end, free = free * _NIDS, (free + 1) * _NIDS, free + 1
        node.nid = nid
        nid += length
        if type(node) is not DataFile:
            node.first = form.INODES_BLOCK + free if whole else 0
            free += whole
    return free


def _head_size(directory: Directory) -> int:
    compact = directory.links <= _MOST_COMPACT_LINKS and directory.size <= _MOST_COMPACT_SIZE
    return COMPACT.size if compact else EXTENDED.size


def _split(size: int, head: int) -> tuple[int, int]:
    """How many whole blocks contents of `size` bytes take, and how many bytes are inline, after an inode of `head`."""
    whole, tail = divmod(size, BLOCK)
    return (whole, tail) if head + tail <= BLOCK else (whole + 1, 0)


def _directory_size(names: list[bytes]) -> int:
    size = ENTRY.size * len(names) + sum(map(len, names))
    if size > BLOCK:
        *whole, last = _blocks_of(names)
        size = BLOCK * len(whole) + ENTRY.size * len(last) + sum(map(len, last))
    return size


def _blocks_of(names: list[bytes]) -> Iterator[list[bytes]]:
    """Splits the names of a directory's entries into blocks; an entry and its name are in the same block."""
    begin = used = 0
    for index, name in enumerate(names):
        used += ENTRY.size + len(name)
        if used > BLOCK:
            yield names[begin:index]
            begin, used = index, ENTRY.size + len(name)
    yield names[begin:]


def _directory_content(directory: Directory) -> bytes:
    nodes = directory.entries | {b".": directory, b"..": directory.parent}
    pack, number, kind = ENTRY.pack, attrgetter("nid"), attrgetter("type")
    blocks = []
    for names in _blocks_of(directory.names):
        found = list(map(nodes.__getitem__, names))
        offsets = accumulate(map(len, names), initial=ENTRY.size * len(names))
        heads = map(pack, map(number, found), offsets, map(kind, found))
        blocks.append(b"".join([*heads, *names]))
    return b"".join([block.ljust(BLOCK, b"\0") for block in blocks[:-1]] + blocks[-1:])


def _write_nodes(file: BinaryIO, nodes: list[Node], data_at: int, data_end: int, build_time: int) -> None:
    """Writes everything that `_place` positioned: each block of inodes, then the whole blocks that follow it."""
    pack_extended = EXTENDED.pack_into
    block, first_nid, behind = bytearray(BLOCK), 0, list[bytes | memoryview]()
    for number, node in enumerate(nodes, 1):
        at = (node.nid - first_nid) * NID_UNIT
        if at >= BLOCK:
            file.write(block)
            file.writelines(behind)
            block, first_nid, behind = bytearray(BLOCK), node.nid // _NIDS * _NIDS, []
            at = (node.nid - first_nid) * NID_UNIT
        if type(node) is DataFile:
            size = node.size
            first = data_at + node.block if size else 0
            if first + -(-size // BLOCK) > data_end:
                raise GitmirrorError(f"a file of {size} bytes at block {node.block} is not within the data area")
            head = _PLAIN_EXECUTABLE if node.executable else _PLAIN_FILE
            pack_extended(block, at, head, size, first, number, node.mtime, _ONE_LINK)
            continue
        content = _directory_content(node) if type(node) is Directory else node.content
        size, first = len(content), node.first
        begin = at + (_head_size(node) if type(node) is Directory else EXTENDED.size)
        whole, tail = _split(size, begin - at)
        layout = form.INLINE if tail else form.PLAIN
        if type(node) is not Directory:
            head = form.extended_head(layout, node.mode)
            pack_extended(block, at, head, size, first, number, node.mtime, _ONE_LINK)
        elif begin - at == EXTENDED.size:
            head, links = form.extended_head(layout, form.DIRECTORY_MODE), form.extended_links(node.links)
            pack_extended(block, at, head, size, first, number, build_time, links)
        else:
            head = form.compact_format(layout)
            COMPACT.pack_into(block, at, head, 0, form.DIRECTORY_MODE, node.links, size, first, number)
        block[begin : begin + tail] = content[size - tail :]
        if whole:
            behind += (memoryview(content)[: size - tail], bytes(whole * BLOCK - (size - tail)))
    file.write(block)
    file.writelines(behind)
