"""A state directory with any number of repositories, each with sessions, made in milliseconds each.

Rows and refs are those that as many pushes would have left: the stores write the rows, and every turn has its commit
and its ref. Only the pushes themselves are left out.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.git.mirror import mirror_config
from appliance.core.git.stored_refs import stored_refs
from appliance.core.layout import Layout
from appliance.core.models import Turn
from appliance.core.node.state_dir import open_stores
from appliance.core.store.audit import Attempt
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.units import rfc3339
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS
from tests.support.gitutil import git, refs

AT = rfc3339(time.time())
LINES = 5


@dataclass(frozen=True)
class Crowd:
    """Repositories `org-N/repo-N` of a state directory that no `serve` runs on; `upstream` has theirs."""

    layout: Layout
    upstream: Path
    template: Path
    repositories: int
    sessions: int
    turns: int

    def names(self) -> list[str]:
        """Every repository."""
        return [f"org-{number // 100}/repo-{number}" for number in range(self.repositories)]

    def build(self) -> None:
        """Makes them all."""
        git("pack-refs", "--all", cwd=self.template)
        stores = _hasty_stores(self.layout)
        for name in self.names():
            self._mirror(name)
            stores.registry.add(Wanted(name, self._url(name)))
            self.record(stores, name, [f"s{number}" for number in range(self.sessions)])
        stores.database.close()

    def record_more(self, names: list[str]) -> None:
        """Adds one session to each of these."""
        stores = _hasty_stores(self.layout)
        for name in names:
            self.record(stores, name, ["later"])
        stores.database.close()

    def record(self, stores: Stores, name: str, sessions: list[str]) -> None:
        """Adds sessions to a repository. Every second one rewrites its turns, the others build on them."""
        mirror = self.layout.mirror(name)
        base = refs(mirror)["refs/heads/main"]
        made = self._commit(mirror, base, sessions)
        attempts = [
            Attempt(f"{name}-{oid}", name, f"{AGENTS}{session}", session, None, oid, "accepted", None, "10.0.0.7")
            for session, oids in made.items()
            for oid in oids
        ]
        ids = stores.audit.record_attempts(attempts)
        stores.audit.record_outcomes((number, "applied", None) for number in ids)
        lines = (mirror / "packed-refs").read_text().splitlines()
        for number, attempt in zip(ids, attempts, strict=True):
            assert attempt.new is not None and attempt.session is not None
            grown = made[attempt.session].index(attempt.new) + 1 if _builds(attempt.session) else 1
            lines.append(f"{attempt.new} {TURNS}{number}")
            stores.sessions.record(
                Turn(
                    number, name, attempt.session, attempt.new, base, AT, f"{attempt.session} turn",
                    grown, grown, grown * LINES, 0, attempt.client, 500,
                )
            )  # fmt: skip
        (mirror / "packed-refs").write_text("\n".join(_sorted(lines)) + "\n")

    def _commit(self, mirror: Path, base: str, sessions: list[str]) -> dict[str, list[str]]:
        stream, marks = "", list[tuple[str, int]]()
        for session in sessions:
            for number in range(self.turns):
                marks.append((session, len(marks) + 1))
                text = f"{mirror.stem} {session} {number}\n" * LINES
                parent = f":{len(marks) - 1}" if number and _builds(session) else base
                stream += (
                    f"commit {AGENTS}{session}\nmark :{len(marks)}\n"
                    "committer A Guest <guest@example.com> 1767225600 +0000\n"
                    f"data {len(session) + 5}\n{session} turn\nfrom {parent}\n"
                    f"M 100644 inline work/{session}-{number}.txt\ndata {len(text)}\n{text}\n"
                )
        table = mirror / "marks"
        options = ["--quiet", "--force", f"--export-marks={table}"]
        git("-c", "fastimport.unpackLimit=1", "fast-import", *options, cwd=mirror, input=stream)
        oids = dict(line.split() for line in table.read_text().splitlines())
        table.unlink()
        found: dict[str, list[str]] = {}
        for session, mark in marks:
            found.setdefault(session, []).append(oids[f":{mark}"])
        return found

    def _mirror(self, name: str) -> None:
        mirror, upstream = self.layout.mirror(name), self.upstream / name
        upstream.parent.mkdir(parents=True, exist_ok=True)
        upstream.symlink_to(self.template)
        shutil.copytree(self.template, mirror)
        (mirror / "config").write_text(mirror_config(self._url(name)))

    def _url(self, name: str) -> str:
        return f"file://{self.upstream / name}"


def _hasty_stores(layout: Layout) -> Stores:
    """The stores, without a sync of the disk for each of thousands of transactions."""
    stores = open_stores(layout)
    with stores.database.reading() as connection:
        connection.conn.execute("PRAGMA synchronous = OFF")
    return stores


def _builds(session: str) -> bool:
    return session[-1] in "02468"


def _sorted(lines: list[str]) -> list[str]:
    """The lines of a packed-refs file by the name of the ref, each with the one below it that peels it."""
    blocks: list[list[str]] = []
    for line in lines[1:]:
        if line.startswith("^"):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return [lines[0], *(line for block in sorted(blocks, key=lambda block: block[0][41:]) for line in block)]


def everything(layout: Layout) -> dict[str, Any]:
    """All that is recorded in a state directory: registry, log, sessions, turns, and the refs of all mirrors."""
    stores = open_stores(layout, create=False)
    try:
        repos = stores.registry.all()
        sessions = sorted(stores.sessions.all(), key=lambda each: (each["repo"], each["session"]))
        return {
            "repos": [(repo.name, repo.url, repo.source, repo.enabled) for repo in repos],
            "events": list(stores.audit.events()),
            "sessions": sessions,
            "turns": [stores.sessions.turns(each["repo"], each["session"]) for each in sessions],
            "refs": {
                repo.name: {
                    ref: oid
                    for below in (AGENTS, ARCHIVE, TURNS)
                    for ref, oid in stored_refs(layout.mirror(repo.name), below).items()
                }
                for repo in repos
            },
        }
    finally:
        stores.database.close()
