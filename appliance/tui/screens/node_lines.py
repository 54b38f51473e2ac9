"""What Node says in words: what needs attention, guests, the disk, damage, the backup, and what was checked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from appliance.core.models import State
from appliance.core.node.queries import Disk, RepoView
from appliance.tui.data.activity import seconds_of
from appliance.tui.data.rows import CheckRow
from appliance.tui.text import Cell, Piece, bar, cell, count, plain, size, span, wrapped
from appliance.tui.widgets.lines import Line

LISTENERS = (("git", "git"), ("http", "HTTP"), ("admin", "admin"))
BAR = 20
KINDS = {
    "mirrors": "mirrors", "recordings": "recorded sessions", "answers": "cached responses",
    "workspaces": "workspaces", "disks": "disks for VMs", "lfs": "LFS objects", "database": "database",
}  # fmt: skip
"""What each kind of `storage.by` is called here."""
MOST_NAMED = 5
"""Repositories, and things that go next, that are named in any case."""
MOST_LINES = 6
"""Lines that one message takes at most."""

Lead = Cell
"""What stands before a text: a shape, and a word."""


def attention_lines(rows: Sequence[CheckRow], behind: int, width: int) -> list[Line]:
    """What needs attention, each with what to do, in full. `behind` repositories do not equal their upstream."""
    bad = [row for row in rows if not row.ok]
    if not rows:
        return [(cell(" … checking", "dim"), ())]
    if not bad and behind:
        words = f" ▲ {count(behind, 'repository needs', 'repositories need')} attention: the key 1 lists them first"
        return [(cell(words, "warn"), ())]
    if not bad:
        return [(cell(" ● nothing needs attention", "good"), ())]
    lines: list[Line] = [(cell(f" ✗ {count(len(bad), 'thing')} to put right", "bad"), ())]
    for row in bad:
        lines += said(((f"   {row.name}: ", "strong"),), row.found, width)
        lines += said(((" " * 5, ""),), row.mend, width, "warn") if row.mend else []
    return lines


def said(lead: Lead, text: str, width: int, tone: str = "") -> list[Line]:
    """A text after its lead, wrapped below itself, so that none of it is cut."""
    indent = sum(len(part) for part, _ in lead)
    first, *more = wrapped(text, max(20, width - indent - 1), MOST_LINES)
    return [((*lead, (first, tone)), ()), *(((((" " * indent), ""), (line, tone)), ()) for line in more)]


def heading(words: str, right: str = "") -> list[Line]:
    """A blank line and the name of a section."""
    return [((), ()), (cell(f" {words}", "strong"), cell(f"{right} ", "dim") if right else ())]


def guest_lines(pulse: dict[str, Any] | None, looked: bool, closed: Mapping[str, str], width: int) -> list[Line]:
    """The listeners, who is served, and what was pushed. `closed` are the addresses of the config."""
    if pulse is None:
        words = "serve is not running: guests are refused, nothing is refreshed" if looked else "looking…"
        return [
            *said(cell(" ○ ", "warn"), words, width, "warn"),
            *((cell(f" ○ {word:<6} {closed[name] or 'off'}", "dim"), cell("not listening ", "dim"))
              for name, word in LISTENERS),
        ]  # fmt: skip
    lines: list[Line] = []
    for name, word in LISTENERS:
        url = pulse[name]
        if url is None:
            lines.append((((f" ◇ {word:<6} ", "dim"), ("off", "dim")), ()))
            continue
        others = len(pulse.get("listeners", {}).get(name, ())) - 1
        more = f" and {others} more" if others > 0 else ""
        there = count(pulse["connections"].get(name, 0), "connection")
        lines.append((((f" ● {word:<6} ", "good"), (url, ""), (more, "dim")), cell(f"{there} ")))
    lines.append(
        gauge(
            "guests",
            pulse["clients"],
            pulse["max_clients"],
            f"{pulse['clients']:,} of {pulse['max_clients']:,} at once",
        )
    )
    if known := pulse.get("known_guests"):
        held = len(known["problems"])
        pieces: list[Piece] = [("   known  ", ""), (count(known["count"], "guest"), "")]
        lines.append(((*pieces, (f", ▲ {held:,} cannot come (5 says why)" if held else "", "warn")), ()))
    pushes = pulse["pushes"]
    if pushes.get("off"):
        return [*lines, *said(cell("   pushes "), "off: every one is refused", width, "bad")]
    words = f"{pushes['accepted']:,} accepted, {pushes['rejected']:,} refused since the start"
    return [*lines, *said(cell("   pushes "), words, width)]


def gauge(word: str, part: int, whole: int, words: str, tone: str = "accent") -> Line:
    """A bar with what it means in words."""
    return ((f"   {word:<6} ", ""), (bar(part, whole, BAR), tone), (f" {words}", "" if tone == "accent" else tone)), ()


def disk_lines(disk: Disk | None, pulse: dict[str, Any] | None, width: int, room: int) -> list[Line]:
    """How full the disk is, by kind and by repository, and what goes next. `room` more repositories can be named."""
    if disk is None:
        return [(cell("   reading…", "dim"), ())]
    used = disk.total - disk.free
    tight = disk.free < disk.total // 20
    lines = [
        gauge("disk", used, disk.total, f"{size(disk.free)} free of {size(disk.total)}", "bad" if tight else "accent")
    ]
    found = disk.storage
    if found["has_budget"]:
        words = f"{size(found['used'])} of {size(found['budget'])}"
        words += f", {size(found['over'])} over" if found["over"] else ""
        lines.append(gauge("budget", found["used"], found["budget"], words, "bad" if found["over"] else "accent"))
    if pulse is not None:
        cache = pulse["cache"]
        lines.append(
            gauge("cache", cache["bytes"], cache["budget"], f"{size(cache['bytes'])} of {size(cache['budget'])}")
        )
    kinds = [(KINDS[kind], taking) for kind, taking in found["by"].items() if taking and kind in KINDS]
    lines += shares("by kind", kinds, len(kinds))
    largest = [(plain(repo["name"]), repo["bytes"]) for repo in found["repos"]]
    lines += shares("by repository", largest, MOST_NAMED + room)
    if disk.leases:
        lines.append((cell(f"   {count(disk.leases, 'lease')} of disks for VMs"), ()))
    gone = found["removed"]
    if gone["count"]:
        words = f"{count(gone['count'], 'thing')}, {size(gone['bytes'])}"
        lines += said(cell("   removed since the start: "), words, width)
    if found["next"]:
        lines.append((cell("   removed next, if room is needed", "dim"), ()))
    for thing in found["next"][:MOST_NAMED]:
        whose = f" of {plain(thing['repo'])}" if thing["repo"] else ""
        words = f"{plain(thing['what'])}{whose}, {size(thing['bytes'])}"
        lines += said(cell("     "), words, width)
    return lines


def shares(words: str, taken: Iterable[tuple[str, int]], most: int) -> list[Line]:
    """What takes how much, the largest first, with a bar of its share."""
    everything = sorted(taken, key=lambda each: -each[1])
    whole = sum(bytes_ for _, bytes_ in everything)
    shown = everything[:most]
    width = min(44, max((len(name) for name, _ in shown), default=0))
    lines: list[Line] = [(cell(f"   {words}", "dim"), ())] if shown else []
    for name, bytes_ in shown:
        short = name if len(name) <= width else f"{name[: width - 1]}…"
        lines.append(
            (
                (
                    (f"     {short:<{width}} ", ""),
                    (bar(bytes_, whole, BAR // 2), "accent"),
                    (f" {size(bytes_):>9}", ""),
                ),
                (),
            )
        )
    if rest := everything[most:]:
        lines.append((cell(f"     {len(rest):,} more, {size(sum(bytes_ for _, bytes_ in rest))}", "dim"), ()))
    return lines


def damage_lines(repos: Iterable[RepoView], now: float, width: int) -> list[Line]:
    """Which mirrors are damaged and how that is healed, and when the content of all was last read."""
    mirrors = [view for view in repos if view.health.cloned]
    damaged = [view for view in mirrors if view.state == State.DAMAGED]
    lines: list[Line] = []
    for view in damaged:
        lines += said(((f" ■ {plain(view.repo.name)}: ", "bad"),), view.health.damage or "damaged", width)
    if damaged:
        lines += said(cell("   "), "healing goes on by itself; guests get what is intact meanwhile", width, "warn")
    elif mirrors:
        lines.append((cell(" ● no mirror is known to be damaged", "good"), ()))
    whole = [view.health.verified_whole_at for view in mirrors if view.health.verified_whole_at]
    never = len(mirrors) - len(whole)
    if whole:
        words = f"{len(whole):,} of {count(len(mirrors), 'mirror')}, the oldest read was {span(now - min(whole))} ago"
        lines += said(cell("   read in full, without a fault: "), words, width)
    if never:
        lines += said(cell("   not read in full yet: "), f"{never:,} of {count(len(mirrors), 'mirror')}", width)
    return lines


def backup_lines(backup: Mapping[str, Any] | None, is_serving: bool, now: float, width: int) -> list[Line]:
    """Where the backup goes, when it was made, whether that failed, and when it was last proved to be good."""
    if backup is None:
        words = "no backup is configured ([backup] to): recorded sessions exist on this node alone"
        return said(cell(" ▲ ", "warn"), words if is_serving else "only a running serve knows of it", width, "warn")
    made = f"made {span(now - seconds_of(backup['at']))} ago" if backup["at"] else "none was made yet"
    taken = f", {size(backup['bytes'])}" if backup["bytes"] is not None else ""
    is_bad = backup["error"] is not None or backup["at"] is None
    lead: Lead = ((" ▲ ", "bad") if is_bad else (" ● ", "good"),)
    lines = said(lead, f"{made}{taken}, in {plain(backup['to'])}", width)
    if backup["error"]:
        lines += said(cell("   "), f"the last try failed: {backup['error']}", width, "bad")
    verified, faults = backup.get("verified_at"), backup.get("faults")
    if verified is None:
        words = f"not proved to be good yet: gitmirror.pyz backup verify {plain(backup['to'])}"
        return [*lines, *said(cell(" ▲ ", "warn"), words, width, "warn")]
    proved = f"proved {span(now - seconds_of(verified))} ago"
    if faults:
        words = f"{proved}: {count(faults, 'fault')}; gitmirror.pyz backup verify {plain(backup['to'])} names them"
        return [*lines, *said(cell(" ✗ ", "bad"), words, width, "bad")]
    return [*lines, *said(cell(" ● ", "good"), f"{proved}: all of it can be restored", width)]


def check_lines(rows: Sequence[CheckRow], width: int) -> list[Line]:
    """Every check that found nothing wrong."""
    good = [row for row in rows if row.ok]
    name = max((len(row.name) for row in good), default=0)
    leads: list[Lead] = [((" ● ", "good"), (f"{row.name:<{name}}  ", "")) for row in good]
    return [line for row, lead in zip(good, leads, strict=True) for line in said(lead, row.found, width, "dim")]
