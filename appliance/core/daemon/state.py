"""The state of one `serve`: built first, passed to the rooms that need it, and changed in two places.

`registry_follower.py` replaces `repos`, and the reload in `service.py` replaces `config`. Rooms do not store
a copy: they receive the methods below and call them whenever they need the value. What a reload does hand over is in
`service.py`, in one place: the refresher's timeout and keyring, and the budget of the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from appliance.core.access.privacy import Privacy
from appliance.core.config.addresses import ListenAddress
from appliance.core.config.settings import (
    AlertsConfig,
    BackupConfig,
    Config,
    GuestsConfig,
    RecordingConfig,
    ServeConfig,
    WorkspaceConfig,
)
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import make_privacy
from appliance.core.store.database import StoreError
from appliance.core.store.registry import UnknownRepo
from appliance.core.store.remedies import remedy
from appliance.core.units import Address

GIT, HTTP, ADMIN = "git", "http", "admin"
LISTENERS = (GIT, HTTP, ADMIN)


@dataclass
class ServeState:
    """The config in use, the known repositories, the listeners' addresses, and what is wrong with the config.

    `listening` has every address of a listener, URLs of TCP before `unix:/path` and `vsock:PORT`; none if it is off.
    `problems` are messages for `status`, and so is `overruled`: which addresses of the config are not in use.
    `registry_lost` is why the database could not be read; until it can be read, `repos` is made from the config and the
    mirrors on disk.
    """

    layout: Layout
    config: Config
    repos: list[Repo] = field(default_factory=list)
    listening: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in LISTENERS})
    problems: list[str] = field(default_factory=list)
    overruled: list[str] = field(default_factory=list)
    registry_lost: StoreError | None = None

    def known_repos(self) -> list[Repo]:
        """The registry as last read, including disabled repositories."""
        return self.repos

    def find(self, name: str) -> Repo:
        """Returns the repository of that name. Raises UnknownRepo."""
        repo = self.lookup(name)
        if repo is None:
            raise UnknownRepo(name, [repo.name for repo in self.repos])
        return repo

    def lookup(self, name: str) -> Repo | None:
        """Returns the repository of that name, or None."""
        return next((repo for repo in self.repos if repo.name == name), None)

    def stale_after(self) -> float:
        """Seconds of lag above which a repository is stale."""
        return self.config.refresh.stale_after

    def concurrency(self) -> int:
        """How many refreshes of a lane run at once."""
        return self.config.refresh.concurrency

    def recording(self) -> RecordingConfig:
        """What guests may record, and how long it is stored."""
        return self.config.recording

    def keeps_snapshots(self) -> bool:
        """Whether snapshots are built and served."""
        return self.config.workspace.enabled

    def workspace(self) -> WorkspaceConfig:
        """What snapshots and disks are of, who may read disks, and what they may take."""
        return self.config.workspace

    def brings_repositories(self) -> bool:
        """Whether `[[allow]]` allows any repository that is not registered."""
        return bool(self.config.allow)

    def lfs_budget(self) -> int:
        """The most bytes that LFS objects may take."""
        return self.config.cache.lfs_budget

    def guests(self) -> GuestsConfig:
        """Where the sockets of guests may be, and whose they are."""
        return self.config.guests

    def is_private(self, repo: Repo) -> bool:
        """Whether guests need a read token to read the repository."""
        return self.privacy.is_private(repo)

    def readers(self, repo: Repo) -> str | None:
        """Who may read the repository, as `Privacy.readers` says it."""
        return self.privacy.readers(repo.name, repo.url)

    def interval(self) -> float:
        """Seconds between two refreshes of a repository that has no interval of its own."""
        return self.config.refresh.interval

    def refresh_timeout(self) -> float:
        """The deadline of one refresh in seconds."""
        return self.config.refresh.timeout

    def may_replicate(self, name: str) -> bool:
        """Whether what is recorded in a repository may go to the fleet; not while it is not registered."""
        repo = self.lookup(name)
        return repo is not None and (self.config.fleet.replicate_private or not self.is_private(repo))

    def alerts(self) -> AlertsConfig:
        """Where alerts are delivered."""
        return self.config.alerts

    def backup(self) -> BackupConfig:
        """Where backups go, and how often."""
        return self.config.backup

    def storage_budget(self) -> int | None:
        """The most bytes that the state directory may take, or None."""
        return self.config.storage.budget

    def mend(self, error: GitmirrorError) -> str:
        """What an operator can do about an error."""
        return remedy(error, self.layout.state, self.config.backup.to)

    def webhook_secret_file(self) -> str:
        """The path of the webhook's secret, or an empty string without one."""
        return self.config.refresh.webhook_secret_file

    def refresh_token_file(self) -> str:
        """The path of the token for refreshes on request, or an empty string without one."""
        return self.config.refresh.token_file

    @property
    def privacy(self) -> Privacy:
        """Who may read which mirror, according to the config in use."""
        return make_privacy(self.layout, self.config)

    def listen(self, listener: str, shown: Iterable[str], *, is_inherited: bool) -> None:
        """Notes where a listener is bound. Sockets from systemd go before the addresses in the config."""
        bound = self.listening[listener] = sorted(shown, key=lambda each: "://" not in each)
        wanted: tuple[ListenAddress, ...] = getattr(self.config.serve, listener)
        if not is_inherited or wanted == getattr(ServeConfig(), listener):
            return
        scheme = "git" if listener == GIT else "http"
        urls = [f"{scheme}://{each}" if isinstance(each, Address) else str(each) for each in wanted]
        # Port 0 asks for no address in particular.
        if urls and all(url in bound or url.endswith(":0") for url in urls):
            return
        change = "" if listener == ADMIN else "`gitmirror.pyz install --listen ADDRESS` or "
        self.overruled.append(
            f"[serve] {listener} ({', '.join(map(str, wanted)) or 'off'}) is not in use, because systemd's sockets set "
            f"the addresses ({', '.join(bound)}): change them with {change}`systemctl edit gitmirror-{listener}.socket`"
        )

    def public_url(self, listener: str) -> str | None:
        """The address of a listener for guests: the configured public one, else the first that it is bound to.

        None for a listener that is off. That of a listener without TCP is no URL: `unix:/path` or `vsock:PORT`.
        """
        bound = self.listening[listener]
        return (self._public(listener) or bound[0]) if bound else None

    def is_public(self, listener: str) -> bool:
        """Whether the config says what guests should call a listener."""
        return bool(self._public(listener))

    def _public(self, listener: str) -> str:
        return {GIT: self.config.serve.public_git, HTTP: self.config.serve.public_http}.get(listener, "")

    def ready_line(self) -> str:
        """What `serve` prints when it accepts guests: the bound addresses, without listeners that are off.

        A listener has its first address there. One without TCP is named, because `unix:/path` does not say which it is.
        """
        words = ["ready"]
        for listener, addresses in self.listening.items():
            if addresses:
                named = listener == ADMIN or "://" not in addresses[0]
                words += [f"{listener} {addresses[0]}" if named else addresses[0]]
        return " ".join(words)
