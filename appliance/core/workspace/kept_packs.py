"""What the packs of a snapshot are, as noted beside them, and how one shape of a branch takes over those of another."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from appliance.core.process.atomic_file import write_atomically

_VERSION = 1
_NOTED = "packs.json"


@dataclass
class KeptPacks:
    """What the packs have: `commit` is the tip, and the names are those of pack files without the suffix.

    `shape` is the history that they have.
    """

    version: int = _VERSION
    commit: str = ""
    tags: list[list[str]] = field(default_factory=list)
    history: list[list[str]] = field(default_factory=list)
    """The name and the tip of each pack of the history, oldest first."""
    blobs: list[str] = field(default_factory=list)
    tagged: str = ""
    shape: str = ""

    def names(self) -> list[str]:
        """All packs that count."""
        names = [*(name for name, _ in self.history), *self.blobs, *([self.tagged] if self.tagged else [])]
        # A change that was taken back and made again is twice the same pack.
        return list(dict.fromkeys(names))

    def files(self, objects: Path) -> list[Path]:
        """The packs, their indexes and the commit-graphs in `objects`, relative to it. Raises OSError."""
        found = [Path("pack") / f"{name}{suffix}" for name in self.names() for suffix in (".pack", ".idx")]
        graphs = objects / "info" / "commit-graphs"
        if graphs.is_dir():
            found += sorted(Path("info") / "commit-graphs" / entry.name for entry in graphs.iterdir())
        return found

    def note(self, directory: Path) -> None:
        """Writes it down, after which these packs count. Raises OSError."""
        write_atomically(directory / _NOTED, json.dumps(asdict(self)))


def load_packs(directory: Path) -> KeptPacks | None:
    """What the packs in the repository `directory` have; None if that is not known, or one is missing."""
    try:
        kept = KeptPacks(**json.loads((directory / _NOTED).read_text(encoding="utf-8")))
        pack = directory / "objects" / "pack"
        names = kept.names()
    except (OSError, ValueError, TypeError):
        return None
    if kept.version == _VERSION and all((pack / f"{n}{s}").exists() for n in names for s in (".pack", ".idx")):
        return kept
    return None


def take_over(kept: KeptPacks, other: Path, directory: Path) -> KeptPacks | None:
    """Links the packs of `other`, which `kept` describes, into the new repository `directory`, but not the tip's blobs.

    They share the disk then. Returns what these packs have, or None if `other` was dropped meanwhile.
    """
    history = KeptPacks(kept.version, kept.commit, kept.tags, kept.history, [], kept.tagged, kept.shape)
    try:
        for file in history.files(other / "objects"):
            target = directory / "objects" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(other / "objects" / file, target)
    except OSError:
        return None
    return history
