"""Leaves out the upstream refs that a mirror cannot store, reports them and retries them; all others are mirrored.

A fetch moves all refs or none, so that nobody sees half of an upstream's push. Without this, one ref that cannot be
stored (its name is too long for the disk, another ref is in its way, its objects are broken upstream) would stop the
whole mirror.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.core.git.command import GitError
from appliance.core.git.failures import Kind, in_words, kind_of
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import unholdable
from appliance.core.models import RemoteRefs
from appliance.core.text import storable

log = logging.getLogger(__name__)

RETRY_EVERY = 300.0
"""Seconds after which a left-out ref that has not moved is tried again."""
MOST_TRIES = 48
"""The most fetches in one refresh that search for failing refs. By halving, one of a hundred thousand takes 34."""
FAILURES_FIRST = 2
"""Failed refreshes in a row before single refs are blamed for an error that may pass, or be the connection's fault."""

_MAY_BE_OF_A_REF = frozenset({Kind.LOCKED, Kind.MIRROR, Kind.BROKEN, Kind.OTHER})
_LOCAL = frozenset({Kind.REF, Kind.LOCKED})
"""Kinds of errors caused by this disk: each ref is blamed by itself, even if all refs fail."""
LONGEST_SHOWN = 80


@dataclass(frozen=True)
class _LeftOut:
    oid: str
    reason: str
    retry_at: float


class _Enough(Exception):
    """Stops the search: no single ref is to blame, or too many are."""


class LeftOutRefs:
    """Remembers which refs of each mirror were left out. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._known: dict[Path, dict[str, _LeftOut]] = {}
        self._failures: Counter[Path] = Counter()

    def of(self, mirror: Mirror, remote: RemoteRefs) -> dict[str, str]:
        """The refs of `remote` that must not be fetched now, with the reason for each."""
        reasons = unholdable(mirror.path, remote.refs)
        now = self.clock()
        for ref, left in self._known.get(mirror.path, {}).items():
            if remote.refs.get(ref) == left.oid and now < left.retry_at:
                reasons.setdefault(ref, left.reason)
        return reasons

    async def fetch(
        self,
        mirror: Mirror,
        remote: RemoteRefs,
        changed: Sequence[str],
        left_out: Mapping[str, str],
        deadline: float,
        on_progress: Callable[[str], None] | None = None,
    ) -> dict[str, str]:
        """Fetches all refs but `left_out`; returns all refs that are left out afterwards. Raises GitError.

        If the fetch fails, the refs of `changed` that fail on their own are left out too.
        """
        try:
            await mirror.fetch(deadline, on_progress, without=left_out)
        except GitError as error:
            more = await self._to_blame(mirror, remote, changed, error, deadline)
            await mirror.fetch(deadline, on_progress, without=[*left_out, *more])
            for ref, reason in more.items():
                log.warning("%s: %s is left out: %s", mirror.path.name, storable(ref), reason)
        else:
            more = {}
        self._failures.pop(mirror.path, None)
        self._remember(mirror, remote, left_out, more)
        return {**left_out, **more}

    async def _to_blame(
        self, mirror: Mirror, remote: RemoteRefs, changed: Sequence[str], error: GitError, deadline: float
    ) -> dict[str, str]:
        kind = kind_of(error.stderr or error.message, timed_out=error.timed_out)
        self._failures[mirror.path] += 1
        known = self._known.get(mirror.path, {})
        again = [ref for ref in changed if ref in known and known[ref].oid == remote.refs[ref]]
        insists = bool(again) or self._failures[mirror.path] >= FAILURES_FIRST
        if kind is not Kind.REF and not (kind in _MAY_BE_OF_A_REF and insists):
            raise error
        blamed: dict[str, str] = {}
        try:
            await _halve(mirror, changed, deadline, blamed, [MOST_TRIES])
        except _Enough:
            raise error from None
        if len(blamed) == len(changed) > len(again) and kind not in _LOCAL:
            # Every ref failed, so the fault is the upstream's or the mirror's, not a single ref's.
            raise error
        return blamed

    def renamed(self, before: Path, after: Path) -> None:
        """Moves what is known about the mirror at one path to another path."""
        if known := self._known.pop(before, None):
            self._known[after] = known

    def _remember(
        self, mirror: Mirror, remote: RemoteRefs, left_out: Mapping[str, str], more: Mapping[str, str]
    ) -> None:
        before, now = self._known.pop(mirror.path, {}), self.clock()
        kept = {ref: left for ref, left in before.items() if ref in left_out}
        for ref, reason in more.items():
            # Retry a locked ref at once, because the lock may be gone at the next refresh.
            patience = 0.0 if kind_of(reason) is Kind.LOCKED else RETRY_EVERY
            kept[ref] = _LeftOut(remote.refs[ref], reason, now + patience)
        if kept:
            self._known[mirror.path] = kept


async def _halve(
    mirror: Mirror, refs: Sequence[str], deadline: float, blamed: dict[str, str], tries: list[int]
) -> None:
    """Fetches `refs` in ever smaller parts, and adds those that fail on their own to `blamed`."""
    if not refs:
        return
    tries[0] -= 1
    if tries[0] < 0:
        raise _Enough
    try:
        await mirror.fetch(deadline, only=refs)
    except GitError as error:
        if error.timed_out:
            raise _Enough from error
        if len(refs) == 1:
            blamed[refs[0]] = error.message
            return
        middle = len(refs) // 2
        await _halve(mirror, refs[:middle], deadline, blamed, tries)
        await _halve(mirror, refs[middle:], deadline, blamed, tries)


def in_one_sentence(left_out: Mapping[str, str]) -> str:
    """The `last_error` of a mirror that is up to date except for these refs."""
    ref, reason = next(iter(left_out.items()))
    name, more = storable(ref), len(left_out) - 1
    short = name if len(name) <= LONGEST_SHOWN else f"{name[: LONGEST_SHOWN - 1]}…"
    others = f", and {more} more refs" if more else ""
    return in_words(Kind.REF, f"{short}: {reason.replace(name, '…') if short != name else reason}{others}")
