"""Remembers when the backups in a directory were last verified on this node, and how many faults that found."""

from __future__ import annotations

import json
import time
from typing import Any

from appliance.core.backup.verification import VerifyReport
from appliance.core.layout import Layout
from appliance.core.process.atomic_file import write_atomically
from appliance.core.units import rfc3339


def note_proof(layout: Layout, report: VerifyReport) -> None:
    """Notes that backups were verified now. Makes no state directory. Raises OSError if that one cannot be written."""
    if layout.state.is_dir():
        proof = {"to": report.directory, "verified_at": rfc3339(time.time()), "faults": len(report.faults)}
        write_atomically(layout.backup_proof, json.dumps(proof))


def last_proof(layout: Layout, to: str) -> dict[str, Any]:
    """Returns `verified_at` and `faults` for the backups in the directory `to`; both are None if nobody verified it."""
    nothing = {"verified_at": None, "faults": None}
    try:
        proof = json.loads(layout.backup_proof.read_text())
        return {name: proof[name] for name in nothing} if proof["to"] == to else nothing
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
