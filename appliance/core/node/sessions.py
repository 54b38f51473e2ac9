"""What agents did, for the commands and the live view: sessions by prefix, their turns, diffs, a checkout."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.command import git_environment, write_git_configs
from appliance.core.models import CommitText, FileChange, Turn
from appliance.core.node.node import Node
from appliance.core.process.control import Tell
from appliance.core.store.session_search import path_bytes

if TYPE_CHECKING:
    from appliance.core.git.browse import Browser


@dataclass(frozen=True)
class Sessions:
    """The sessions of one node. Every method raises GitmirrorError."""

    node: Node

    def search(
        self,
        repo: str | None = None,
        path: str | None = None,
        text: str | None = None,
        since: str | None = None,
        tell: Tell = lambda _: None,
    ) -> list[dict[str, Any]]:
        """The sessions that match everything given (see SessionStore.find), as `sessions --json` prints them.

        `tell` gets sentences for a person: that turns have to be read first, and that some are not searched.
        """
        if path is not None or text:
            if path is not None:
                path_bytes(path)
            if left := self.node.current().index_turns(tell):
                tell(f"{left} turns are not searched, because they could not be read yet")
        return self.node.stores().sessions.find(repo, path, text, since)[0]

    def find(self, repo: str, name: str) -> dict[str, Any]:
        """The session of that name, or the only one whose name starts with it."""
        stores = self.node.stores()
        matches = stores.sessions.matching(repo, name)
        if not matches:
            stores.registry.get(repo)
            raise GitmirrorError(f"{repo} has no session {name}", hint=f"`sessions --repo {repo}` lists them")
        if len(matches) > 1:
            some = ", ".join(row["session"] for row in matches[:5])
            raise UsageError(
                f"{len(matches)} sessions of {repo} start with {name}", hint=f"give more of the name: {some}"
            )
        return matches[0]

    def show(self, repo: str, name: str) -> dict[str, Any]:
        """The session, with `turns` as a list, each turn with what it changed since the one before."""
        session = self.find(repo, name)
        turns = self.node.stores().sessions.turns(repo, session["session"])
        documents: list[dict[str, Any]] = []
        before: Turn | None = None
        with open_browser(self.node, repo) as browser:
            for number, turn in enumerate(turns, 1):
                since = browser.changed(before.commit, turn.commit) if before else None
                documents.append(
                    {key: value for key, value in asdict(turn).items() if key not in ("repo", "session")}
                    | {"turn": number, "since_last": asdict(since) if since else None}
                )
                before = turn
        return session | {"turns": documents}

    def print_diff(self, session: dict[str, Any], turn: int | None, options: Sequence[str], *, raw: bool) -> bool:
        """Prints the diff of a session, as `find` returned it, or of one of its turns to stdout.

        Control characters are escaped unless `raw`. Returns whether there were any.
        """
        old, new = self._ends(session, turn)
        with open_browser(self.node, session["repo"]) as browser:
            return browser.print_diff(old, new, options, raw=raw)

    def files(self, session: dict[str, Any], turn: int | None) -> list[FileChange]:
        """The files that a session or one of its turns changed."""
        old, new = self._ends(session, turn)
        with open_browser(self.node, session["repo"]) as browser:
            return browser.files(old, new)

    def file_diff(self, session: dict[str, Any], turn: int | None, change: FileChange, limit: int) -> tuple[str, bool]:
        """The diff of one of `files` as text, and whether it was cut off after `limit` bytes."""
        old, new = self._ends(session, turn)
        with open_browser(self.node, session["repo"]) as browser:
            return browser.file_diff(old, new, change, limit)

    def export(self, session: dict[str, Any], turn: int | None, path: Path) -> int:
        """Writes the diff to a new file as a patch for `git apply`. Returns its size in bytes."""
        old, new = self._ends(session, turn)
        with open_browser(self.node, session["repo"]) as browser:
            patch = browser.patch(old, new)
        try:
            with path.open("xb") as file:
                file.write(patch)
        except FileExistsError:
            raise UsageError(f"{path} already exists", hint="name a file that does not exist yet") from None
        except OSError as error:
            raise GitmirrorError(f"{path} cannot be written: {error.strerror}", hint="choose another path") from error
        return len(patch)

    def log(self, session: dict[str, Any]) -> list[CommitText]:
        """The commits of a session, as `find` returned it, on top of its base, newest first."""
        with open_browser(self.node, session["repo"]) as browser:
            return list(browser.log(session["base"], session["tip"]))

    def checkout(self, repo: str, name: str, directory: Path, turn: int | None) -> Turn:
        """Checks out a turn (default: the last) as a worktree outside the mirror, with the upstream as `origin`."""
        session = self.find(repo, name)
        stores = self.node.stores()
        chosen = self._turn(session, stores.sessions.turns(repo, session["session"]), turn)
        url = stores.registry.get(repo).url
        with open_browser(self.node, repo) as browser:
            browser.checkout(chosen.commit, directory, branch=f"session/{session['session']}", origin=url)
        return chosen

    def keep(self, repo: str, name: str, kept: bool) -> str:
        """Exempts a session from retention, or ends the exemption. Returns the session's full name."""
        session = self.find(repo, name)["session"]
        self.node.stores().sessions.keep(repo, session, kept)
        return str(session)

    def drop(self, repo: str, name: str) -> str:
        """Ends a session at once, through `serve`. Returns the session's full name. Raises NotServing."""
        session = self.find(repo, name)["session"]
        self.node.current().drop_session(repo, str(session))
        return str(session)

    def _ends(self, session: dict[str, Any], number: int | None) -> tuple[str | None, str]:
        """The two commits that the diff of a session, or of one turn, compares."""
        turns = self.node.stores().sessions.turns(session["repo"], session["session"])
        chosen = self._turn(session, turns, number)
        old = turns[number - 2].commit if number is not None and number > 1 else chosen.base
        return old, chosen.commit

    def _turn(self, session: dict[str, Any], turns: Sequence[Turn], number: int | None) -> Turn:
        if number is not None and not 1 <= number <= len(turns):
            raise UsageError(f"{session['session']} has no turn {number}", hint=f"its turns are 1 to {len(turns)}")
        return turns[(number or len(turns)) - 1]


@contextmanager
def open_browser(node: Node, repo: str) -> Iterator[Browser]:
    """Opens the mirror of a repository for reading, until the block ends. Raises GitmirrorError."""
    from appliance.core.git.browse import Browser

    layout = node.layout
    if not layout.git_config.exists():
        write_git_configs(layout, max_push=node.config.recording.max_push)
    browser = Browser(layout.mirror(repo), git_environment(layout, layout.git_config, os.environ))
    try:
        yield browser
    finally:
        browser.close()
