"""What agents did, as commands and the TUI ask for it: sessions by prefix, their turns, diffs, a checkout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.core.appliance import Appliance
from appliance.core.control import call
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.command import git_environment, write_git_configs
from appliance.core.models import Turn

if TYPE_CHECKING:
    from appliance.core.git.browse import Browser, CommitText


@dataclass(frozen=True)
class Sessions:
    """The sessions of one appliance. Every method raises GitmirrorError."""

    appliance: Appliance

    def listed(self, repo: str | None) -> list[dict[str, Any]]:
        """Newest first, as `sessions --json` has them."""
        return self.appliance.stores().sessions.all(repo)

    def find(self, repo: str, name: str) -> dict[str, Any]:
        """The one session of that name, or the only one that begins with it."""
        stores = self.appliance.stores()
        found = stores.sessions.matching(repo, name)
        if not found:
            stores.registry.get(repo)
            raise GitmirrorError(f"{repo} has no session {name}", hint=f"`sessions --repo {repo}` lists them")
        if len(found) > 1:
            some = ", ".join(row["session"] for row in found[:5])
            raise UsageError(f"{name} begins {len(found)} sessions of {repo}", hint=f"say more of it: {some}")
        return found[0]

    def show(self, repo: str, name: str) -> dict[str, Any]:
        """The session with `turns` replaced by the list of them, each with how it differs from the one before."""
        session = self.find(repo, name)
        turns = self.appliance.stores().sessions.turns(repo, session["session"])
        browser = self._browser(repo)
        documents: list[dict[str, Any]] = []
        before: Turn | None = None
        try:
            for number, turn in enumerate(turns, 1):
                since = browser.changed(before.commit, turn.commit) if before else None
                documents.append(
                    {key: value for key, value in asdict(turn).items() if key not in ("repo", "session")}
                    | {"turn": number, "since_last": asdict(since) if since else None}
                )
                before = turn
        finally:
            browser.close()
        return session | {"turns": documents}

    def diff(self, session: dict[str, Any], turn: int | None, options: Sequence[str]) -> int:
        """Prints the diff of a whole session that was found, or of one turn of it; returns git's exit code."""
        repo = session["repo"]
        turns = self.appliance.stores().sessions.turns(repo, session["session"])
        chosen = self._turn(session, turns, turn)
        old = chosen.base if turn is None else turns[turn - 2].commit if turn > 1 else chosen.base
        browser = self._browser(repo)
        try:
            return browser.show_diff(old, chosen.commit, options)
        finally:
            browser.close()

    def log(self, session: dict[str, Any]) -> list[CommitText]:
        """The commits of a session that was found, on top of its base, newest first."""
        browser = self._browser(session["repo"])
        try:
            return list(browser.log(session["base"], session["tip"]))
        finally:
            browser.close()

    def checkout(self, repo: str, name: str, directory: Path, turn: int | None) -> Turn:
        """A worktree outside the mirror at a turn (default: the last), with `origin` at the upstream."""
        session = self.find(repo, name)
        stores = self.appliance.stores()
        chosen = self._turn(session, stores.sessions.turns(repo, session["session"]), turn)
        url = stores.registry.get(repo).url
        browser = self._browser(repo)
        try:
            browser.checkout(chosen.commit, directory, branch=f"session/{session['session']}", origin=url)
        finally:
            browser.close()
        return chosen

    def keep(self, repo: str, name: str, kept: bool) -> str:
        """Exempts a session from retention, or not any more; returns its whole name."""
        session = self.find(repo, name)["session"]
        self.appliance.stores().sessions.keep(repo, session, kept)
        return str(session)

    def drop(self, repo: str, name: str) -> str:
        """Ends a session at once, through `serve`; returns its whole name. Raises NotServing."""
        session = self.find(repo, name)["session"]
        call(self.appliance.layout, "session-drop", repo=repo, session=session)
        return str(session)

    def _turn(self, session: dict[str, Any], turns: Sequence[Turn], number: int | None) -> Turn:
        if number is not None and not 1 <= number <= len(turns):
            raise UsageError(f"{session['session']} has no turn {number}", hint=f"its turns are 1 to {len(turns)}")
        return turns[(number or len(turns)) - 1]

    def _browser(self, repo: str) -> Browser:
        from appliance.core.git.browse import Browser

        layout = self.appliance.layout
        if not layout.git_config.exists():
            write_git_configs(layout, max_push=self.appliance.config.recording.max_push)
        return Browser(layout.mirror(repo), git_environment(layout, layout.git_config, os.environ))
