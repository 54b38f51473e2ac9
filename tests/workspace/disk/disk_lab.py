"""Disks built in this process from any bare repository, and read back without a mount."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.disk.worker import Build
from tests.support.erofs_reader import Found, read_image
from tests.support.gitutil import fsck, git, git_bytes

Entry = tuple[bytes, bytes]
"""A mode and contents."""
REPO = "acme/widgets"
URL = "https://github.com/acme/widgets"
FIXED = 1_000_000_000


@dataclass
class DiskLab:
    """Builds disks of branches of `bare` below `directory`."""

    bare: Path
    directory: Path
    history: str = "full"
    visibility: str = "open"
    url: str = URL
    form: DiskForm = DiskForm.EROFS

    @property
    def place(self) -> DiskPlace:
        """Where the disks are."""
        return DiskPlace(self.directory)

    def order(self, branch: str = "main", commit: str | None = None) -> DiskOrder:
        """What is ordered for a branch's tip, or another commit."""
        commit = commit or tip_of(self.bare, branch)
        return DiskOrder(REPO, self.url, branch, commit, self.form, self.history, self.visibility)

    def build(self, branch: str = "main", commit: str | None = None) -> DiskImage:
        """Build the disk of a branch's tip, or of another commit."""
        return Build(self.place, self.bare, self.order(branch, commit)).run()

    @property
    def newest(self) -> Path:
        """The directory of the newest generation."""
        return self.place.generation(self.place.generations()[-1])

    def read(self, image: DiskImage) -> dict[bytes, Found]:
        """Everything in an image."""
        return read_image(self.place.tree(image), self.place.data(image))

    def data(self, image: DiskImage) -> bytes:
        """Every byte of the image's data drive."""
        path = self.place.data(image)
        assert path is not None
        return path.read_bytes()

    def unpack(self, image: DiskImage, to: Path) -> Path:
        """Write what is in an image to a new directory, with its mtimes, as a mount would show it."""
        return unpack(self.read(image), to)

    def anew(self, name: str) -> DiskLab:
        """Another lab for the same repository, with nothing built yet."""
        return replace(self, directory=self.directory.with_name(name))


def tip_of(bare: Path, branch: str) -> str:
    """The commit of a branch; git is started only if that is not in a file of its own."""
    with contextlib.suppress(OSError):
        return (bare / "refs" / "heads" / branch).read_text().strip()
    return git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}", cwd=bare)


def unpack(found: dict[bytes, Found], to: Path) -> Path:
    """Write the contents of an image below a new directory."""
    top = os.fsencode(to)
    for name, one in found.items():
        path = top + b"/" + name if name else top
        if stat.S_ISDIR(one.mode):
            os.mkdir(path)
        elif stat.S_ISLNK(one.mode):
            assert isinstance(one.content, bytes)
            os.symlink(one.content, path)
            os.utime(path, (one.mtime, one.mtime), follow_symlinks=False)
        else:
            assert isinstance(one.content, bytes)
            with open(path, "xb") as file:
                file.write(one.content)
            os.chmod(path, one.mode & 0o777)
            os.utime(path, (one.mtime, one.mtime))
    return to


def files_of(top: Path) -> dict[bytes, tuple[int, bytes]]:
    """Every path below a directory but `.git`, with its mode and contents."""
    found: dict[bytes, tuple[int, bytes]] = {}
    start = os.fsencode(top)
    for parent, directories, files in os.walk(start):
        if parent == start:
            directories.remove(b".git")
        for name in directories + files:
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[os.path.relpath(path, start)] = (mode, content)
    return found


def clone(bare: Path, to: Path, commit: str) -> Path:
    """What git itself makes of a commit. The objects stay where they are: only the files are looked at."""
    git("clone", "--quiet", "--shared", "--no-checkout", str(bare), str(to))
    git("checkout", "--quiet", "--detach", commit, cwd=to)
    return to


def is_untouched(workspace: Path) -> bool:
    """Whether git takes every file for unchanged by its stat data alone, without reading one."""
    return git("diff-files", "--raw", "-z", cwd=workspace) == ""


def check(lab: DiskLab, image: DiskImage, to: Path) -> Path:
    """Unpack an image and see that it equals a clone, path by path and byte by byte, and that git likes it."""
    to.mkdir()
    workspace = lab.unpack(image, to / "disk")
    assert files_of(workspace) == files_of(clone(lab.bare, to / "clone", image.commit))
    commit, tree, head = git("rev-parse", "HEAD", "HEAD^{tree}", "--symbolic-full-name", "HEAD", cwd=workspace).split()
    assert (commit, head) == (image.commit, f"refs/heads/{image.branch}")
    assert is_untouched(workspace), "git would read files again"
    assert git("status", "--porcelain", cwd=workspace) == ""
    assert git("write-tree", cwd=workspace) == tree
    fsck(workspace)
    return workspace


# -- a nasty repository -----------------------------------------------------------------------------------------------

