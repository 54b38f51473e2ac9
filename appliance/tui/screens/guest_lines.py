"""The columns of the list of guests, and the lines that tell all of the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.tui.data.activity import BROKEN
from appliance.tui.data.model import Model
from appliance.tui.data.rows import GuestRow, SessionRow
from appliance.tui.data.traffic import GuestLine, Running, Served, Slowness, Traffic
from appliance.tui.screens.marking import Marks
from appliance.tui.text import Cell, bar, cell, count, percent, size, span, took, wrapped
from appliance.tui.widgets.lines import Line
from appliance.tui.widgets.listing import Column

WAYS_OF = {
    "hit": "from the cache",
    "joined": "from one that was being made",
    "miss": "made for it",
    "direct": "made for it alone",
    "snapshot": "from the snapshot",
}
"""How a hydration was answered, in words."""
NEVER = float("inf")
GAUGE = 12
ROOM = 100
"""Columns from which a gauge is drawn, too."""


class GuestColumns:
    """Makes the columns from the model, which knows the problems, and from `marks`."""

    def __init__(self, model: Model, marks: Marks) -> None:
        self._model = model
        self._marks = marks

    def all(self) -> list[Column[GuestLine]]:
        """Returns the columns, from left to right."""
        return [
            Column("GUEST", self._name, 12, 0, 24, order=lambda line: line.name),
            Column("DOES", self._does, 22, 0, 30, grows=True, order=lambda line: (not line.running, _did(line)[0])),
            Column("RECEIVED", self._received, 9, 2, right=True, order=_bytes),
            Column("SPEED", self._speed, 10, 1, right=True, order=_bytes_per_second),
            Column("TIME", self._time, 7, 0, right=True, order=_seconds),
            Column("SINCE", self._since, 6, 0, right=True, order=self._age),
            Column("ROAD", self._road, 12, 3, 23, tail=True, order=_road_of),
            Column("LAST HOUR", self._hour, 9, 5, right=True, order=lambda line: line.hour),
            Column("SESSIONS", self._sessions, 12, 6, 24, order=lambda line: line.known.sessions if line.known else ()),
            Column("REPOSITORIES", self._reads, 12, 7, 24, order=lambda line: line.known.repos if line.known else ()),
            Column("EXPIRES", self._expires, 7, 4, right=True, order=_expiry),
        ]

    def _name(self, line: GuestLine) -> Cell:
        troubled = line.slow is not None or line.name in self._model.guest_problems
        mark = "▲ " if troubled else ""
        return self._marks.piece(line), (mark, "warn"), (line.name, "strong" if line.known else "")

    @staticmethod
    def _hour(line: GuestLine) -> Cell:
        return cell(f"{line.hour:,}" if line.hour else "")

    def _age(self, line: GuestLine) -> float:
        at = self._model.clock() if line.running else _did(line)[1]
        return NEVER if at is None else -at

    def _does(self, line: GuestLine) -> Cell:
        if line.name in self._model.guest_problems:
            return cell("cannot come", "warn")
        if line.running:
            more = f" and {len(line.running) - 1} more" if len(line.running) > 1 else ""
            return (("◌ receives ", "accent"), (f"{line.running[0].repo}{more}", ""))
        did, at, tone = _did(line)
        return cell(did, tone) if at is not None else cell(did, "dim")

    def _received(self, line: GuestLine) -> Cell:
        if line.running:
            return cell(size(sum(each.bytes for each in line.running)), "accent")
        return cell(size(line.last.bytes) if line.last else "", "dim")

    def _speed(self, line: GuestLine) -> Cell:
        if line.running:
            speed = round(sum(each.speed for each in line.running))
            return cell(f"{size(speed)}/s" if any(each.bytes for each in line.running) else "", "accent")
        return cell(_rate(line.last) if line.last else "", "dim")

    def _time(self, line: GuestLine) -> Cell:
        tone = "warn" if line.slow else ""
        if line.running:
            return cell(span(max(each.seconds for each in line.running)), tone or "accent")
        return cell(took(line.last.seconds) if line.last else "", tone or "dim")

    def _since(self, line: GuestLine) -> Cell:
        if line.running:
            return cell("now", "accent")
        at = _did(line)[1]
        return cell("never", "dim") if at is None else cell(span(self._model.clock() - at))

    def _road(self, line: GuestLine) -> Cell:
        tone = "warn" if line.name in self._model.guest_problems else "dim"
        return cell(_road_of(line), "accent" if line.running else tone)

    @staticmethod
    def _sessions(line: GuestLine) -> Cell:
        if line.known is None:
            return ()
        return cell(", ".join(line.known.sessions)) if line.known.sessions else cell("none", "dim")

    @staticmethod
    def _reads(line: GuestLine) -> Cell:
        return readable(line.known) if line.known else cell("open ones", "dim")

    def _expires(self, line: GuestLine) -> Cell:
        expires_at = line.known.expires_at if line.known else None
        if expires_at is None:
            return ()
        left = expires_at - self._model.clock()
        return cell(span(left)) if left > 0 else cell("over", "warn")


def _bytes(line: GuestLine) -> int:
    return sum(each.bytes for each in line.running) if line.running else line.last.bytes if line.last else 0


def _seconds(line: GuestLine) -> float:
    return max(each.seconds for each in line.running) if line.running else line.last.seconds if line.last else 0.0


def _bytes_per_second(line: GuestLine) -> float:
    if line.running:
        return sum(each.speed for each in line.running)
    return line.last.bytes / line.last.seconds if line.last and line.last.seconds else 0.0


def _road_of(line: GuestLine) -> str:
    if line.running:
        return line.running[0].road
    if line.known:
        return line.known.ways
    return line.last.road if line.last else "disk"


def _expiry(line: GuestLine) -> float:
    return (line.known and line.known.expires_at) or NEVER


def _did(line: GuestLine) -> tuple[str, float | None, str]:
    """What a guest that receives nothing did last, when, and the tone of it."""
    known, last = line.known, line.last
    if known is not None and known.last_at is not None and (last is None or known.last_at > last.at + 1):
        return f"{known.last_what} {known.last_repo}", known.last_at, ""
    if last is not None:
        word = {"aborted": "broke off", "failed": "did not get"}.get(last.outcome)
        return f"{word or 'hydrated'} {last.repo}", last.at, "warn" if word else ""
    return (f"uses {count(line.disks, 'disk')}" if line.disks else "nothing yet"), None, ""


def readable(guest: GuestRow) -> Cell:
    """Says what the guest may read: its own repositories, private ones too, and unless `only` every open one."""
    names = ", ".join(guest.repos)
    if guest.only:
        return (("only ", "accent"), (names, "")) if names else cell("none", "dim")
    return ((names, ""), (" and open ones", "dim")) if names else cell("open ones", "dim")


def slow_words(slow: Slowness) -> str:
    """Says how slow an outlier is: `12 times slower than the median of 30 like it (0.31 s)`."""
    factor = f"{slow.factor:,.0f}" if slow.factor >= 10 else f"{slow.factor:.1f}"
    return f"{factor} times slower than the median of {slow.of:,} like it ({took(slow.usual)})"


def kind_words(each: Running | Served) -> str:
    """Says what is received: `a tar of acme/widgets`, `a pack of acme/widgets (depth 1)`."""
    if each.way == "snapshot":
        return f"a tar of {each.repo}"
    return f"a pack of {each.repo} ({each.shape})" if each.shape else f"a pack of {each.repo}"


def explain(
    line: GuestLine,
    problem: str | None,
    traffic: Traffic,
    sessions: Sequence[SessionRow],
    now: float,
    width: int,
) -> list[Line]:
    """Tells all of a guest: who it is, how slow, its ways and rights, what runs, and what it did, newest first.

    `now` is Unix seconds, and `width` columns.
    """
    known = line.known
    did, at, _ = _did(line)
    head = "has done nothing yet" if at is None and not line.disks else did
    if line.running:
        head = f"receives {count(len(line.running), 'hydration')} now"
    elif at is not None:
        head = f"{did} {span(now - at)} ago"
    troubled = problem or line.slow
    first: Cell = ((f" {'▲' if troubled else '●'} {line.name} ", "warn" if troubled else "good"), (head, ""))
    lines: list[Line] = [(first, cell(f"{_until(known, now)} ", "dim"))]
    if problem:
        lines += [(cell(f"   {text}", "warn"), ()) for text in wrapped(problem, width - 4, 1)]
    if line.slow:
        lines.append((cell(f"   {slow_words(line.slow)}", "warn"), ()))
    lines += _rights(line)
    one = len(line.running) == 1
    lines += [_running(each, None if one else traffic.slowness(each), width) for each in line.running]
    past: list[tuple[float, Line]] = [(each.at, _past(each, now)) for each in traffic.of(line.name)[:50]]
    past += [(each.last_at, _session(each, now)) for each in sessions]
    past.sort(key=lambda pair: pair[0], reverse=True)
    return [*lines, *(shown for _, shown in past)]


def _until(known: GuestRow | None, now: float) -> str:
    if known is None:
        return "not known"
    if known.expires_at is None:
        return "known until it is removed"
    return f"known for another {span(known.expires_at - now)}" if known.expires_at > now else "its time is over"


def _rights(line: GuestLine) -> list[Line]:
    known, disks = line.known, f"; it uses {count(line.disks, 'leased disk')}" if line.disks else ""
    if known is None:
        return [(cell(f"   reads open repositories, and may write sessions that no known guest has{disks}", "dim"), ())]
    roads = [
        f"by {known.unix}_9418 (git) and {known.unix}_9419 (HTTP)" if known.unix else "",
        f"from {known.address}" if known.address else "",
        "with its token" if known.has_token else "",
    ]
    sessions = ", ".join(known.sessions) or "no session"
    reads = ", ".join([*known.repos, *([] if known.only else ["every open repository"])]) or "no repository"
    return [
        (cell(f"   comes {', '.join(filter(None, roads))}{disks}", "dim"), ()),
        (cell(f"   may write {sessions}; may read {reads}", "dim"), ()),
    ]


def _running(each: Running, slow: Slowness | None, width: int) -> Line:
    if each.size:
        gauge = f"{bar(each.bytes, each.size, GAUGE)} " if width >= ROOM else ""
        far = f"{gauge}{percent(each.bytes, each.size)} of {size(each.size)}"
    else:
        far = size(each.bytes) if each.bytes else "being made"
    speed = f", {size(round(each.speed))}/s" if each.bytes else ""
    late = f"  ▲ {slow_words(slow)}" if slow else ""
    left: Cell = (("   now         ", "accent"), (f"{kind_words(each)} by {each.road}", ""), (late, "warn"))
    return left, cell(f"{far}{speed}, for {span(each.seconds)} ", "accent")


def _past(each: Served, now: float) -> Line:
    when: Cell = ((f"   {span(now - each.at):>6} ago  ", "dim"),)
    if word := BROKEN.get(each.outcome):
        what: Cell = ((f"{word}: ", "warn"), (f"{kind_words(each)} by {each.road}", ""))
        return (*when, *what), cell(f"after {size(each.bytes)} and {took(each.seconds)} ", "warn")
    way = f", {WAYS_OF[each.way]}" if each.way in WAYS_OF else ""
    right = f"{size(each.bytes)} in {took(each.seconds)}, {_rate(each)} "
    return (*when, (f"{kind_words(each)} by {each.road}{way}", "")), cell(right, "dim")


def _session(each: SessionRow, now: float) -> Line:
    when: Cell = ((f"   {span(now - each.last_at):>6} ago  ", "dim"),)
    return (*when, ("recorded ", "accent"), (f"{each.name} in {each.repo}", "")), cell(
        f"{count(each.turns, 'turn')}, {count(each.files, 'file')} ", "dim"
    )


def _rate(each: Served) -> str:
    return f"{size(round(each.bytes / max(each.seconds, 0.001)))}/s"


def words_of(line: GuestLine, problem: str) -> str:
    """What is on screen of a guest, in lower case, for the filter."""
    known: list[Any] = []
    if line.known is not None:
        guest = line.known
        shown = "".join(text for text, _ in readable(guest))
        known = [guest.ways, " ".join(guest.sessions), shown, guest.last_what, guest.last_repo]
    doing = [f"receives {each.repo} {each.road}" for each in line.running]
    roads = [line.last.road] if line.last else []
    slow = ["slow"] if line.slow else []
    return " ".join([line.name, _did(line)[0], *doing, *roads, *slow, *known, problem]).lower()
