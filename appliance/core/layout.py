"""Every path below the state directory. Pure: nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Where things are, below `state` (absolute)."""

    state: Path

    @property
    def database(self) -> Path:
        """Registry, health, history and audit log."""
        return self.state / "gitmirror.db"

    @property
    def audit_head(self) -> Path:
        """The head of the audit log when somebody was last told, so that an older database is noticed."""
        return self.state / "audit-head"

    @property
    def mirrors(self) -> Path:
        """The bare mirrors, `<owner>/<repo>.git`."""
        return self.state / "mirrors"

    def mirror(self, name: str) -> Path:
        """The bare mirror of `OWNER/REPO`."""
        return self.mirrors / f"{name}.git"

    def incoming(self, name: str) -> Path:
        """Where the first clone of `OWNER/REPO` grows, until it is whole and renamed into place."""
        return self.state / "incoming" / f"{name}.git"

    @property
    def cache(self) -> Path:
        """Answers kept for guests; may be emptied at any time while `serve` is down."""
        return self.state / "cache"

    @property
    def workspaces(self) -> Path:
        """Ready workspaces, one tar for each branch followed."""
        return self.state / "workspaces"

    @property
    def run(self) -> Path:
        """What only lives as long as a `serve`, and the traces a killed one leaves."""
        return self.state / "run"

    @property
    def owner_lock(self) -> Path:
        """Held by the one process that writes mirrors (`serve`, or an `add-repo` without it); says who it is."""
        return self.run / "owner.lock"

    @property
    def children_lock(self) -> Path:
        """Held by the owner and, inherited, by every child of it: free only when all are gone."""
        return self.run / "children.lock"

    @property
    def children(self) -> Path:
        """One empty file for each running child, its name says which process group."""
        return self.run / "children"

    @property
    def pushes(self) -> Path:
        """One file for each push under way: which turn each of its refs is."""
        return self.run / "pushes"

    @property
    def hooks(self) -> Path:
        """The hooks that guard pushes; `core.hooksPath` of receive-pack."""
        return self.run / "hooks"

    @property
    def pushes_told(self) -> Path:
        """There while the last alert about pushes said that they are off."""
        return self.run / "pushes-told-off"

    @property
    def home(self) -> Path:
        """HOME of every git child: an empty directory, so that no netrc, key or helper is found."""
        return self.run / "home"

    @property
    def git_config(self) -> Path:
        """git's global config for refresh and maintenance."""
        return self.run / "git.config"

    @property
    def serving_config(self) -> Path:
        """git's global config for what serves guests; never seen by repack and fetch."""
        return self.run / "serving.config"

    @property
    def control_socket(self) -> Path:
        """Where commands talk to `serve`, unless it runs under systemd's RuntimeDirectory."""
        return self.state / "control.sock"
