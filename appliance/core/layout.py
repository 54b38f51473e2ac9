"""Every path below the state directory. Pure: nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The paths below the absolute path `state`."""

    state: Path

    @property
    def database(self) -> Path:
        """Registry, health, history and audit log."""
        return self.state / "gitmirror.db"

    @property
    def audit_head(self) -> Path:
        """The newest reported event of the audit log, so that an older database is noticed."""
        return self.state / "audit-head"

    @property
    def mirrors(self) -> Path:
        """The bare mirrors, `<owner>/<repo>.git`."""
        return self.state / "mirrors"

    def mirror(self, name: str) -> Path:
        """The bare mirror of `OWNER/REPO`."""
        return self.mirrors / f"{name}.git"

    def name_of(self, mirror: Path) -> str | None:
        """`OWNER/REPO` of a path that `mirror` returned; None for any other path."""
        name = f"{mirror.parent.name}/{mirror.stem}"
        return name if mirror == self.mirror(name) else None

    def incoming(self, name: str) -> Path:
        """The first clone of `OWNER/REPO` while it runs; when it is complete, it is renamed into place."""
        return self.state / "incoming" / f"{name}.git"

    @property
    def healing(self) -> Path:
        """New mirrors that heals are building; each takes the place of a damaged one when it is complete."""
        return self.state / "healing"

    @property
    def evidence(self) -> Path:
        """Files that heals took out of damaged mirrors, `<owner>/<repo>.<time>`, within a budget; may be deleted."""
        return self.state / "evidence"

    @property
    def cache(self) -> Path:
        """Cached responses for guests; may be emptied at any time while `serve` is down."""
        return self.state / "cache"

    @property
    def workspaces(self) -> Path:
        """Snapshots: one tar for each branch that is followed."""
        return self.state / "workspaces"

    @property
    def disks(self) -> Path:
        """Workspaces as drives, `<owner>/<repo>/<generation>`; only what nobody has leased may be deleted."""
        return self.state / "disks"

    @property
    def lfs(self) -> Path:
        """LFS objects, `<owner>/<repo>/<two hex digits>/<SHA-256>`; all of them can be fetched again."""
        return self.state / "lfs"

    @property
    def attachments(self) -> Path:
        """What guests attached to turns, `<owner>/<repo>/<turn id>/<SHA-256>`; nothing else has it."""
        return self.state / "attachments"

    @property
    def run(self) -> Path:
        """Files that are only valid while a `serve` runs; a killed `serve` leaves them behind."""
        return self.state / "run"

    @property
    def owner_lock(self) -> Path:
        """The lock of the one process that writes mirrors (`serve`, or `add-repo` without it); its content names it."""
        return self.run / "owner.lock"

    @property
    def children_lock(self) -> Path:
        """The lock that the owner holds and every child inherits: it is free only when all of them are gone."""
        return self.run / "children.lock"

    @property
    def children(self) -> Path:
        """One empty file for each running child; the file's name is the process group."""
        return self.run / "children"

    @property
    def pushes(self) -> Path:
        """One file for each push in progress: which turn each of its refs becomes."""
        return self.run / "pushes"

    @property
    def uploads(self) -> Path:
        """Attachments that are still being received; each is renamed into place when it is complete."""
        return self.run / "uploads"

    @property
    def outgoing(self) -> Path:
        """Bundles of turns that are on their way to the fleet; emptied when `serve` starts."""
        return self.run / "outgoing"

    @property
    def backup_proof(self) -> Path:
        """When backups were last verified on this node, and what that found."""
        return self.state / "backup-proof.json"

    @property
    def hooks(self) -> Path:
        """The hooks that guard pushes: receive-pack's `core.hooksPath`."""
        return self.run / "hooks"

    @property
    def pushes_told(self) -> Path:
        """A marker that exists while the last alert about pushes said that they are off."""
        return self.run / "pushes-told-off"

    @property
    def home(self) -> Path:
        """HOME of every git child: an empty directory, so that git finds no netrc, key or credential helper."""
        return self.run / "home"

    @property
    def git_config(self) -> Path:
        """git's global config for refresh and maintenance."""
        return self.run / "git.config"

    @property
    def serving_config(self) -> Path:
        """git's global config for processes that serve guests; repack and fetch never read it."""
        return self.run / "serving.config"

    @property
    def control_socket(self) -> Path:
        """The socket that commands use to reach `serve`, unless systemd provides a RuntimeDirectory."""
        return self.state / "control.sock"
