"""Repositories with submodules, and the search for them in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.access.catalog import Catalog
from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo
from appliance.core.workspace.submodules import MissingSubmodule, Submodule, resolve
from tests.git.lab import Lab
from tests.support.generate import commit_entries
from tests.support.gitutil import git

HOST = "https://github.com"


@dataclass
class SubmoduleLab:
    """Bare mirrors below `directory`, and the registrations of those that were `registered`."""

    lab: Lab
    directory: Path
    repos: dict[str, Repo] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)

    def mirror(self, name: str) -> Mirror:
        """The mirror of OWNER/REPO."""
        return Mirror(self.directory / f"{name}.git", self.lab.git)

    def create(self, name: str, url: str = "") -> Repo:
        """Registers a repository with an empty mirror."""
        bare = self.mirror(name).path
        bare.parent.mkdir(parents=True, exist_ok=True)
        git("init", "-q", "--bare", "-b", "main", str(bare), cwd=bare.parent)
        repo = Repo(len(self.repos) + 1, name, url or f"{HOST}/{name}", None, "api", None, True, 0.0)
        self.repos[name] = repo
        return repo

    def commit(
        self, name: str, gitmodules: str | None = None, links: dict[str, str] | None = None, **files: str
    ) -> str:
        """Commits this `.gitmodules`, these gitlinks by path and these files, as the only content of `main`."""
        bare = self.mirror(name).path
        lines = [f"160000 {oid}\t{path}" for path, oid in (links or {}).items()]
        if gitmodules is not None:
            files = {".gitmodules": gitmodules, **files}
        for path, text in {"README": name, **files}.items():
            blob = git("hash-object", "-w", "--stdin", cwd=bare, input=text)
            lines.append(f"100644 {blob}\t{path}")
        return self.commit_lines(name, lines)

    def commit_lines(self, name: str, lines: list[str]) -> str:
        """Commits exactly these lines of `git update-index --index-info`."""
        return commit_entries(self.mirror(name).path, lines)

    def resolve(self, name: str, commit: str) -> tuple[list[Submodule], list[MissingSubmodule]]:
        """What `resolve` finds for a reader of all but the `unreadable`."""
        catalog = Catalog(self.repos.values())
        return self.lab.run(
            resolve(
                self.repos[name],
                commit,
                find=catalog.by_url,
                mirror_of=self.mirror,
                may_read=lambda repo: repo.name not in self.unreadable,
            )
        )


def section(name: str, path: str, url: str, more: str = "") -> str:
    """One submodule in a `.gitmodules`."""
    return f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n{more}'
