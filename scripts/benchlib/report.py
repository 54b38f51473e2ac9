"""The report of the benchmark: tables for people, one document for programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchlib.clones import HYDRATIONS, SHAPES, Burst, Sample
from benchlib.disks import DiskFigures
from benchlib.measure import Measured
from benchlib.workspaces import DISK, KIT, TAR, WAYS, Workspaces

FLOOR, OURS, DAEMON, BACKEND = "floor", "gitmirror", "git daemon", "http-backend"
OTHERS = ((DAEMON, "git"), (BACKEND, "http"))
PROTOCOLS = {"git": "git://", "http": "HTTP"}


def middle(samples: Sequence[Sample]) -> float | None:
    """Returns the median of the successful clones in seconds, or None when none succeeded."""
    good = [sample.seconds for sample in samples if not sample.refused]
    return statistics.median(good) if good else None


def cpu_each(samples: Sequence[Sample]) -> float | None:
    """Returns the server's average CPU seconds per clone."""
    return statistics.fmean(sample.cpu for sample in samples) if samples else None


def typical(bursts: Sequence[Burst]) -> Burst | None:
    """Returns the burst with the median rate; for an even number, the slower of the two in the middle."""
    return sorted(bursts, key=lambda burst: burst.rate)[(len(bursts) - 1) // 2] if bursts else None


def ratio(one: float | None, other: float | None) -> float | None:
    """Returns `one` divided by `other`, or None when either is missing."""
    return one / other if one is not None and other else None


def document(measured: Measured) -> dict[str, Any]:
    """Returns all figures of a repository, including ratios. Times are in seconds."""
    return {
        "name": measured.name,
        "about": measured.about,
        "clones": {shape.key: _clones(measured, shape.key) for shape in SHAPES if shape.key in measured.clones},
        "at_once": {str(number): _bursts(measured, number) for number in measured.bursts},
        "after_push": {
            "warming": _rounded(measured.warming),
            **{shape.key: _after_push(measured, shape.key) for shape in HYDRATIONS if shape.key in measured.first},
        },
        "workspaces": _workspaces(measured.workspaces),
        "cache": measured.cache,
        "faults": measured.faults,
    }


def _clones(measured: Measured, key: str) -> dict[str, Any]:
    row = measured.clones.get(key, {})
    answer: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        ours = middle(row.get((OURS, protocol), []))
        answer[protocol] = {
            "servers": {
                server: {
                    "median": middle(samples),
                    "least": min((sample.seconds for sample in samples if not sample.refused), default=None),
                    "runs": _rounded([sample.seconds for sample in samples]),
                    "refused": sum(bool(sample.refused) for sample in samples),
                    "cpu": cpu_each(samples),
                }
                for (server, by), samples in row.items()
                if by == protocol
            },
            "to_floor": ratio(ours, middle(row.get((FLOOR, protocol), []))),
            **{f"{_key(name)}_to_ours": ratio(middle(row.get((name, by), [])), ours) for name, by in OTHERS},
        }
    return answer


def _bursts(measured: Measured, number: int) -> dict[str, Any]:
    row = measured.bursts[number]
    answer: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        bursts = {server: typical(found) for (server, by), found in row.items() if by == protocol}
        ours = bursts[OURS]
        assert ours is not None
        answer[protocol] = {
            "servers": {
                server: {
                    "served": burst.served,
                    "refused": burst.refused,
                    "seconds": round(burst.seconds, 4),
                    "rate": round(burst.rate, 2),
                    "cpu": round(burst.cpu / max(1, burst.served), 5),
                    "rates": _rounded([each.rate for each in row[server, protocol]]),
                    "all_refused": [each.refused for each in row[server, protocol]],
                }
                for server, burst in bursts.items()
                if burst is not None
            },
            "rate_to": {
                _key(server): ratio(ours.rate, burst.rate)
                for server, burst in bursts.items()
                if burst is not None and server != OURS
            },
        }
    return answer


def _after_push(measured: Measured, key: str) -> dict[str, Any]:
    first, hot = measured.first.get(key, []), measured.hot.get(key, [])
    middles = [statistics.median(each) if each else None for each in (first, hot)]
    return {"first": _rounded(first), "hot": _rounded(hot), "ratio": ratio(*middles)}


def _workspaces(found: Workspaces) -> dict[str, Any]:
    middles = {way: statistics.median(seconds) if seconds else None for way, seconds in found.seconds.items()}
    return {
        "median": middles,
        "runs": {way: _rounded(seconds) for way, seconds in found.seconds.items()},
        "kit_to_tar": ratio(middles[KIT], middles[TAR]),
        "disk_to_kit": ratio(middles[DISK], middles[KIT]),
        "daemon_to_kit": ratio(middles[DAEMON], middles[KIT]),
        "at_once": {"guests": found.guests, "served": found.served, "seconds": round(found.burst_seconds, 4)},
        "disk": _disk(found.disk) if found.disk is not None else None,
        "no_disk": found.no_disk,
    }


def _disk(found: DiskFigures) -> dict[str, Any]:
    return {
        "first_build": round(found.first_build, 3),
        "tree_bytes": found.tree_bytes,
        "data_bytes": found.data_bytes,
        "kit": _rounded(found.kit),
        "kit_and_status": _rounded(found.status),
        "next_tip": _rounded(found.next_tip),
        "grown": found.grown,
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _key(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


# The tables


def tables(found: Mapping[str, Any]) -> str:
    """Formats the result of `document` as Markdown."""
    about = found["about"]
    lines = [
        f"### {found['name']}",
        "",
        f"{about['files']:,} files of {about['bytes'] / 1e6:.1f} MB, {about['commits']:,} commits, {about['refs']:,} "
        f"refs; {about['disk'] / 1e6:.1f} MB on disk, packs: {about['packs']}, loose objects: {about['loose']:,}.",
        "",
    ]
    if found["clones"]:
        lines += [*_clone_table(found["clones"]), "", *_cpu_table(found["clones"]), ""]
        lines += [*_burst_table(found["at_once"]), "", *_push_table(found["after_push"]), ""]
    lines += [*_workspace_table(found["workspaces"]), "", *_disk_table(found["workspaces"])]
    return "\n".join(lines) + "\n"


def _clone_table(clones: Mapping[str, Any]) -> list[str]:
    head = ["workspace", "by", FLOOR, OURS, "to the floor", DAEMON, "times ours", BACKEND, "times ours"]
    rows = []
    for shape in SHAPES:
        both = clones[shape.key]
        seconds = {
            (server, by): figures["median"] for by in PROTOCOLS for server, figures in both[by]["servers"].items()
        }
        for by, word in PROTOCOLS.items():
            row = [shape.text, word, *(_seconds(seconds.get((server, by))) for server in (FLOOR, OURS))]
            row.append(_times(both[by]["to_floor"]))
            for name, its in OTHERS:
                row += [_seconds(seconds.get((name, its))), _times(both[by][f"{_key(name)}_to_ours"])]
            rows.append(row)
    return _table(head, rows)


def _cpu_table(clones: Mapping[str, Any]) -> list[str]:
    head = ["server's CPU time per hydration", "by", FLOOR, OURS, f"{DAEMON} or {BACKEND}"]
    rows = []
    for shape in SHAPES:
        for by, word in PROTOCOLS.items():
            servers = clones[shape.key][by]["servers"]
            other = next(name for name, its in OTHERS if its == by)
            spent = [servers.get(server, {}).get("cpu") for server in (FLOOR, OURS, other)]
            rows.append([shape.text, word, *("-" if cpu is None else f"{1000 * cpu:.1f} ms" for cpu in spent)])
    return _table(head, rows)


def _burst_table(at_once: Mapping[str, Any]) -> list[str]:
    head = ["at once", "by", FLOOR, OURS, "rate to the floor", f"{DAEMON} or {BACKEND}", "our rate to it"]
    rows = []
    for number, both in at_once.items():
        for by, word in PROTOCOLS.items():
            servers, rates = both[by]["servers"], both[by]["rate_to"]
            other = next(name for name, its in OTHERS if its == by)
            cells = [_burst(servers.get(server)) for server in (FLOOR, OURS, other)]
            rows.append([number, word, *cells[:2], _times(rates.get(FLOOR)), cells[2], _times(rates.get(_key(other)))])
    return _table(head, rows)


def _push_table(after: Mapping[str, Any]) -> list[str]:
    head = ["after a push upstream, warming ended", "first guest", "hot", "first to hot"]
    rows = [
        [
            shape.text,
            *(
                _seconds(statistics.median(after[shape.key][kind])) if after[shape.key][kind] else "-"
                for kind in ("first", "hot")
            ),
            _times(after[shape.key]["ratio"]),
        ]
        for shape in HYDRATIONS
    ]
    return _table(head, rows)


def _workspace_table(found: Mapping[str, Any]) -> list[str]:
    middles, many = found["median"], found["at_once"]
    ratios = ["disk to kit", "kit to tar", "git daemon to kit"]
    head = ["ready workspace", *(way.replace("|", "\\|") for way in WAYS), *ratios, "at once by the kit"]
    times = [_seconds(middles[way]) for way in WAYS]
    quotients = [_times(found[key]) for key in ("disk_to_kit", "kit_to_tar", "daemon_to_kit")]
    burst = f"{many['served']} of {many['guests']} in {many['seconds']:.2f} s"
    return _table(head, [["depth 1; by disk, all history", *times, *quotients, burst]])


def _disk_table(found: Mapping[str, Any]) -> list[str]:
    disk = found["disk"]
    if disk is None:
        return [f"No figures of disks: {found['no_disk']}."]
    head = [
        "disk",
        "kit, first",
        "kit and `git status`, first",
        "kit and `git status`",
        "first build",
        "next tip",
        "written",
    ]
    grown = statistics.median(disk["grown"]) / 1e3
    row = [
        f"{disk['tree_bytes'] / 1e6:.1f} MB tree, {disk['data_bytes'] / 1e6:.0f} MB data",
        _seconds(disk["kit"][0]),
        _seconds(disk["kit_and_status"][0]),
        _seconds(statistics.median(disk["kit_and_status"][1:])),
        _seconds(disk["first_build"]),
        _seconds(statistics.median(disk["next_tip"])),
        f"{grown:.0f} kB beside the tree drive",
    ]
    return _table(head, [row])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _burst(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "-"
    refused = f", **{figures['refused']} refused**" if figures["refused"] else ""
    return f"{figures['served']} in {figures['seconds']:.2f} s, {figures['rate']:.1f}/s{refused}"
