"""Finds turns in mirrors that the audit log does not know: the database is older, or the mirrors came from elsewhere.

The search runs at start, and at the first push to a mirror that is new here, before the log can assign those turns' ids
to other events. Each found turn becomes an attempt and an outcome marked as found, under the id in its ref, so that all
later ids are higher. If the log already uses that id, the ref gets a new id first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import ANCHORS
from appliance.core.git.stored_refs import stored_refs
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS, TurnRecorder
from appliance.core.store.audit import AuditLog, FoundTurn, LogBehind, TurnRef

log = logging.getLogger(__name__)

APART = 1000
"""If another event has a turn's id, its new id is this far above all known ones, because pushes get ids meanwhile."""
MOST_PASSES = 5
MOST_DIGITS = 15
"""The most digits of an id; no log has assigned a longer one."""
DEADLINE = 60.0


class FoundTurns:
    """Adds unknown turn refs of mirrors to `audit`. `mirrors` names all mirrors on disk, `mirror_of` opens one."""

    def __init__(
        self,
        audit: AuditLog,
        book: TurnRecorder,
        mirrors: Callable[[], Iterable[str]],
        mirror_of: Callable[[str], Mirror],
    ) -> None:
        self._audit = audit
        self._book = book
        self._mirrors = mirrors
        self._mirror_of = mirror_of
        self._searched: dict[str, tuple[int, int]] = {}
        self._one_at_a_time = asyncio.Lock()
        self.counts: Counter[str] = Counter()

    async def require_whole_log(self, repo: str) -> None:
        """Checks the log before a push. Raises LogBehind if reported events are lost; StoreError, GitError.

        Searches the mirror first if it has not been searched since it came to this place.
        """
        await self._check()
        if _identity(self._mirror_of(repo).path) != self._searched.get(repo):
            await self.look([repo])

    async def look_everywhere(self) -> None:
        """Searches every mirror on disk. Raises StoreError. A mirror that git cannot read is searched again later."""
        await self.look(await asyncio.to_thread(lambda: list(self._mirrors())))
        try:
            await self._check()
        except LogBehind as behind:
            log.error("pushes are off: %s: %s", behind.message, behind.hint)

    async def look(self, names: Iterable[str]) -> None:
        """Adds the turns of these mirrors that the log does not know to the log. Raises StoreError."""
        async with self._one_at_a_time:
            searched = {name: _identity(self._mirror_of(name).path) for name in names}
            for _ in range(MOST_PASSES):
                unknown = await asyncio.to_thread(self._unknown, list(searched))
                if not unknown:
                    break
                await self._add_to_log(unknown, searched)
            self._searched |= {name: identity for name, identity in searched.items() if identity is not None}

    async def accept_loss(self) -> dict[str, int | bool]:
        """Accepts, for an operator, that the missing events are lost; records found turns. Raises GitmirrorError."""
        await self.look_everywhere()
        accepted = await asyncio.to_thread(self._audit.accept_loss)
        found = self.counts.total()
        self.counts.clear()
        await self._book.catch_up()
        return {"accepted": accepted, "found": found}

    def trouble(self) -> str | None:
        """The warning in `status` about turns found since the start."""
        if not self.counts:
            return None
        where = ", ".join(f"{count} of {name}" for name, count in sorted(self.counts.items())[:10])
        return (
            f"mirrors had turns that the audit log did not know: {where}; they are recorded without a guest, at the "
            "time of their commit, and their sessions are kept until `session keep --off`"
        )

    async def _check(self) -> None:
        await asyncio.to_thread(self._audit.check)

    def _unknown(self, names: Iterable[str]) -> list[TurnRef]:
        return self._audit.unknown(turn for name in names for turn in turns_on_disk(name, self._mirror_of(name).path))

    async def _add_to_log(self, unknown: list[TurnRef], searched: dict[str, tuple[int, int] | None]) -> None:
        last = await asyncio.to_thread(self._audit.last_id)
        usable, taken = [], set()
        in_the_way: dict[str, list[TurnRef]] = {}
        for turn in sorted(unknown, key=lambda turn: turn.id):
            if turn.id > last and turn.id not in taken:
                taken.add(turn.id)
                usable.append(turn)
            else:
                in_the_way.setdefault(turn.repo, []).append(turn)
        above = max(last, *(turn.id for turn in unknown)) + APART
        for name, turns in in_the_way.items():
            lines = []
            for turn in turns:
                above += 1
                # git creates refs before it deletes any, so a kill leaves both refs, never none.
                lines += [f"create {TURNS}{above} {turn.commit}\n", f"delete {TURNS}{turn.id} {turn.commit}\n"]
            try:
                await self._mirror_of(name).update_refs(lines)
            except GitError as error:
                log.error("%s: found turns cannot be given new ids: %s", name, error.message)
                searched[name] = None
        found = []
        for name in {turn.repo for turn in usable}:
            commits = [turn.commit for turn in usable if turn.repo == name]
            sessions = await self._sessions(name, commits)
            found += [
                FoundTurn(turn, sessions.get(turn.commit, f"found-{turn.id}")) for turn in usable if turn.repo == name
            ]
        for recorded in await asyncio.to_thread(self._audit.record_found, found):
            name, number, commit = recorded.ref
            self.counts[name] += 1
            log.warning(
                "%s: the audit log did not know turn %d, commit %s; recorded it in session %s",
                name,
                number,
                commit,
                recorded.session,
            )

    async def _sessions(self, name: str, commits: Iterable[str]) -> dict[str, str]:
        """The session of each commit that is at or below a session's ref; the nearest ref wins."""
        mirror = self._mirror_of(name)
        try:
            refs = await mirror.local_refs(AGENTS, ARCHIVE)
            tips = {oid: ref.removeprefix(AGENTS).removeprefix(ARCHIVE) for ref, oid in refs.items()}
            if all(commit in tips for commit in commits):
                return tips
            output = await mirror.git.run(
                "rev-list", "--parents", f"--glob={AGENTS}*", f"--glob={ARCHIVE}*",
                "--not", "--branches", "--tags", f"--glob={ANCHORS}*", "--",
                cwd=mirror.path, deadline=DEADLINE,
            )  # fmt: skip
        except GitmirrorError as error:
            log.error("%s: cannot find out to which sessions found turns belong: %s", name, error.message)
            return {}
        parents = {line[0]: line[1:] for line in map(str.split, output.stdout.decode("ascii").splitlines())}
        sessions, waiting = dict(tips), deque(tips)
        while waiting:
            commit = waiting.popleft()
            for parent in parents.get(commit, ()):
                if parent in parents and parent not in sessions:
                    sessions[parent] = sessions[commit]
                    waiting.append(parent)
        return sessions


def turns_on_disk(name: str, repository: Path) -> Iterator[TurnRef]:
    """The turn refs of the mirror `name`, read from its files; nothing if they cannot be read."""
    try:
        refs = stored_refs(repository, TURNS)
    except OSError as error:
        log.error("the turns of %s cannot be read: %s", name, error)
        return
    for ref, oid in refs.items():
        number = ref.removeprefix(TURNS)
        if is_turn_number(number):
            yield TurnRef(name, int(number), oid)


def is_turn_number(text: str) -> bool:
    """Whether the last part of a turn's ref is an id that a log may have assigned."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and text[0] != "0"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
