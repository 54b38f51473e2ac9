"""Drives made by other programs than gitmirror, and a mount namespace in which a guest uses them.

`mkfs.erofs` and `mke2fs` make the file systems, and git the checkout in them. All mounts are in the namespace, and each
loop device is detached by the kernel when its last user is gone, so that a test that dies leaves neither.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.core.workspace.config import workspace_config
from appliance.core.workspace.disk.header import BLOCK, Cksum, header
from tests.support.generate import add_commit
from tests.support.gitutil import git, run_process
from tests.workspace.conftest import Guest, shell_argv

DATA_ID = "7d9a5d0c1a3e4c2b"
"""The id of every data drive that is made here."""
LONG_AGO = 1_000_000_000
"""The mtime of every file, in Unix seconds. The index is a second younger, so that no entry of it is racy."""
SECTOR = 512


_FIRST_FILE = "!data-drive"
_DATA_HEADER = header({"role": "data", "id": DATA_ID}).ljust(BLOCK, b"\0")


def plant_data_header(bare: Path, branch: str = "main") -> str:
    """Commit a file that is the text of a data drive; return the commit.

    `mkfs.erofs` reserves no block for that text, but this file's content comes first in the data drive.
    """
    return add_commit(bare, branch, {_FIRST_FILE: _DATA_HEADER})


@dataclass(frozen=True)
class Drives:
    """The files behind a tree drive and, in the form `erofs`, a data drive."""

    tree: Path
    data: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """Both, the tree first."""
        return [self.tree, *([self.data] if self.data else [])]

    def fields(self) -> dict[str, str]:
        """The fields of the tree drive's text."""
        text = self.tree.read_bytes()[:1024].rstrip(b"\0").decode()
        return dict(line.split(" ", 1) for line in text.splitlines()[1:])

    def rewrite(self, **fields: str | None) -> None:
        """Replace fields of the tree drive's text; None removes one."""
        merged: dict[str, str | None] = {**self.fields(), **fields}
        with self.tree.open("r+b") as file:
            file.write(header({key: value for key, value in merged.items() if value is not None}))


def make_checkout(bare: Path, top: Path, *, url: str, branch: str, commit: str, history: str) -> None:
    """A workspace as the drives hold it, made by git: `history` is "full" or "tip"."""
    git("init", "--quiet", "--template=", str(top), cwd=bare)
    # Another reflog or FETCH_HEAD than a clone's is not wanted.
    quiet = ("-c", "core.logAllRefUpdates=false", "-c", "fetch.writeCommitGraph=false")
    depth = ["--depth=1"] if history == "tip" else []
    tags = [] if history == "tip" else ["refs/tags/*:refs/tags/*"]
    git(
        *quiet, "fetch", "--quiet", "--no-write-fetch-head", "--no-tags", *depth, f"file://{bare}",
        f"{commit}:refs/remotes/origin/{branch}", *tags, cwd=top,
    )  # fmt: skip
    git(*quiet, "update-ref", f"refs/heads/{branch}", commit, cwd=top)
    git("symbolic-ref", "HEAD", f"refs/heads/{branch}", cwd=top)
    git(*quiet, "read-tree", "-u", "--reset", commit, cwd=top)
    git("pack-refs", "--all", cwd=top)
    git("repack", "-a", "-d", "--quiet", cwd=top)
    (top / ".git" / "config").write_text(workspace_config(url, branch))
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    git("-c", "core.checkStat=minimal", "update-index", "--refresh", cwd=top)
    os.utime(top / ".git" / "index", (LONG_AGO + 1, LONG_AGO + 1))
    os.utime(top, (LONG_AGO, LONG_AGO))


