"""Keeps the state directory within `[storage] budget`, and its disk from filling up, by removing what is cold.

Kinds are removed in the order in which they are given. Within each kind, what has been unused for the longest time goes
first. Recordings, the database and the mirrors of repositories that an operator registered belong to no kind, so they
are never removed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.core.layout import Layout
from appliance.core.maintenance.usage import ANSWERS, KINDS, Usage, UsageMeter
from appliance.core.process.cold import ColdThing, Reclaimable
from appliance.core.process.disk import LOW, Space, space_of
from appliance.core.process.endurance import Endurance
from appliance.core.units import counted, format_duration, format_size, rfc3339

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between two looks at the free space of the disk, which is one system call."""
MEASURE_EVERY = 300.0
"""Seconds after which the state directory is measured even if the free space shows no growth."""
MEASURE_APART = 2.0
"""The least seconds between two measurements; a long one is followed by a pause five times as long as it took."""
FRESH = 10.0
"""The greatest age in seconds of a measurement that `status` uses."""
SHARE = 0.05
"""The part of a processor that measurements for `status` may take, however often `status` is called."""
PATIENCE = 2.0
"""Seconds that `status` waits for a newer measurement."""
FIRST = 5.0
"""Seconds that `status` waits for the first measurement, because nothing is known before it."""
DOWN_TO = 0.95
"""The part of the budget down to which space is freed, so that the next byte does not begin another round."""
NOTHING_LEFT = 15.0
"""Seconds until the next try after one that found nothing to remove."""
MOST_PAST = 200
"""Evictions that are remembered for `storage`."""


