"""Renders the guest kit for this node: its addresses, and the upstream of each mirrored repository."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources

from appliance.core.access.gate import AccessGate
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.models import Guest, Repo
from appliance.core.workspace.history import History

GIT_PORT = 9418
_HOST = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?")
"""A `Host` header that may stand in the kit: a name or an address, and perhaps a port. Others are left out."""


def render_kit(
    git: str | None,
    http: str | None,
    repos: Iterable[Repo],
    shapes: Iterable[tuple[str, History]] = (),
    settings: WorkspaceConfig | None = None,
) -> str:
    """The kit as a POSIX sh file. `git` and `http` are the listeners' URLs for guests, None for one that is off.

    `shapes` are the names of repositories whose workspaces have a known history by default, and that history.
    `settings` are those of `[workspace]`.
    """
    template = resources.files("appliance.core.workspace").joinpath("guest.sh").read_text(encoding="utf-8")
    listed = "\n".join(f"{repo.name} {repo.url}" for repo in repos if repo.enabled)
    known = "\n".join(f"{name} {shape}" for name, shape in shapes)
    settings = settings or WorkspaceConfig()
    values = {
        "@GIT@": git or "",
        "@HTTP@": http or "",
        "@REPOSITORIES@": listed,
        "@HISTORIES@": known,
        "@SUBMODULES@": "yes" if settings.submodules else "no",
        "@LFS@": settings.lfs,
    }
    for mark, value in values.items():
        template = template.replace(mark, value.replace("'", "'\\''"), 1)
    return template


@dataclass(frozen=True)
class Asked:
    """Who asked for the kit. `guest` is None if nobody knows it.

    `host` is the `Host` header of a request that reached no TCP address of ours, and `own_sockets` says that it came by
    a guest's own socket, beside which there is one for git://.
    """

    guest: Guest | None = None
    host: str | None = None
    own_sockets: bool = False


@dataclass(frozen=True)
class GuestKit:
    """The kit of a running `serve`: the addresses that it has now, and the repositories that the guest may know of."""

    address_of: Callable[[str], str | None]
    is_public: Callable[[str], bool]
    repos: Callable[[], list[Repo]]
    gate: AccessGate
    usual_history: Callable[[Repo], History | None]
    settings: Callable[[], WorkspaceConfig]

    def render(self, asked: Asked | None = None) -> str:
        """The kit as a POSIX sh file, for who asked, or for a guest that nobody knows."""
        asked = asked or Asked()
        git_listener, http = self.address_of("git"), self.address_of("http")
        git = git_listener
        if asked.host is not None and (host := _HOST.fullmatch(asked.host)):
            # The guest's forwarder listens wherever it asked, and for git:// at the usual port beside it.
            if not self.is_public("http"):
                http = f"http://{host[0]}"
            if not self.is_public("git") and (asked.own_sockets or git_listener):
                git = f"git://{host[1]}:{GIT_PORT}"
        # git takes neither the path of a socket nor a port of vsock.
        git, http = (url if url is not None and "://" in url else None for url in (git, http))
        shown = [repo for repo in self.repos() if self.gate.shows(repo, asked.guest)]
        shapes = [(repo.name, shape) for repo in shown if (shape := self.usual_history(repo)) is not None]
        return render_kit(git, http, shown, shapes, self.settings())
