"""What one `serve` goes by at this moment: built first, handed to whoever needs some of it, changed in two places.

`registry_follower.py` replaces `repos`; the reload in `service.py` replaces `config`. Nobody keeps a copy: rooms are
given the methods below and call them when they need to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.core.access.privacy import Privacy
from appliance.core.config.settings import AlertsConfig, BackupConfig, Config, RecordingConfig
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import make_privacy
from appliance.core.store.database import StoreError
from appliance.core.store.registry import UnknownRepo

GIT, HTTP, ADMIN = "git", "http", "admin"
LISTENERS = (GIT, HTTP, ADMIN)


@dataclass
class ServeState:
    """The configuration in use, the repositories known, where the listeners are, and what is wrong with the config.

    `urls` has None for a listener that is off; `problems` are in words, for `status`. `registry_lost` is why the
    database could not be read: until it can be, `repos` is what the config and the mirrors on disk give.
    """

    layout: Layout
    config: Config
    repos: list[Repo] = field(default_factory=list)
    urls: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(LISTENERS))
    problems: list[str] = field(default_factory=list)
    registry_lost: StoreError | None = None

    def known_repos(self) -> list[Repo]:
        """The registry as it was last read, disabled repositories included."""
        return self.repos

    def find(self, name: str) -> Repo:
        """The repository of that name. Raises UnknownRepo."""
        for repo in self.repos:
            if repo.name == name:
                return repo
        raise UnknownRepo(name)

    def stale_after(self) -> float:
        """Seconds of lag past which a repository is stale."""
        return self.config.refresh.stale_after

    def recording(self) -> RecordingConfig:
        """What guests may record, and how long it is kept."""
        return self.config.recording

    def keeps_snapshots(self) -> bool:
        """Whether there are snapshots to hand out."""
        return self.config.workspace.enabled

    def alerts(self) -> AlertsConfig:
        """Who is alerted."""
        return self.config.alerts

    def backup(self) -> BackupConfig:
        """Where backups go, and how often."""
        return self.config.backup

    def webhook_secret_file(self) -> str:
        """The path of the webhook's secret; empty when there is none."""
        return self.config.refresh.webhook_secret_file

    def refresh_token_file(self) -> str:
        """The path of the token for asked-for refreshes; empty when there is none."""
        return self.config.refresh.token_file

    @property
    def privacy(self) -> Privacy:
        """Who may read which mirror, by the config that is in use."""
        return make_privacy(self.layout, self.config)

    def public_url(self, listener: str) -> str | None:
        """What guests call a listener: the configured public address, else where it listens."""
        configured = {GIT: self.config.serve.public_git, HTTP: self.config.serve.public_http}.get(listener)
        return (configured or self.urls[listener]) if self.urls[listener] else None

    def ready_line(self) -> str:
        """What `serve` prints when it accepts guests: the real addresses, a listener that is off left out."""
        labelled = [("", self.urls[GIT]), ("", self.urls[HTTP]), ("admin ", self.urls[ADMIN])]
        return " ".join(["ready", *(f"{label}{url}" for label, url in labelled if url)])
