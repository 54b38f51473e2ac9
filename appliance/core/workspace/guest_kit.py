"""Renders the guest kit for this node: its addresses, and the upstream of each mirrored repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources

from appliance.core.access.gate import AccessGate
from appliance.core.models import Repo
from appliance.core.workspace.history import History


def render_kit(
    git: str | None, http: str | None, repos: Iterable[Repo], shapes: Iterable[tuple[str, History]] = ()
) -> str:
    """The kit as a POSIX sh file. `git` and `http` are the listeners' URLs for guests, None for one that is off.

    `shapes` are the names of repositories whose workspaces have a known shape by default, and that shape.
    """
    template = resources.files("appliance.core.workspace").joinpath("guest.sh").read_text(encoding="utf-8")
    listed = "\n".join(f"{repo.name} {repo.url}" for repo in repos if repo.enabled)
    known = "\n".join(f"{name} {shape}" for name, shape in shapes)
    values = {"@GIT@": git or "", "@HTTP@": http or "", "@REPOSITORIES@": listed, "@HISTORIES@": known}
    for mark, value in values.items():
        template = template.replace(mark, value.replace("'", "'\\''"), 1)
    return template


@dataclass(frozen=True)
class GuestKit:
    """The kit of a running `serve`: the addresses that it has now, and the repositories that everybody may know of."""

    address_of: Callable[[str], str | None]
    repos: Callable[[], list[Repo]]
    gate: AccessGate
    usual_shape: Callable[[Repo], History | None]

    def render(self) -> str:
        """The kit as a POSIX sh file."""
        shown = [repo for repo in self.repos() if self.gate.catalog.private(repo.id) is None]
        shapes = [(repo.name, shape) for repo in shown if (shape := self.usual_shape(repo)) is not None]
        return render_kit(self.address_of("git"), self.address_of("http"), shown, shapes)
