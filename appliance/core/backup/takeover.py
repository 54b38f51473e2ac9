"""Keeps turns that are newer than a backup: the mirrors on disk hold them, and the restored log does not know them.

The next `serve` finds their refs and records them again (see recording/found.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.backup.bundles import reachable, set_refs, unbundle, write_bundle
from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.manifest import TURNS as TURNS_KIND
from appliance.core.backup.recordings import recorded_on_disk
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.recording.found import APART, is_turn_number
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS


@dataclass(frozen=True)
class Newer:
    """The turns of a mirror that a backup lacks, and the sessions that end in such a turn: refs and object ids.

    `moved` are the refs of the mirror that get another name here, because the backup has a different turn with that id.
    """

    turns: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)


def newer_than(backup: Mapping[str, str], on_disk: Mapping[str, str]) -> Newer:
    """Compares the recorded refs of a mirror with those of a backup. Pure."""
    numbered = {ref: int(number) for ref in {*backup, *on_disk} if is_turn_number(number := ref.removeprefix(TURNS))}
    free, newer = max(numbered.values(), default=0) + APART, Newer()
    for ref in sorted(on_disk.keys() & numbered.keys(), key=lambda ref: numbered[ref]):
        if backup.get(ref) == on_disk[ref]:
            continue
        chosen = ref
        if ref in backup:
            free += 1
            chosen = newer.moved[ref] = f"{TURNS}{free}"
        newer.turns[chosen] = on_disk[ref]
    commits = set(newer.turns.values())
    for ref, oid in on_disk.items():
        if ref.startswith((AGENTS, ARCHIVE)) and oid in commits:
            newer.sessions[f"{AGENTS}{session_of(ref)}"] = oid
    return newer


def session_of(ref: str) -> str:
    return ref.removeprefix(AGENTS).removeprefix(ARCHIVE)


def merged(backup: Mapping[str, str], newer: Newer) -> dict[str, str]:
    """The refs of a backup together with newer ones, which bring their sessions back from the archive. Pure."""
    written = {session_of(ref) for ref in newer.sessions}
    kept = {ref: oid for ref, oid in backup.items() if not (ref.startswith(ARCHIVE) and session_of(ref) in written)}
    return kept | newer.turns | newer.sessions


async def take_over(old: Mirror, new: Mirror, backup: Mapping[str, str], scratch: Path) -> tuple[int, list[str]]:
    """Gives the restored mirror `new` the refs of its backup, and the newer turns of the mirror `old`.

    Returns how many turns it took over, and what could not be read. Raises GitmirrorError if the backup itself
    cannot be restored.
    """
    newer, problems = Newer(), list[str]()
    try:
        newer = newer_than(backup, await asyncio.to_thread(recorded_on_disk, old.path))
        while newer.turns:
            try:
                await _copy(old, new, backup, newer, scratch)
                return len(newer.turns), problems
            except GitmirrorError as error:
                whole = await reachable(old, set(newer.turns.values()))
                lost = {ref for ref, oid in newer.turns.items() if oid not in whole}
                if not lost:
                    raise
                problems.append(f"{len(lost)} newer turns are damaged, among them {min(lost)}: {error.message}")
                left = {ref: oid for ref, oid in newer.turns.items() if ref not in lost}
                newer = Newer(left, {ref: oid for ref, oid in newer.sessions.items() if oid in left.values()})
    except (OSError, GitmirrorError) as error:
        problems.append(f"its newer turns cannot be read: {error}")
    await set_refs(new, backup)
    return 0, problems


async def _copy(old: Mirror, new: Mirror, backup: Mapping[str, str], newer: Newer, scratch: Path) -> None:
    directory = BackupDirectory(scratch)
    path = f"{new.path.parent.name}/{new.path.stem}.bundle"
    await write_bundle(old, directory, path, TURNS_KIND, newer.turns, backup.values())
    try:
        await unbundle(new, directory.path / path)
    finally:
        (directory.path / path).unlink()
    await set_refs(new, merged(backup, newer))
