"""Finds turns that mirrors hold and the audit log lacks, because its database is older or a mirror came from elsewhere.

It looks for them at start, and at the first push to a mirror that is new here, before the log can assign their ids to
other turns. Each becomes an attempt and an outcome that say it was found, under the id in its ref, so that all later
ids are higher. If the log has assigned that id already, the ref first moves to a new id.
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
"""A ref whose id another turn has moves this far above all known ids, because pushes may get ids meanwhile."""
MOST_PASSES = 5
MOST_DIGITS = 15
"""The most digits of an id. No log has assigned a longer one."""
DEADLINE = 60.0


class FoundTurns:
    """Adds missing turns to `audit`. `mirrors` names all mirrors on disk; `mirror_of` finds one."""

    def __init__(
        self,
        audit: AuditLog,
        recorder: TurnRecorder,
        mirrors: Callable[[], Iterable[str]],
        mirror_of: Callable[[str], Mirror],
    ) -> None:
        self._audit = audit
        self._recorder = recorder
        self._mirrors = mirrors
        self._mirror_of = mirror_of
        self._looked_at: dict[str, tuple[int, int]] = {}
        self._one_at_a_time = asyncio.Lock()
        self.counts: Counter[str] = Counter()

    async def require_whole_log(self, repo: str) -> None:
        """Checks before a push. Raises LogBehind if the log lacks events that were reported; StoreError.

        Looks at the mirror first if it is not the one that was there at the last look.
        """
        await self._check()
        if _identity(self._mirror_of(repo).path) != self._looked_at.get(repo):
            await self.look([repo])

    async def look_everywhere(self) -> None:
        """Looks at every mirror on disk. Raises StoreError. An unreadable one is looked at before its next push."""
        await self.look(await asyncio.to_thread(lambda: list(self._mirrors())))
        try:
            await self._check()
        except LogBehind as behind:
            log.error("pushes are off: %s: %s", behind.message, behind.hint)

    async def look(self, names: Iterable[str]) -> None:
        """Adds to the log the turns that these mirrors hold and it lacks. Raises StoreError."""
        async with self._one_at_a_time:
            seen = {name: _identity(self._mirror_of(name).path) for name in names}
            for _ in range(MOST_PASSES):
                unknown = await asyncio.to_thread(self._unknown, seen)
                if not unknown:
                    break
                await self._add(unknown, seen)
            for name, identity in seen.items():
                if identity is not None:
                    self._looked_at[name] = identity
                else:
                    self._looked_at.pop(name, None)

    async def accept_loss(self) -> dict[str, int | bool]:
        """Continues the log although events are lost, as an operator ordered. Raises GitmirrorError."""
        await self.look_everywhere()
        accepted = await asyncio.to_thread(self._audit.accept_loss)
        found = self.counts.total()
        self.counts.clear()
        await self._recorder.catch_up()
        return {"accepted": accepted, "found": found}

    def trouble(self) -> str | None:
        """The warning for `status` about turns that were found since the start, or None."""
        if not self.counts:
            return None
        where = ", ".join(f"{count} of {name}" for name, count in sorted(self.counts.items())[:10])
        return (
            f"turns were found in mirrors that the audit log lacked: {where}; they are recorded without their "
            "guest, at the time of their commit, and their sessions are kept until `session keep --off`"
        )

    async def _check(self) -> None:
        await asyncio.to_thread(self._audit.check)

    def _unknown(self, seen: dict[str, tuple[int, int] | None]) -> list[TurnRef]:
        """The turns that the log does not know. A mirror that cannot be read is removed from `seen`."""
        return self._audit.unknown(turn for name in seen for turn in self._turns(name, seen))

    def _turns(self, name: str, seen: dict[str, tuple[int, int] | None]) -> list[TurnRef]:
        try:
            return list(_read_turns(name, self._mirror_of(name).path))
        except OSError as error:
            log.error("cannot read the turns of %s, the next push to it tries again: %s", name, error)
            seen[name] = None
            return []

    async def _add(self, unknown: list[TurnRef], seen: dict[str, tuple[int, int] | None]) -> None:
        last = await asyncio.to_thread(self._audit.last_id)
        usable, taken = [], set()
        conflicting: dict[str, list[TurnRef]] = {}
        for turn in sorted(unknown, key=lambda turn: turn.id):
            if turn.id > last and turn.id not in taken:
                taken.add(turn.id)
                usable.append(turn)
            else:
                conflicting.setdefault(turn.repo, []).append(turn)
        above = max(last, *(turn.id for turn in unknown)) + APART
        for name, turns in conflicting.items():
            lines = []
            for turn in turns:
                above += 1
                # git writes all new refs before it deletes the old ones, so a kill leaves both, never none.
                lines += [f"create {TURNS}{above} {turn.commit}\n", f"delete {TURNS}{turn.id} {turn.commit}\n"]
            try:
                await self._mirror_of(name).update_refs(lines)
            except GitError as error:
                log.error("%s: cannot move the refs of found turns to new ids: %s", name, error.message)
                seen[name] = None
        found = []
        for name in {turn.repo for turn in usable}:
            commits = [turn.commit for turn in usable if turn.repo == name]
            sessions = await self._sessions(name, commits)
            for turn in usable:
                if turn.repo == name:
                    found.append(FoundTurn(turn, sessions.get(turn.commit, unnamed_session(turn.id))))
        for turn_found in await asyncio.to_thread(self._audit.record_found, found):
            name, number, commit = turn_found.ref
            self.counts[name] += 1
            session = turn_found.session
            log.warning("%s: the log lacked turn %d (%s); it is now recorded in %s", name, number, commit, session)

    async def _sessions(self, name: str, commits: Iterable[str]) -> dict[str, str]:
        """Maps each commit at a session's ref, or reachable from one, to the nearest such session."""
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
            log.error("%s: cannot find the sessions of found turns: %s", name, error.message)
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
    """The turn refs of the mirror `name`, read from its files; empty if they cannot be read."""
    try:
        yield from _read_turns(name, repository)
    except OSError as error:
        log.error("cannot read the turns of %s: %s", name, error)


def _read_turns(name: str, repository: Path) -> Iterator[TurnRef]:
    for ref, oid in stored_refs(repository, TURNS).items():
        number = ref.removeprefix(TURNS)
        if is_turn_number(number):
            yield TurnRef(name, int(number), oid)


def unnamed_session(turn: int) -> str:
    """The session of a turn that was found where no session's ref reached it. It has no ref of its own."""
    return f"found-{turn}"


def is_turn_number(text: str) -> bool:
    """Whether the last part of a turn's ref is an id that a log may have assigned."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and text[0] != "0"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