def make_drives(
    bare: Path,
    directory: Path,
    *,
    repository: str,
    url: str,
    branch: str = "main",
    commit: str | None = None,
    history: str = "full",
    form: str = "erofs-single",
) -> Drives:
    """Drives of a commit (default: the branch's tip) in `directory`; `form` is "erofs", "erofs-single" or "ext4"."""
    for tool in ("mke2fs",) if form == "ext4" else ("mkfs.erofs",):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    commit = commit or git("rev-parse", f"refs/heads/{branch}", cwd=bare)
    top, tree = directory / "checkout", directory / "tree"
    directory.mkdir(parents=True)
    make_checkout(bare, top, url=url, branch=branch, commit=commit, history=history)
    data = directory / "data" if form == "erofs" else None
    words = ["mkfs.erofs", "--quiet", str(tree), str(top)]
    if data:
        words[1:1] = [f"--blobdev={data}", f"--chunksize={BLOCK}"]
    elif form == "ext4":
        size = sum(path.lstat().st_size + 2 * BLOCK for path in top.rglob("*")) * 3 // 2 + (8 << 20)
        with tree.open("wb") as file:
            file.truncate(size // BLOCK * BLOCK)
        words = ["mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-O", "^has_journal", "-d", str(top), str(tree)]
    done = run_process(words, timeout=300)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(top)
    fields = {"role": "tree", "format": form.partition("-")[0], "repository": repository, "commit": commit}
    with tree.open("r+b") as file:
        size = -(-tree.stat().st_size // BLOCK) * BLOCK
        file.truncate(size)
        fields["size"] = str(size)
        if form != "ext4":
            file.seek(BLOCK)
            check = Cksum()
            check.update(file.read())
            fields["check"] = f"{check.value()} {size - BLOCK}"
        if data:
            fields["data"] = f"{DATA_ID} {data.stat().st_size}"
            assert data.read_bytes()[:BLOCK] == _DATA_HEADER, "plant_data_header was not called for this branch"
        file.seek(0)
        file.write(header(fields))
    return Drives(tree, data)


def make_ext4(path: Path, size: int) -> None:
    """Makes a file with an empty ext4 of `size` bytes. Skips the test where that cannot be made."""
    if shutil.which("mke2fs") is None:
        pytest.skip("there is no mke2fs")
    with path.open("wb") as file:
        file.truncate(size)
    assert run_process(["mke2fs", "-q", "-t", "ext4", str(path)]).returncode == 0


class Machine:
    """A mount namespace with block devices, which ends with the test or with the process that made it."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root mounts drives")
        for tool in ("unshare", "nsenter", "losetup"):
            if shutil.which(tool) is None:
                pytest.skip(f"there is no {tool}")
        pipe = subprocess.PIPE
        # `cat` ends when this process does. It answers as soon as the namespace is there.
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "cat"], stdin=pipe, stdout=pipe, start_new_session=True
        )
        assert self._holder.stdin and self._holder.stdout
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        if self._holder.stdout.read(1) != b"\n":
            pytest.skip("mount namespaces are not allowed here")
        self._open: list[int] = []
        # Kits take down what dead ones left in /run, also those of other tests, whose mounts are in another namespace.
        self.run("mount", "-t", "tmpfs", "run", "/run")
        self._others: list[str] = []
        self._others = self.mounts()

    @property
    def enter(self) -> list[str]:
        """What a command begins with to run in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def attach(self, path: Path, *, writable: bool = False) -> str:
        """A block device with the contents of a file; returns its path."""
        for _ in range(20):
            done = run_process(["losetup", *([] if writable else ["-r"]), "-f", "--show", str(path)])
            if done.returncode == 0:
                break
            # Another test took the same device.
            time.sleep(0.05)
        else:
            pytest.skip(f"there is no loop device: {done.stderr.decode()}")
        device = done.stdout.decode().strip()
        self._open.append(os.open(device, os.O_RDONLY))
        # The kernel does so when nobody has it open or mounted any more.
        run_process(["losetup", "-d", device])
        return device

    def drives(self, drives: Drives) -> str:
        """Attach drives; return the value of GITMIRROR_DRIVES."""
        return ",".join(self.attach(path) for path in drives.paths)

    def guest(self, guest: Guest, **env: str) -> Guest:
        """The same guest in this namespace."""
        shell = guest.shell
        if not shell.startswith("nsenter"):
            # Whoever enters a namespace begins at its root.
            where = [*shell_argv("env"), "-C", str(guest.home)]
            shell = " ".join([*self.enter, *where, *_shell(shell)])
        return Guest(guest.home, guest.kit, shell, guest.tools, guest.env | env)

    def run(self, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a command in the namespace, in `cwd` as it is there; return what it prints. It must succeed."""
        script = 'cd "$1" && shift && exec "$@"'
        argv = [*self.enter, "sh", "-c", script, "sh", str(cwd or "/"), *words]
        done = run_process(argv, env=env, timeout=120)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.decode(errors="surrogateescape").removesuffix("\n")

    def path(self, path: Path) -> Path:
        """A path of the namespace, as this process reaches it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def mounts(self) -> list[str]:
        """The mount points of workspaces and drives that were made in the namespace."""
        lines = Path(f"/proc/{self._holder.pid}/mounts").read_text().splitlines()
        found = [line.split()[1] for line in lines if line.split()[2] in ("overlay", "erofs") or "gitmirror" in line]
        return [place for place in found if place not in self._others]

    def close(self) -> None:
        """Ends the namespace, and with it its mounts."""
        self._holder.kill()
        self._holder.communicate()
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _shell(shell: str) -> list[str]:
    words = {"busybox": "busybox sh", "bash": "bash --posix"}.get(shell, shell)
    return shell_argv(words)
