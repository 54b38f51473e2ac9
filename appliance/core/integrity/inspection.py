"""Compares a mirror with what it must have."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.integrity.recorded_refs import RecordedRefs

MOST_FAULTS = 20
DEADLINE = 6 * 3600.0


@dataclass(frozen=True)
class Inspection:
    """What an inspection of one mirror found."""

    faults: tuple[str, ...] = ()
    lost_refs: Mapping[str, str] = field(default_factory=dict)

    @property
    def damage(self) -> str | None:
        """The line for `damage` of `status`: the first fault and how many more. None when the mirror is whole."""
        if not self.faults:
            return None
        more = len(self.faults) - 1
        return self.faults[0] + (f" (and {more} more)" if more else "")


async def look(mirror: Mirror, recorded: RecordedRefs) -> Inspection:
    """Compares refs alone. Raises GitError if git could not be run."""
    for name in ("HEAD", "config"):
        if not (mirror.path / name).exists():
            return Inspection((f"{name} is missing",))
    present = await mirror.local_refs("refs/agents/", "refs/gitmirror/")
    lost = {ref: oid for ref, oid in recorded.items() if present.get(ref) != oid}
    return Inspection(tuple(f"{ref} is lost" for ref in lost)[:MOST_FAULTS], lost)


async def inspect(mirror: Mirror, recorded: RecordedRefs, *, full: bool) -> Inspection:
    """Has git check the objects. Raises GitError if git could not be run or did not end."""
    found = await look(mirror, recorded)
    git = mirror.git.gently()
    asked = "".join(f"{oid}\n" for oid in recorded.values()).encode()
    checked = await git.run("cat-file", "--batch-check", cwd=mirror.path, deadline=DEADLINE, stdin=asked)
    gone = {line.split()[0] for line in checked.stdout.decode().splitlines() if line.endswith(" missing")}
    lost = dict(found.lost_refs) | {ref: oid for ref, oid in recorded.items() if oid in gone}
    faults = dict.fromkeys([*found.faults, *(f"{ref} lacks its commit" for ref, oid in lost.items() if oid in gone)])
    how = () if full else ("--connectivity-only",)
    with tempfile.TemporaryFile() as output:
        try:
            await git.run(
                "fsck", *how, "--no-dangling", "--no-progress", cwd=mirror.path, deadline=DEADLINE, into=output
            )
        except GitError as error:
            output.seek(0)
            lines = [*error.stderr.splitlines(), *output.read(8192).decode(errors="replace").splitlines()]
            if error.timed_out or not lines:
                raise
            return Inspection(tuple(dict.fromkeys([*faults, *lines]))[:MOST_FAULTS], lost)
    return Inspection(tuple(faults)[:MOST_FAULTS], lost)