def reserve_of(total: int) -> int:
    """Free bytes of a disk of `total` bytes below which cold things are removed even without a budget.

    Removal ends at twice as many. It is half of the free space below which no new responses are cached, and less on a
    small disk.
    """
    return min(LOW // 2, total // 20)


@dataclass(frozen=True)
class Shortage:
    """Why something has to be removed: `bytes` must become free, for the reason in `words`."""

    bytes: int
    words: str


class DiskBudget:
    """Measures `layout.state` and reclaims from `kinds`, in this order. `budget` gives the setting, or None.

    `on_room` gets how many bytes more may be cached until the next measurement, or None if there is no budget.
    """

    def __init__(
        self,
        layout: Layout,
        kinds: Sequence[Reclaimable],
        budget: Callable[[], int | None],
        *,
        on_room: Callable[[int | None], None],
        space: Callable[[], Space | None] | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._kinds = tuple(kinds)
        self._budget = budget
        self._on_room = on_room
        self._space = space or (lambda: space_of(layout.state))
        self._clock = clock
        self._timer = timer
        self._meter = UsageMeter(layout, clock)
        self._measuring: asyncio.Task[Usage] | None = None
        self._measured_at = -math.inf
        self._looked_at = -math.inf
        self._not_before = -math.inf
        self._free_then = 0
        self._took = 0.0
        """Seconds of processor time that the last measurement took."""
        self._budget_then: int | None = None
        self._endurance = Endurance(log, "making room", bugs=True)
        self._is_over = False
        self.usage = Usage()
        """The last measurement."""
        self.trouble: str | None = None
        """Why the budget cannot be kept, as a warning with what to do; None while it is."""
        self.past: deque[tuple[float, ColdThing]] = deque(maxlen=MOST_PAST)
        """What went last, with the time, the newest last."""
        self.evicted_bytes: Counter[str] = Counter({kind.kind: 0 for kind in kinds})
        self.evictions: Counter[str] = Counter({kind.kind: 0 for kind in kinds})
        """By kind, since the start."""

    async def run(self) -> None:
        """Runs the loop until it is cancelled."""
        while True:
            with self._endurance.over("the disk budget"):
                await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Looks at the disk, measures if that may change something, and makes room if there is too little.

        Raises OSError, GitmirrorError.
        """
        now, budget, space = self._timer(), self._budget(), self._space()
        if space is None:
            return
        # Others may write to the same disk, so the state directory has grown by at most what the free space has lost.
        most = self.usage.total + max(0, self._free_then - space.free)
        is_tight = (budget is not None and most > budget) or space.free < reserve_of(space.total)
        # Counted from the last look, because `status` measures too and must not postpone this.
        is_due = now - self._looked_at >= MEASURE_EVERY or budget != self._budget_then
        is_due = is_due or (self.trouble is not None and not is_tight)
        if not is_due and not (is_tight and now >= self._not_before):
            return
        usage = await self.measure()
        self._looked_at = self._timer()
        self._not_before = self._looked_at + max(MEASURE_APART, 5 * (self._looked_at - now))
        if shortage := self.shortage(usage):
            left = await self._make_room(shortage)
            usage = await self.measure()
            if left == shortage.bytes:
                self._not_before = self._timer() + NOTHING_LEFT
        self._settle(usage, budget)

    async def measure(self) -> Usage:
        """Measures now, or waits for the measurement that is running."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure(), name="measuring the state directory")
        return await asyncio.shield(self._measuring)

    async def fresh(self) -> Usage:
        """A measurement for a reader: a new one if that takes no longer than PATIENCE, or else the last."""
        if self._is_old():
            measuring = asyncio.ensure_future(self.measure())
            await asyncio.wait([measuring], timeout=PATIENCE if self.usage.at else FIRST)
            if not measuring.done():
                # Only the waiting ends; the measurement goes on.
                measuring.cancel()
        return self.usage

    def _is_old(self) -> bool:
        """Whether the last measurement is too old for `status`: the sooner, the less it took."""
        return self._timer() - self._measured_at > min(FRESH, self._took / SHARE)

    async def _measure(self) -> Usage:
        space = self._space()
        self.usage, self._took = await asyncio.to_thread(self._measure_and_time)
        self._measured_at = self._timer()
        self._free_then = space.free if space else 0
        return self.usage

    def _measure_and_time(self) -> tuple[Usage, float]:
        start = time.thread_time()
        return self._meter.measure(paced=True), time.thread_time() - start

    def shortage(self, usage: Usage) -> Shortage | None:
        """How much has to be removed, and why; None if nothing has to."""
        budget, space, shortages = self._budget(), self._space(), []
        if budget is not None and usage.total > budget:
            words = f"the state directory took {format_size(usage.total)} of its budget of {format_size(budget)}"
            shortages.append(Shortage(usage.total - int(budget * DOWN_TO), words))
        if space is not None and space.free < reserve_of(space.total):
            words = f"{format_size(space.free)} were free on the disk of {format_size(space.total)}"
            shortages.append(Shortage(2 * reserve_of(space.total) - space.free, words))
        return max(shortages, key=lambda shortage: shortage.bytes, default=None)

    async def _make_room(self, shortage: Shortage) -> int:
        """Removes what is cold, and returns the bytes that are still missing."""
        left = shortage.bytes
        for kind in self._kinds:
            if left <= 0:
                break
            with self._endurance.over(kind.kind):
                gone = await kind.reclaim(left, self.usage.by.get(kind.kind, {}))
                left -= sum(thing.bytes for thing in gone)
                self._note(gone, shortage)
        return left

    def _note(self, gone: Sequence[ColdThing], shortage: Shortage) -> None:
        now = self._clock()
        for thing in gone:
            self.evicted_bytes[thing.kind] += thing.bytes
            self.evictions[thing.kind] += 1
        for thing in gathered(gone):
            self.past.append((now, thing))
            log.info(
                "%s: removed %s (%s, %s), because %s",
                thing.repo or "no repository", thing.what, format_size(thing.bytes), unused_for(thing, now),
                shortage.words,
            )  # fmt: skip

    def _settle(self, usage: Usage, budget: int | None) -> None:
        """Notes whether the budget is kept, and tells the cache what is left of it."""
        self._budget_then = budget
        self._on_room(None if budget is None else int(budget * DOWN_TO) - usage.total)
        over = 0 if budget is None else max(0, usage.total - budget)
        self.trouble = _over(usage, over, budget) if budget is not None and over else None
        if self.trouble and not self._is_over:
            log.warning("%s", self.trouble)
        self._is_over = bool(self.trouble)

    async def next(self, most: int) -> list[ColdThing]:
        """What is removed next, in this order, at most `most` entries. See `gathered`."""
        found: list[ColdThing] = []
        for kind in self._kinds:
            with self._endurance.over(kind.kind):
                found += gathered(await kind.candidates(self.usage.by.get(kind.kind, {})))
            if len(found) >= most:
                break
        return found[:most]

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        budget = self._budget()
        if budget is not None:
            yield "storage_budget_bytes", "[storage] budget.", budget
            over = max(0, self.usage.total - budget)
            yield "storage_over_budget_bytes", "By how much the last measurement was above [storage] budget.", over

    def by_kind(self) -> Iterator[tuple[str, str, str, dict[str, float]]]:
        """Values for /metrics that have one for each kind: type, name, help text, values."""
        sizes: dict[str, float] = {kind: self.usage.of(kind) for kind in KINDS}
        yield "gauge", "storage_bytes", "Bytes that the state directory took when it was last measured.", sizes
        gone: dict[str, float] = dict(self.evicted_bytes)
        yield "counter", "storage_evicted_bytes", "Bytes removed to keep [storage] budget or the disk from full.", gone
        count: dict[str, float] = dict(self.evictions)
        yield "counter", "storage_evictions", "Things removed to keep [storage] budget or the disk from full.", count

    def history(self) -> list[dict[str, Any]]:
        """What went, newest first: `{at, kind, repo, what, bytes}`."""
        return [{"at": rfc3339(at), **cold_document(thing)} for at, thing in reversed(self.past)]


def unused_for(thing: ColdThing, now: float) -> str:
    """`unused for 3h`, at Unix time `now`."""
    if thing.used_at <= 0:
        return "never used"
    return f"unused for {format_duration(max(0.0, now - thing.used_at))}"


def cold_document(thing: ColdThing) -> dict[str, Any]:
    """`{kind, repo, what, bytes, used_at}`; a time that nobody knows is null."""
    used_at = rfc3339(thing.used_at) if thing.used_at > 0 else None
    return {
        "kind": thing.kind,
        "repo": thing.repo or None,
        "what": thing.what,
        "bytes": thing.bytes,
        "used_at": used_at,
    }


def gathered(things: Sequence[ColdThing]) -> list[ColdThing]:
    """`things` with one entry for all cached responses or LFS objects of a repository, which may be thousands."""
    found: dict[tuple[str, str, str], list[ColdThing]] = {}
    for thing in things:
        found.setdefault((thing.kind, thing.repo, "" if thing.kind in _MANY else thing.what), []).append(thing)
    return [
        same[0]
        if same[0].kind not in _MANY
        else ColdThing(
            same[0].kind,
            same[0].repo,
            counted(len(same), *_MANY[same[0].kind]),
            sum(thing.bytes for thing in same),
            max(thing.used_at for thing in same),
        )
        for same in found.values()
    ]


_MANY = {ANSWERS: ("cached response", "cached responses"), "lfs": ("LFS object", "LFS objects")}


def _over(usage: Usage, over: int, budget: int) -> str:
    taken = sorted(((usage.of(kind), kind) for kind in KINDS if usage.of(kind)), reverse=True)
    rest = ", ".join(f"{kind} {format_size(size)}" for size, kind in taken[:4])
    return (
        f"the state directory is {format_size(over)} over [storage] budget ({format_size(budget)}), and what is left "
        f"is in use or must not be removed: {rest}; raise the budget, or remove sessions, repositories or leases of "
        "disks (`storage` lists what takes the most)"
    )
