"""Detects that a mirror's refs have not changed without running git, which saves two processes per idle refresh."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.core.git.ref_traces import RefTraces


@dataclass(frozen=True)
class _Known:
    traces: RefTraces
    digest: bytes


class RefMemory:
    """For each mirror, a digest of its branches and tags and the file traces taken with them.

    Any change of a ref, even one made by hand, changes the traces.
    """

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}

    def holds(self, mirror: Path, refs: Mapping[str, str]) -> bool:
        """Returns whether the mirror is known to have exactly these branches and tags, each at this object."""
        known = self._known.get(mirror)
        return known is not None and known.digest == refs_digest(refs) and known.traces.hold()

    def digest(self, mirror: Path) -> bytes | None:
        """The digest of the mirror's branches and tags, or None unless they are known to be as they were learnt."""
        known = self._known.get(mirror)
        return known.digest if known is not None and known.traces.hold() else None

    def learn(self, mirror: Path, traces: RefTraces | None, refs: Mapping[str, str]) -> None:
        """Remembers `refs`, which were read after `traces`, or forgets the mirror if `traces` is None."""
        self._known.pop(mirror, None)
        if traces is not None:
            self._known[mirror] = _Known(traces, refs_digest(refs))


def refs_digest(refs: Mapping[str, str]) -> bytes:
    """The SHA-256 of a set of refs. It tells two sets apart, whichever node made it."""
    text = "\n".join(f"{oid} {ref}" for ref, oid in sorted(refs.items()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
