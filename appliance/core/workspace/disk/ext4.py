"""Writes an image as ext4, for guests whose kernel has no EROFS, with `mke2fs -d` of e2fsprogs.

mke2fs copies a directory, so the tree is written out first. It gives each file the owner that the copy has, so
`debugfs` makes root the owner afterwards; git in the guest refuses a repository of somebody else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.error_lines import last_errors
from appliance.core.workspace.disk.erofs import DataFile, Directory, Link, OwnFile
from appliance.core.workspace.disk.header import BLOCK
from appliance.core.workspace.times import FIXED_TIME

TOOLS = ("mke2fs", "debugfs")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_FEATURES = (
    "none,64bit,dir_index,dir_nlink,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,sparse_super"
)
"""No journal, because nothing is ever written. All of these are in every kernel since 3.18."""
MOST_NAMES = 10_000
"""The most entries of a directory. mke2fs looks at all of them for each one that it adds."""
MOST_NAME_BYTES = 2**20
"""The most bytes of the names in a directory, for the same reason."""
_DEADLINE = 900.0
"""Seconds for mke2fs."""
_FIRST_INODE = 11
_INODE = 256
_COPY = 2**22


def why_not() -> str | None:
    """Why no ext4 image can be written here, or None if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]
    return f"{' and '.join(missing)} of e2fsprogs are not installed" if missing else None


def write_ext4(path: Path, root: Directory, data: Path, scratch: Path, *, identity: bytes) -> int:
    """Writes `root`, whose contents are in the blob file `data`, to the new file `path`. Returns its bytes.

    `identity` is the file system's UUID. Raises OSError, and GitmirrorError where the tools are missing or fail.
    """
    if reason := why_not():
        raise GitmirrorError(f"cannot build an ext4 disk: {reason}", hint="install e2fsprogs on this node")
    tree = scratch / "tree"
    with data.open("rb") as file:
        copy = _Copy(file.fileno())
        copy.write(root, os.fsencode(tree))
    blocks, inodes = copy.blocks, copy.inodes
    # What is not used stays a hole of the file. An eighth is for extents and for directories that grow by halves.
    size = (blocks + blocks // 8 + inodes * _INODE // BLOCK + 2048) * BLOCK
    with path.open("xb") as image:
        image.truncate(size)
    name = str(uuid.UUID(bytes=identity))
    _run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-O", _FEATURES, "-b", str(BLOCK), "-m", "0", "-I", str(_INODE),
        "-N", str(inodes + _FIRST_INODE + 64), "-U", name, "-L", "gitmirror",
        "-E", f"root_owner=0:0,lazy_itable_init=0,nodiscard,hash_seed={name}", "-d", str(tree), str(path),
    )  # fmt: skip
    shutil.rmtree(tree)
    commands = [b"rmdir lost+found\n"]
    if os.geteuid() or os.getegid():
        numbers = range(_FIRST_INODE, _FIRST_INODE + inodes + 1)
        commands += [
            b"set_inode_field <%d> %s 0\n" % (number, field) for number in numbers for field in (b"uid", b"gid")
        ]
    with tempfile.NamedTemporaryFile(dir=scratch) as script:
        script.writelines(commands)
        script.flush()
        _run("debugfs", "-w", "-f", script.name, str(path))
    return size


class _Copy:
    """Writes a tree to a directory, with the mtimes of its files, and counts the `blocks` and `inodes` that it takes.

    `data` is a descriptor of the blob file.
    """

    def __init__(self, data: int) -> None:
        self._data = data
        self.blocks = self.inodes = 0

    def write(self, top: Directory, to: bytes) -> None:
        """Writes everything below the new directory `to`."""
        pending = [(top, to)]
        made = []
        while pending:
            directory, path = pending.pop()
            os.mkdir(path)
            made.append(path)
            self.inodes += 1
            names = sum(map(len, directory.entries))
            if len(directory.entries) > MOST_NAMES or names > MOST_NAME_BYTES:
                count = f"{len(directory.entries):,} entries"
                raise GitmirrorError(
                    f"cannot build an ext4 disk: a directory has {count}, too many for mke2fs",
                    hint="use EROFS, which has no such limit",
                )
            # An entry takes its name and 8 bytes, and a block that was split is half empty.
            self.blocks += 2 + 2 * sum(12 + len(name) for name in directory.entries) // BLOCK
            for name, node in directory.entries.items():
                below = path + b"/" + name
                if isinstance(node, Directory):
                    pending.append((node, below))
                else:
                    self.inodes += 1
                    self._entry(node, below)
        for path in reversed(made):
            os.utime(path, (FIXED_TIME, FIXED_TIME))

    def _entry(self, node: DataFile | OwnFile | Link, path: bytes) -> None:
        if isinstance(node, Link):
            os.symlink(node.content, path)
            self.blocks += 1
        else:
            mode = 0o755 if isinstance(node, DataFile) and node.executable else 0o644
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                os.fchmod(file, mode)
                size = self._content(node, file)
            finally:
                os.close(file)
            self.blocks += -(-size // BLOCK)
        os.utime(path, (node.mtime, node.mtime), follow_symlinks=False)

    def _content(self, node: DataFile | OwnFile, file: int) -> int:
        if isinstance(node, OwnFile):
            with open(file, "wb", closefd=False) as whole:
                whole.write(node.content)
            return len(node.content)
        at, left = node.block * BLOCK, node.size
        while left:
            copied = os.copy_file_range(self._data, file, min(left, _COPY), at)
            if not copied:
                raise OSError("the blob file is shorter than its catalogue says")
            at, left = at + copied, left - copied
        return node.size


def _run(*words: str) -> None:
    environment = {"PATH": _PATH, "LC_ALL": "C", "E2FSPROGS_FAKE_TIME": str(FIXED_TIME)}
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment, timeout=_DEADLINE
        )
    except subprocess.TimeoutExpired:
        raise GitmirrorError(
            f"cannot build an ext4 disk: {words[0]} took longer than {_DEADLINE:.0f} s", hint="use EROFS"
        ) from None
    said = done.stderr.decode("utf-8", "replace")
    # debugfs ends with 0 whatever happens. Its first line is its version.
    complaints = [line for line in said.splitlines() if not line.startswith(words[0])]
    if done.returncode or complaints:
        raise GitmirrorError(f"{words[0]} failed: {last_errors(said) or f'exit code {done.returncode}'}")
