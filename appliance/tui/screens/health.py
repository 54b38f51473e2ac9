"""The health of the node itself: listeners, guests, cache, disk, and what to mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from appliance.core.node.queries import Disk
from appliance.tui.context import Context
from appliance.tui.data.follower import SERVE, TIME
from appliance.tui.data.messages import DiskRead, FleetRead, HealthRead
from appliance.tui.data.rows import CheckRow
from appliance.tui.screens.fleet_lines import fleet_lines
from appliance.tui.screens.view import View
from appliance.tui.text import Cell, bar, cell, count, percent, plain, size
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Column, Listing

LISTENERS = (("git", "git"), ("http", "HTTP"), ("admin", "admin"))
BAR = 20
KINDS = {
    "mirrors": "mirrors", "recordings": "recorded", "answers": "answers", "workspaces": "workspaces",
    "disks": "disks", "lfs": "LFS", "database": "database",
}  # fmt: skip
"""What each kind of `storage.by` is called here."""
MOST_NAMED = 3
"""Repositories, and things that go next, that are named."""
ROOMY = 30
"""The height from which on the largest repositories are named, too."""


class HealthScreen(View):
    """Shows listeners, guests, cache and disk, and below them every check of `doctor`."""

    heading = "Health"
    here = "health"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open", tooltip="the check whole: what was found, and what to do"),
        Binding("slash", "filter", "filter", tooltip="filter the checks by any words of a row"),
        Binding("r", "check", "check again", tooltip="run every check of doctor again"),
        Binding("escape", "back", "clear the filter", show=False),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._disk: Disk | None = None
        self._fleet: dict[str, Any] | None = None
        self._checks: list[CheckRow] = []
        self._beat = 0
        self._height = 0

    def body(self) -> ComposeResult:
        """Yields the figures, the checks, and what to do about the chosen check."""
        yield Lines(id="figures")
        columns = [
            Column("CHECK", lambda check: cell(check.name, "strong"), 16, 0, 18),
            Column("RESULT", self._verdict, 9, 0),
            Column("FOUND", lambda check: cell(check.found), 20, 0, grows=True),
        ]
        listing: Listing[CheckRow] = Listing(columns, lambda check: check.name, empty="looking…", id="list")
        yield listing
        yield Lines(id="mend")

    @staticmethod
    def _verdict(check: CheckRow) -> Cell:
        return cell("● ok", "good") if check.ok else cell("✗ problem", "bad")

    @property
    def listing(self) -> Listing[CheckRow]:
        """The list of checks."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the list."""
        self.listing.focus()

    def reread(self) -> None:
        """Runs the checks again, because something may have been mended."""
        self.action_check()
        self._read_disk()

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed; every five seconds the disk is read too."""
        super().take(news)
        if TIME in news:
            self._beat += 1
            if self._beat % 5 == 0:
                self._read_disk()
        if {SERVE, TIME} & news:
            self._tell()

    def on_health_read(self, message: HealthRead) -> None:
        """Shows the checks that ran."""
        self._checks = message.checks
        self._arrange()

    def on_disk_read(self, message: DiskRead) -> None:
        """Shows how full the disk is."""
        self._disk = message.disk
        self._tell()

    def on_fleet_read(self, message: FleetRead) -> None:
        """Shows the nodes of the fleet."""
        self._fleet = message.fleet
        self._tell()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Says what to do about the check under the cursor."""
        self._advise()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Shows the check whole."""
        check = event.row
        result = "ok" if check.ok else "problem"
        self.show_whole(check.name, [("result", result), ("found", check.found), ("what to do", check.mend)])

    def action_check(self) -> None:
        """Runs every check again."""
        node = self.context.node

        def work() -> HealthRead:
            from appliance.core.ops.doctor import examine

            return HealthRead([CheckRow(each.name, each.ok, each.found, each.mend) for each in examine(node)])

        self.context.loader.read("health", self, work)

    def filtered(self) -> None:
        """Lists the checks that match now."""
        self._arrange()

    def focus_body(self) -> None:
        """Moves the focus back to the checks."""
        self.listing.focus()

    def _read_disk(self) -> None:
        queries = self.context.queries
        self.context.loader.read("disk", self, lambda: DiskRead(queries.disk()))
        if self.context.node.config.fleet.is_on:
            self.context.loader.read("fleet", self, lambda: FleetRead(queries.fleet()))

    def _arrange(self) -> None:
        pulse = self.model.pulse or {}
        warnings = [
            CheckRow(f"warning {number}", False, text, "fix what it names; a changed setting needs a reload or restart")
            for number, text in enumerate(pulse.get("warnings", ()), 1)
        ]
        # The check of `serve` says once more what the warnings say.
        repeated = "serve", "; ".join(row.found for row in warnings)
        bad = [check for check in self._checks if not check.ok and (check.name, check.found) != repeated]
        rows = [*warnings, *bad, *(check for check in self._checks if check.ok)]
        words = self.filter_words.lower().split()
        rows = [row for row in rows if all(word in f"{row.name} {row.found} {row.mend}".lower() for word in words)]
        self.listing.empty = "No check matches. Escape clears the filter." if words else "looking…"
        if rows != list(self.listing.rows) or not rows:
            self.listing.show(rows)
        self._advise()

    def _advise(self) -> None:
        check = self.listing.row
        bad = sum(not row.ok for row in self.listing.rows)
        if check is None:
            self.query_one("#mend", Lines).show()
            return
        said = (f" {check.name}: {check.found}", "") if check.ok else (f" to fix it: {check.mend}", "warn")
        word = f"{count(bad, 'problem')} to fix " if bad else "nothing to fix "
        second = cell("" if check.ok else f" {check.found}", "dim")
        self.query_one("#mend", Lines).show(((said,), ()), (second, cell(word, "bad" if bad else "good")))

    def _tell(self) -> None:
        pulse = self.model.pulse
        lines = [*self._listeners(pulse), *self._cache(pulse), *self._space(), *fleet_lines(self._fleet)]
        figures = self.query_one("#figures", Lines)
        if len(lines) != self._height:
            # No taller than what it says, because the checks need the room.
            self._height = len(lines)
            figures.styles.height = self._height
        figures.show(*lines)
        if pulse is not None or self.model.looked:
            self._arrange()

    def _listeners(self, pulse: dict[str, Any] | None) -> list[Line]:
        if pulse is None:
            said = "serve is not running: guests are refused, nothing is refreshed" if self.model.looked else "looking…"
            serve = self.context.node.config.serve
            addresses = {name: ", ".join(map(str, getattr(serve, name))) for name, _ in LISTENERS}
            closed = [
                (cell(f" ○ {word:<6} {addresses[name] or 'off'}", "dim"), cell("not listening ", "dim"))
                for name, word in LISTENERS
            ]
            return [*closed, (cell(f" ○ {said}", "warn"), ()), ((), ()), ((), ())]
        connections = pulse["connections"]
        lines: list[Line] = []
        for name, word in LISTENERS:
            url = pulse[name]
            if url is None:
                lines.append((((f" ◇ {word:<6} ", "dim"), ("off", "dim")), ()))
                continue
            guests = connections.get(name, 0)
            others = len(pulse.get("listeners", {}).get(name, ())) - 1
            more = f" and {others} more" if others > 0 else ""
            lines.append(
                (((f" ● {word:<6} ", "good"), (url, ""), (more, "dim")), cell(f"{count(guests, 'connection')} "))
            )
        most = pulse["max_clients"]
        pushes = pulse["pushes"]
        clients: Cell = (
            ("   guests ", ""), (bar(pulse["clients"], most, BAR), "accent"),
            (f" {pulse['clients']:,} of {most:,} at once", ""),
        )  # fmt: skip
        ruled = cell(f"   pushes {pushes['accepted']:,} accepted, {pushes['rejected']:,} refused")
        if pushes.get("off"):
            ruled = cell("   pushes are off: every one is refused", "bad")
        return [*lines, (clients, self._known(pulse)), (ruled, ())]

    @staticmethod
    def _known(pulse: dict[str, Any]) -> Cell:
        """How many guests are known, and how many of them cannot come; a `serve` of the version before knows none."""
        known = pulse.get("known_guests")
        if not known:
            return ()
        held = len(known["problems"])
        return (f"{known['count']:,} known ", ""), (f" ▲ {held:,} cannot come " if held else "", "warn")

    def _cache(self, pulse: dict[str, Any] | None) -> list[Line]:
        if pulse is None:
            return []
        cache = pulse["cache"]
        warm = cache["hits"] + cache["joined"]
        left: Cell = (
            ("   cache  ", ""), (bar(cache["bytes"], cache["budget"], BAR), "accent"),
            (f" {size(cache['bytes'])} of {size(cache['budget'])}", ""),
        )  # fmt: skip
        ratio = f"{percent(warm, warm + cache['misses'])} from cache "
        return [(left, cell(ratio))]

    def _space(self) -> list[Line]:
        disk = self._disk
        if disk is None:
            return [(cell("   disk   reading…", "dim"), ())]
        used = disk.total - disk.free
        tight = disk.free < disk.total // 20
        left: Cell = (
            ("   disk   ", ""), (bar(used, disk.total, BAR), "bad" if tight else "accent"),
            (f" {size(disk.free)} free of {size(disk.total)}", "bad" if tight else ""),
        )  # fmt: skip
        return [(left, ()), *self._stored(disk)]

    def _stored(self, disk: Disk) -> list[Line]:
        """What the state directory takes of its budget, by kind and by repository, and what goes next."""
        found, lines = disk.storage, list[Line]()
        if found["has_budget"]:
            tone = "bad" if found["over"] else "accent"
            said = f" {size(found['used'])} of {size(found['budget'])}"
            left: Cell = (("   budget ", ""), (bar(found["used"], found["budget"], BAR), tone), (said, ""))
            gone = found["removed"]
            over = cell(f"▲ {size(found['over'])} over ", "bad")
            right = cell(f"{size(gone['bytes'])} removed ", "dim") if gone["count"] else ()
            lines.append((left, over if found["over"] else right))
        taken = sorted(found["by"].items(), key=lambda each: -each[1])
        parts = [f"{KINDS[kind]} {size(taking)}" for kind, taking in taken if taking and kind in KINDS]
        if disk.leases:
            parts.append(count(disk.leases, "lease"))
        lines.append((cell(f"          {', '.join(parts)}", "dim"), ()))
        largest = [f"{plain(repo['name'])} {size(repo['bytes'])}" for repo in found["repos"][:MOST_NAMED]]
        if largest and self.size.height >= ROOMY:
            lines.append((cell(f"          largest: {', '.join(largest)}", "dim"), ()))
        if found["next"]:
            lines.append(
                (cell(f"          next to go: {', '.join(map(_shown, found['next'][:MOST_NAMED]))}", "dim"), ())
            )
        return lines


def _shown(thing: Mapping[str, Any]) -> str:
    """One thing that goes next: `3 cached responses (acme/widgets, 12 MiB)`."""
    whose = f"{plain(thing['repo'])}, " if thing["repo"] else ""
    return f"{plain(thing['what'])} ({whose}{size(thing['bytes'])})"
