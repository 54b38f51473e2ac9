"""Who is served now or was in the last hour, and whose hydration is far slower than others like it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from appliance.tui.data.activity import seconds_of
from appliance.tui.data.rows import GuestRow

HOUR = 3600.0
KEPT = 5000
"""The most hydrations of the last hour that are looked at; a busy node has more, and the newest say enough."""
ENOUGH = 5
"""Hydrations of one kind from which their median says what is usual."""
SLOW = 4.0
"""How many times slower than the median an outlier is, at least."""
NOTICED = 1.0
"""Seconds by which an outlier is slower than the median, at least: nobody notices less."""

BRIEF = 0.2
"""Seconds between two looks that are too few to tell a speed."""

Kind = tuple[str, str]
"""Hydrations that can be compared: the repository and the shape of the request."""


@dataclass(frozen=True)
class Served:
    """A hydration that ended. `who` is the name of a known guest, or the address of any other."""

    who: str
    at: float
    repo: str
    shape: str
    way: str
    road: str
    bytes: int
    seconds: float
    outcome: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Served:
        """Makes one from a row of the history."""
        return cls(
            row["guest"] or row["client"], seconds_of(row["at"]), row["repo"], row["shape"], row["way"],
            road_words(row["protocol"], row["client"].partition(":")[0]), row["bytes"], row["seconds"],
            row.get("outcome", "complete"),
        )  # fmt: skip


@dataclass(frozen=True)
class Running:
    """A hydration that runs. `speed` is bytes a second since the last look; `size` is None while nobody knows it."""

    id: int
    who: str
    repo: str
    shape: str
    way: str | None
    road: str
    bytes: int
    size: int | None
    seconds: float
    speed: float

    @classmethod
    def of(cls, row: Mapping[str, Any], before: Running | None) -> Running:
        """Makes one from an element of `GET /v1/transfers`; `before` is what it was at the last look."""
        seconds, sent = row["seconds"], row["bytes"]
        if before is None:
            speed = sent / max(seconds, BRIEF)
        elif seconds - before.seconds < BRIEF:
            speed = before.speed
        else:
            speed = max(0.0, (sent - before.bytes) / (seconds - before.seconds))
        return cls(
            row["id"], row["guest"] or row["client"], row["repo"], row["shape"], row["way"],
            road_words(row["protocol"], row["road"]), sent, row["size"], seconds, speed,
        )  # fmt: skip


@dataclass(frozen=True)
class Slowness:
    """An outlier: `factor` times slower than the median of `usual` seconds, which `of` hydrations like it have."""

    factor: float
    usual: float
    of: int


@dataclass(frozen=True)
class GuestLine:
    """One guest of the list: known, served now, served in the last hour, or with a leased disk.

    `hour` counts its hydrations of the last hour. `slow` is how slow the slowest of what runs is, or what ended last.
    """

    name: str
    known: GuestRow | None
    running: tuple[Running, ...]
    last: Served | None
    hour: int
    disks: int
    slow: Slowness | None


def road_words(protocol: str, road: str) -> str:
    """The road in words: `git://`, `HTTP`, `git:// over vsock`."""
    name = "git://" if protocol == "git" else "HTTP"
    return name + {"unix": " over a unix socket", "vsock": " over vsock"}.get(road, "")


class Traffic:
    """The hydrations of the last hour, and those that run. Belongs to the UI thread."""

    def __init__(self) -> None:
        self.last_id = 0
        """The newest row that was read."""
        self.running: tuple[Running, ...] = ()
        self._served: deque[Served] = deque(maxlen=KEPT)
        self._usual: dict[Kind, tuple[float, int]] = {}

    def take(self, rows: Sequence[Mapping[str, Any]], now: float) -> bool:
        """Adds rows of the history, oldest first, and drops what is older than an hour. Returns whether it differs."""
        found = [row for row in rows if row["id"] > self.last_id]
        before = len(self._served)
        while self._served and self._served[0].at < now - HOUR:
            self._served.popleft()
        if not found and before == len(self._served):
            return False
        for row in found:
            self.last_id = row["id"]
            self._served.append(Served.of(row))
        kinds: dict[Kind, list[float]] = defaultdict(list)
        for each in self._served:
            if each.outcome == "complete":
                kinds[each.repo, each.shape].append(each.seconds)
        self._usual = {kind: (median(took), len(took)) for kind, took in kinds.items() if len(took) >= ENOUGH}
        return True

    def look(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Takes what runs now. Returns whether it differs."""
        known = {each.id: each for each in self.running}
        running = tuple(Running.of(row, known.get(row["id"])) for row in rows)
        differs, self.running = running != self.running, running
        return differs

    def slowness(self, each: Running | Served) -> Slowness | None:
        """How much slower than others like it a hydration is, if it is an outlier. One that runs may become slower."""
        usual = self._usual.get((each.repo, each.shape))
        if usual is None or each.seconds - usual[0] < NOTICED or each.seconds < SLOW * usual[0]:
            return None
        return Slowness(each.seconds / max(usual[0], 0.001), *usual)

    def of(self, who: str) -> list[Served]:
        """The hydrations of one guest in the last hour, newest first."""
        return [each for each in reversed(self._served) if each.who == who]

    def lines(self, guests: Iterable[GuestRow], disks: Mapping[str, int]) -> list[GuestLine]:
        """Makes the list. `disks` has the number of leased disks by guest."""
        known = {guest.name: guest for guest in guests}
        running: dict[str, list[Running]] = defaultdict(list)
        for each in self.running:
            running[each.who].append(each)
        last: dict[str, Served] = {}
        hour: dict[str, int] = defaultdict(int)
        for served in self._served:
            last[served.who] = served
            hour[served.who] += 1
        return [
            GuestLine(
                who,
                known.get(who),
                tuple(running.get(who, ())),
                last.get(who),
                hour.get(who, 0),
                disks.get(who, 0),
                self._slowest(running.get(who) or ([last[who]] if who in last else [])),
            )
            for who in {**known, **running, **last, **disks}
        ]

    def _slowest(self, hydrations: Sequence[Running | Served]) -> Slowness | None:
        found = [slow for each in hydrations if (slow := self.slowness(each)) is not None]
        return max(found, key=lambda slow: slow.factor, default=None)
