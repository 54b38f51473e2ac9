"""What agents did, for the commands and the live view: sessions by prefix, their turns, diffs, a checkout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.command import git_environment, write_git_configs
from appliance.core.models import CommitText, FileChange, Tell, Turn
from appliance.core.node.node import Node
from appliance.core.recording.comparison import (
    Comparison,
    Other,
    compare,
    find_session,
    find_turn,
    nodes_of,
    turns_of,
)
from appliance.core.recording.turns import turns_here
from appliance.core.store.session_search import path_bytes
from appliance.core.store.turn_details import no_details

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
        guest: str | None = None,
        before: str | None = None,
    ) -> list[dict[str, Any]]:
        """The sessions that match everything given (see SessionStore.find), as `sessions --json` prints them.

        `tell` gets sentences for a person: that turns have to be read first, and that some are not searched.
        """
        if path is not None or text:
            if path is not None:
                path_bytes(path)
            if left := self.node.current().index_turns(tell):
                tell(f"{left} turns are not searched, because they could not be read yet")
        found = self.node.stores().sessions.find(repo, path, text, since, guest=guest, before=before)[0]
        self.node.expect(repo, found)
        return found

    def find(self, repo: str, name: str) -> dict[str, Any]:
        """The session of that name, or the only one whose name starts with it."""
        return find_session(self.node.stores(), repo, name)

    def find_whole(self, repo: str, name: str) -> dict[str, Any]:
        """The session of exactly that name, for what changes it: no other one stands in for one that has ended."""
        return find_session(self.node.stores(), repo, name, whole=True)

    def compare(self, repo: str, name: str, turn: int | None = None, against: str | None = None) -> Comparison:
        """What a diff of a session, as `find` finds it, compares; see `recording.comparison.compare`."""
        return self._ready(compare(self.node.stores(), repo, self.find(repo, name)["session"], turn, against))

    def compare_listed(self, repo: str, session: str, turn: int | None, other: str | None) -> Comparison:
        """As `compare`, but with whole names, so that no other session stands in for one that ended meanwhile.

        `other` is a session whose last turn to compare with.
        """
        return self._ready(compare(self.node.stores(), repo, session, turn, Other(other, None) if other else None))

    def _ready(self, comparison: Comparison) -> Comparison:
        """The same, once the mirror has both commits."""
        self._bring(turns_of(self.node.stores(), comparison))
        return comparison

    def _bring(self, turns: Sequence[Turn]) -> None:
        """Has turns in the mirror that other nodes took, through `serve`. Raises NotServing."""
        for turn in turns:
            if turn.away and turn.id not in self._here([turn]):
                every = self.node.stores().sessions.turns(turn.repo, turn.session)
                numbers = [number for number, each in enumerate(every, 1) if each.id == turn.id]
                self.node.current().bring_turns(turn.repo, turn.session, numbers)

    def _here(self, turns: Sequence[Turn]) -> set[int]:
        path = self.node.layout.mirror(turns[0].repo)
        try:
            return turns_here(path, turns)
        except OSError as error:
            raise GitmirrorError(f"the refs of {path} cannot be read: {error.strerror}") from error

    def show(self, repo: str, name: str) -> dict[str, Any]:
        """The session, with `turns` as a list, each turn with what it changed since the one before."""
        session = self.find(repo, name)
        turns = self.node.stores().sessions.turns(repo, session["session"])
        details = self.node.stores().details.of_session(repo, session["session"])
        documents: list[dict[str, Any]] = []
        before: Turn | None = None
        here = self._here(turns) if turns else set()
        with open_browser(self.node, repo) as browser:
            for number, turn in enumerate(turns, 1):
                is_known = before is not None and {before.id, turn.id} <= here
                since = browser.changed(before.commit, turn.commit) if before and is_known else None
                documents.append(
                    {key: value for key, value in asdict(turn).items() if key not in ("repo", "session")}
                    | {"turn": number, "since_last": asdict(since) if since else None}
                    | details.get(turn.id, no_details())
                )
                before = turn
        return session | {"nodes": nodes_of(turns), "turns": documents}

    def print_diff(self, comparison: Comparison, options: Sequence[str], *, raw: bool, colour: bool) -> bool:
        """Prints the diff to stdout. Control characters are escaped unless `raw`. Returns whether there were any."""
        with open_browser(self.node, comparison.repo) as browser:
            return browser.print_diff(*comparison.commits, options, raw=raw, colour=colour)

    def files(self, comparison: Comparison) -> list[FileChange]:
        """The files that differ."""
        with open_browser(self.node, comparison.repo) as browser:
            return browser.files(*comparison.commits)

    def file_diff(self, comparison: Comparison, change: FileChange, limit: int) -> tuple[str, bool]:
        """The diff of one of `files` as text, and whether it was cut off after `limit` bytes."""
        with open_browser(self.node, comparison.repo) as browser:
            return browser.file_diff(*comparison.commits, change, limit)

    def export(self, comparison: Comparison, path: Path) -> int:
        """Writes the diff to a new file as a patch for `git apply`. Returns its size in bytes."""
        with open_browser(self.node, comparison.repo) as browser:
            patch = browser.patch(*comparison.commits)
        with self._new_file(path) as file:
            file.write(patch)
        return len(patch)

    @contextmanager
    def _new_file(self, path: Path) -> Iterator[BinaryIO]:
        """Opens a new file outside the state directory, which is gone again if the block fails."""
        try:
            with self.node.files.create(path) as file:
                try:
                    yield file
                    file.flush()
                except BaseException:
                    self.node.files.remove(path)
                    raise
        except FileExistsError:
            raise UsageError(f"{path} already exists", hint="name a file that does not exist yet") from None
        except OSError as error:
            raise GitmirrorError(f"{path} cannot be written: {error.strerror}", hint="choose another path") from error

    def log(self, session: dict[str, Any]) -> list[CommitText]:
        """The commits of a session, as `find` returned it, on top of its base, newest first."""
        self._bring(self.node.stores().sessions.turns(session["repo"], session["session"])[-1:])
        with open_browser(self.node, session["repo"]) as browser:
            return list(browser.log(session["base"], session["tip"]))

    def checkout(self, repo: str, name: str, directory: Path, turn: int | None) -> Turn:
        """Checks out a turn (default: the last) as a worktree outside the mirror, with the upstream as `origin`."""
        chosen = self.turn(repo, name, turn)
        self._bring([chosen])
        url = self.upstream(repo)
        branch = f"session/{chosen.session}"
        try:
            with open_browser(self.node, repo) as browser, browser.packed(chosen.commit) as pack:
                self.node.files.check_out(pack, directory, chosen.commit, branch=branch, origin=url)
        except OSError as error:
            raise GitmirrorError(
                f"{error.filename or directory} cannot be written: {error.strerror}",
                hint="choose a directory that you may write to",
            ) from error
        return chosen

    def turn(self, repo: str, name: str, number: int | None) -> Turn:
        """A turn (default: the last) of a session, as `find` finds it."""
        session = self.find(repo, name)["session"]
        return find_turn(session, self.node.stores().sessions.turns(repo, session), number)[1]

    def upstream(self, repo: str) -> str:
        """The URL of the upstream of a repository."""
        return self.node.stores().registry.get(repo).url

    def bundle(self, turn: Turn, output: BinaryIO) -> int:
        """Writes a git bundle of a turn; see `bundling.write_bundle`. Returns its size in bytes."""
        from appliance.core.node.bundling import write_bundle

        self._bring([turn])
        return write_bundle(self.node.layout, turn, output)

    def attachment(self, repo: str, name: str, attachment: str, number: int | None) -> BinaryIO:
        """Opens an attachment of a turn of a session, as `find` finds it; by default of the newest that has it."""
        from appliance.core.recording.attached import find_attachment, open_attachment

        stores, session = self.node.stores(), self.find(repo, name)["session"]
        turns = stores.sessions.turns(repo, session)
        row = find_attachment(stores.details, session, turns, attachment, number)
        away = [number for number, turn in enumerate(turns, 1) if turn.id == row.turn_id and turn.away]
        if away and not (self.node.layout.attachments / row.path).exists():
            self.node.current().bring_turns(repo, session, away, attachment)
        return open_attachment(self.node.layout, row)

    def save_attachment(self, repo: str, session: str, attachment: str, number: int, path: Path) -> int:
        """Writes an attachment of turn `number` to a new file. Returns its size in bytes."""
        with self.attachment(repo, session, attachment, number) as source, self._new_file(path) as file:
            shutil.copyfileobj(source, file)
            return file.tell()

    def keep(self, repo: str, name: str, kept: bool) -> str:
        """Exempts a session from retention, or ends the exemption. Returns the session's full name."""
        session = self.find(repo, name)["session"]
        self.node.current().keep_session(repo, session, kept)
        return str(session)

    def drop(self, repo: str, name: str) -> str:
        """Ends a session at once, through `serve`. Returns the session's full name. Raises NotServing."""
        session = self.find(repo, name)["session"]
        self.node.current().drop_session(repo, str(session))
        return str(session)

    def drop_listed(self, repo: str, session: str, tip: str) -> None:
        """As `drop`, but with the whole name, and only while `tip` is its last commit.

        So no other session stands in for one that ended meanwhile, and no turn is lost that an agent recorded since.
        Raises Conflict, NotServing.
        """
        self.node.current().drop_session(repo, session, tip)


@contextmanager
def open_browser(node: Node, repo: str) -> Iterator[Browser]:
    """Opens the mirror of a repository for reading, until the block ends. Raises GitmirrorError."""
    from appliance.core.git.browse import Browser

    layout = node.layout
    # First, because it finds out whether there is a mirror at all.
    browser = Browser(layout.mirror(repo), git_environment(layout, layout.git_config, os.environ))
    try:
        if not layout.git_config.exists():
            write_git_configs(layout, max_push=node.config.recording.max_push)
        yield browser
    finally:
        browser.close()
