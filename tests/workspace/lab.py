"""Snapshots built in this process, from any bare repository."""

from __future__ import annotations

from pathlib import Path

from appliance.core.git.mirror import Mirror
from appliance.core.workspace.history import History
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_build import build_snapshot
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace
from tests.git.lab import Lab
from tests.support.gitutil import git, run_process

URL = "https://github.com/acme/widgets"


class Builder:
    """Builds snapshots of branches of `bare`, kept below `directory`, and unpacks them as a guest does.

    They have the shape `history`, and `only` these directories.
    """

    def __init__(
        self, lab: Lab, bare: Path, directory: Path, history: History = History.TIP, only: tuple[str, ...] = ()
    ) -> None:
        self.lab = lab
        self.bare = bare
        self.directory = directory
        self.history = history
        self.only = only

    def place(self, branch: str = "main") -> SnapshotPlace:
        """Where the snapshot of a branch lives."""
        return SnapshotPlace(self.directory, branch, Shape(self.history, self.only))

    def build(self, branch: str = "main") -> Snapshot:
        """Build the snapshot of the branch's tip as `serve` does."""
        tip = git("rev-parse", f"refs/heads/{branch}", cwd=self.bare)
        place = self.place(branch)
        work = build_snapshot(place, Mirror(self.bare, self.lab.git), self.lab.git, URL, tip)
        snapshot = self.lab.run(work)
        place.remove_others(snapshot)
        return snapshot

    def tar(self, branch: str = "main") -> Path:
        """The tar that is current."""
        [tar] = self.place(branch).directory.glob("*.tar")
        return tar

    def unpack(self, to: Path, branch: str = "main", *, tar: str = "tar") -> Path:
        """Extract the current tar into a new directory."""
        to.mkdir(parents=True)
        done = run_process([*tar.split(), "-xf", str(self.tar(branch)), "-C", str(to)])
        assert done.returncode == 0, done.stderr
        return to


def tree_of(top: Path) -> dict[str, tuple[str, bytes]]:
    """Every path of a workspace outside `.git`, with its kind and what is in it."""
    found: dict[str, tuple[str, bytes]] = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if name == ".git" or name.startswith(".git/"):
            continue
        if path.is_symlink():
            found[name] = ("link", bytes(str(path.readlink()), "utf-8", "surrogateescape"))
        elif path.is_dir():
            found[name] = ("directory", b"")
        else:
            found[name] = ("executable" if path.stat().st_mode & 0o100 else "file", path.read_bytes())
    return found
