"""Turns what somebody asks for into the order of an image."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.config.fields import CONTENT
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import NotFound
from appliance.core.git.mirror import Mirror
from appliance.core.health import followed_branch
from appliance.core.models import Health, Repo
from appliance.core.text import escape
from appliance.core.workspace.disk.contents import ContentsFinder, DiskContents, Reader
from appliance.core.workspace.disk.images import DiskForm
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.disk.repository import NoDisk
from appliance.core.workspace.disk.upstream_commits import branch_with, raw_branch, tips_of


class DiskOrders:
    """Makes orders by the settings and the mirrors as they are now."""

    def __init__(
        self,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
        *,
        settings: Callable[[], WorkspaceConfig],
        is_private: Callable[[Repo], bool],
        contents: ContentsFinder,
    ) -> None:
        self._mirror_of = mirror_of
        self._health = health
        self._settings = settings
        self._is_private = is_private
        self._contents = contents

    async def target(self, repo: Repo, branch: str | None, commit: str | None) -> tuple[str, str]:
        """The branch and the commit that a request means. Raises NotFound, NoDisk, GitError."""
        mirror, followed = self._mirror_of(repo.name), followed_branch(repo, self._health(repo.id))
        if not mirror.exists() or mirror.awaits_upstream():
            raise NoDisk(f"{repo.name} was not cloned yet", hint="its status says why")
        named = None if branch is None else raw_branch(branch)
        if commit is not None:
            return await branch_with(mirror, commit, named=named, followed=followed)
        name = named or followed
        if name is None:
            raise NoDisk(f"{repo.name} has no branch yet")
        tip = (await tips_of(mirror, name)).get(name)
        if tip is None:
            hint = f"GET /v1/repos/{repo.name}/refs lists its branches"
            raise NotFound(f"{repo.name} has no branch {escape(name)}", hint=hint)
        return name, tip

    def reader(self, repo: Repo, may_read: Reader) -> Reader:
        """The same for the drives of a repository: whoever has them may read it where it is a submodule of itself."""
        return lambda other: other.id == repo.id or may_read(other)

    def reader_of(self, repo: Repo, private: tuple[int, ...]) -> Reader:
        """Who may read what is open and these private registrations, for the drives of a repository."""
        return self.reader(repo, lambda other: other.id in private or not self._is_private(other))

    async def contents(self, repo: Repo, commit: str, may_read: Reader | None, patience: float) -> DiskContents:
        """What the image of a commit has besides, without submodules if `may_read` is None.

        Waits at most `patience` seconds for LFS objects. Raises NoDisk, and GitmirrorError for what cannot be read.
        """
        content = self._settings().lfs == CONTENT
        if may_read is None and not content:
            return DiskContents()
        try:
            return await self._contents.of(repo, commit, may_read=may_read, content=content, seconds=patience)
        except OSError as error:
            raise NoDisk(f"the mirror of {repo.name} cannot be read: {error.strerror}") from error

    def order(self, repo: Repo, branch: str, commit: str, form: DiskForm, contents: DiskContents) -> DiskOrder:
        """The order of an image with these contents."""
        settings, visibility = self._settings(), "private" if self._is_private(repo) else "open"
        return DiskOrder(
            repo.name, repo.url, branch, commit, form, settings.disk_history, visibility,
            contents.modules, contents.large, contents.seen,
        )  # fmt: skip
