"""Turns that mirrors hold and the audit log does not know: its database is older, or the mirrors came from elsewhere.

They are looked for at start and at the first push to a mirror that is new here, before the log can give their ids away.
Each becomes an attempt and an outcome that say it was found, under the id of its ref, so that later ids are above all
of them. When the log has that id already, the ref moves to a new one first.
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
"""How far above all known ids a ref is put whose id another turn has: pushes may be given ids meanwhile."""
MOST_PASSES = 5
MOST_DIGITS = 15
"""Digits of an id; what is longer was not given by any log."""
DEADLINE = 60.0


class FoundTurns:
    """Keeps `audit` in step with the turn refs of mirrors. `mirrors` names all on disk, `mirror_of` finds one."""

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
        self._looked_at: dict[str, tuple[int, int]] = {}
        self._one_at_a_time = asyncio.Lock()
        self.counts: Counter[str] = Counter()

    async def require_whole_log(self, repo: str) -> None:
        """For a push: raises LogBehind while events are lost that were told; StoreError, GitError.

        A mirror that was not there at the last look is looked at first.
        """
        await self._check()
        if _identity(self._mirror_of(repo).path) != self._looked_at.get(repo):
            await self.look([repo])

    async def look_everywhere(self) -> None:
        """Looks at every mirror on disk. Raises StoreError; a mirror that git cannot read is looked at again later."""
        await self.look(await asyncio.to_thread(lambda: list(self._mirrors())))
        try:
            await self._check()
        except LogBehind as behind:
            log.error("pushes are off: %s: %s", behind.message, behind.hint)

    async def look(self, names: Iterable[str]) -> None:
        """Enters into the log what mirrors hold and it does not know. Raises StoreError."""
        async with self._one_at_a_time:
            seen = {name: _identity(self._mirror_of(name).path) for name in names}
            for _ in range(MOST_PASSES):
                unknown = await asyncio.to_thread(self._unknown, list(seen))
                if not unknown:
                    break
                await self._take_up(unknown, seen)
            self._looked_at |= {name: identity for name, identity in seen.items() if identity is not None}

    async def accept_loss(self) -> dict[str, int | bool]:
        """Takes an operator's word that what the log lacks is lost, and books what was found. Raises GitmirrorError."""
        await self.look_everywhere()
        accepted = await asyncio.to_thread(self._audit.accept_loss)
        found = self.counts.total()
        self.counts.clear()
        await self._book.catch_up()
        return {"accepted": accepted, "found": found}

    def trouble(self) -> str | None:
        """What `status` warns of: turns that were found since the start."""
        if not self.counts:
            return None
        where = ", ".join(f"{count} of {name}" for name, count in sorted(self.counts.items())[:10])
        return (
            f"turns were found in mirrors that the audit log did not know: {where}; they are booked without their "
            "guest, at the time of their commit, and their sessions are kept until `session keep --off`"
        )

    async def _check(self) -> None:
        await asyncio.to_thread(self._audit.check)

    def _unknown(self, names: Iterable[str]) -> list[TurnRef]:
        return self._audit.unknown(turn for name in names for turn in turns_on_disk(name, self._mirror_of(name).path))

    async def _take_up(self, unknown: list[TurnRef], seen: dict[str, tuple[int, int] | None]) -> None:
        last = await asyncio.to_thread(self._audit.last_id)
        usable, taken = [], set()
        in_the_way: dict[str, list[TurnRef]] = {}
        for turn in sorted(unknown, key=lambda each: each.id):
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
                # git writes all that is new before it deletes, so a kill leaves both, never none.
                lines += [f"create {TURNS}{above} {turn.commit}\n", f"delete {TURNS}{turn.id} {turn.commit}\n"]
            try:
                await self._mirror_of(name).update_refs(lines)
            except GitError as error:
                log.error("%s: found turns cannot be given ids of their own: %s", name, error.message)
                seen[name] = None
        found = []
        for name in {turn.repo for turn in usable}:
            commits = [turn.commit for turn in usable if turn.repo == name]
            sessions = await self._sessions(name, commits)
            found += [
                FoundTurn(turn, sessions.get(turn.commit, f"found-{turn.id}")) for turn in usable if turn.repo == name
            ]
        for each in await asyncio.to_thread(self._audit.record_found, found):
            name, number, commit = each.ref
            self.counts[name] += 1
            log.warning("%s: the log did not know turn %d, %s; it is booked in %s", name, number, commit, each.session)

    async def _sessions(self, name: str, commits: Iterable[str]) -> dict[str, str]:
        """The session of each commit that a session's ref is at or leads to, the nearest first."""
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
            log.error("%s: the sessions of found turns cannot be told: %s", name, error.message)
            return {}
        parents = {line[0]: line[1:] for line in map(str.split, output.stdout.decode("ascii").splitlines())}
        found, waiting = dict(tips), deque(tips)
        while waiting:
            commit = waiting.popleft()
            for parent in parents.get(commit, ()):
                if parent in parents and parent not in found:
                    found[parent] = found[commit]
                    waiting.append(parent)
        return found


def turns_on_disk(name: str, repository: Path) -> Iterator[TurnRef]:
    """The turn refs of the mirror `name`, read from its files; none when they cannot be read."""
    try:
        refs = stored_refs(repository, TURNS)
    except OSError as error:
        log.error("the turns of %s cannot be read: %s", name, error)
        return
    for ref, oid in refs.items():
        number = ref.removeprefix(TURNS)
        if number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS and number[0] != "0":
            yield TurnRef(name, int(number), oid)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