_ATTRIBUTES = b"""\
*.crlf text eol=crlf
*.utf16 text working-tree-encoding=UTF-16LE
*.latin working-tree-encoding=ISO-8859-1
*.ident ident
*.lfs filter=lfs -text
[attr]windows text eol=crlf
*.bat windows
"""
_ANY_BYTES = bytes(byte for byte in range(1, 256) if byte != 0x2F)


def nasty_entries() -> dict[bytes, Entry]:
    """Paths of a tree, with mode and contents, of every kind that git can have and Linux can hold."""
    rng = random.Random(5)
    entries: dict[bytes, Entry] = {
        b".gitattributes": (b"100644", _ATTRIBUTES),
        b"sub/.gitattributes": (b"100644", b"*.crlf -text -eol\n"),
        b"empty": (b"100644", b""),
        b"run": (b"100755", b"#!/bin/sh\n"),
        b"a.crlf": (b"100644", b"one\ntwo\n"),
        b"same.txt": (b"100644", b"one\ntwo\n"),
        b"sub/a.crlf": (b"100644", b"one\ntwo\n"),
        b"b.bat": (b"100755", b"one\ntwo\n"),
        b"c.utf16": (b"100644", "gr\u00fc\u00dfe\n".encode()),
        b"d.latin": (b"100644", "gr\u00fc\u00dfe\n".encode()),
        b"e.ident": (b"100644", b"$Id$ and $Id: old $\n"),
        b"f.lfs": (b"100644", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"),
        b"mixed.crlf": (b"100644", b"one\r\ntwo\n"),
        b"n" * 255: (b"100644", b"a long name\n"),
        b"d" * 255 + b"/" + b"e" * 255: (b"100644", b"long names\n"),
        _ANY_BYTES: (b"100644", b"any byte\n"),
        b"dir/" + _ANY_BYTES[::-1]: (b"100644", b"any byte\n"),
        b"link": (b"120000", b"run"),
        b"dangling": (b"120000", b"no/such/file"),
        b"absolute": (b"120000", b"/etc/passwd"),
        b"outside": (b"120000", b"../../outside"),
        b"loop": (b"120000", b"loop"),
        b"to-a-directory": (b"120000", b"dir"),
        b"long-link": (b"120000", b"x/" * 2000),
        b"odd-link": (b"120000", _ANY_BYTES),
        b"module": (b"160000", b""),
        b".gitmodules": (b"100644", b'[submodule "module"]\n\tpath = module\n\turl = https://example.com/m\n'),
        b".gitignore": (b"100644", b"*.o\n"),
        b"tracked.o": (b"100644", b"ignored, but tracked\n"),
        b"dir-.txt": (b"100644", b"sorts between dir and dir/\n"),
        b"dir0": (b"100644", b"sorts behind dir/\n"),
        b"block": (b"100644", rng.randbytes(4096)),
        b"over": (b"100644", rng.randbytes(4097)),
        b"large": (b"100644", rng.randbytes(1_500_000)),
        "\u00e9".encode() + b"/nfc": (b"100644", b"composed\n"),
        "e\u0301".encode() + b"/nfd": (b"100644", b"decomposed\n"),
        b"Case/file": (b"100644", b"upper\n"),
        b"case/file": (b"100644", b"lower\n"),
    }
    entries[b"/".join([b"deep"] * 100)] = (b"100644", b"deep\n")
    # Directories of more than one block.
    for number in range(500):
        entries[b"many/%d" % number] = (b"100644", b"%d\n" % (number % 50))
    return entries


def fast_import(bare: Path, commits: Sequence[Mapping[bytes, Entry | None]], branch: str = "main") -> list[str]:
    """Add commits to a branch, each with its changes; None deletes a path. Returns their ids."""
    out, at = bytearray(), 1_600_000_000
    before = tip_of(bare, branch)
    for number, changes in enumerate(commits, 1):
        at += 60
        out += b"commit refs/heads/%s\nmark :%d\ncommitter A <a@example.com> %d +0000\ndata 1\nx\n" % (
            branch.encode(), number, at,
        )  # fmt: skip
        if number == 1 and before:
            out += b"from %s\n" % before.encode()
        out += b"".join(_change(path, entry) for path, entry in changes.items())
        out += b"\n"
    marks = bare / "marks"
    code, _, said = git_bytes(
        "fast-import", "--quiet", "--force", f"--export-marks={marks}", cwd=bare, input=bytes(out)
    )
    assert code == 0, said
    return [
        line.split()[1] for line in sorted(marks.read_text().splitlines(), key=lambda line: int(line[1:].split()[0]))
    ]


def _change(path: bytes, entry: Entry | None) -> bytes:
    quoted = b'"' + b"".join(b"\\%03o" % byte for byte in path) + b'"'
    if entry is None:
        return b"D %s\n" % quoted
    mode, content = entry
    if mode == b"160000":
        return b"M 160000 %s %s\n" % (b"1" * 40, quoted)
    return b"M %s inline %s\ndata %d\n%s\n" % (mode, quoted, len(content), content)
