"""What a check of `doctor` results in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The result of one check: what was found, and how to fix it when it is not `ok`."""

    name: str
    ok: bool
    found: str
    mend: str = ""
