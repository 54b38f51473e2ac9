"""`storage` and what `status` and `doctor` say of a document that is near to its budget, or past it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.cli import storage
from appliance.cli.status import _is_filling
from appliance.core.ops.storage_line import storage_line

GIB = 2**30
KINDS = dict.fromkeys(("mirrors", "answers", "workspaces", "disks", "lfs", "recordings", "database"), 0)
FOUND: dict[str, Any] = {
    "used": 9 * GIB,
    "budget": 10 * GIB,
    "has_budget": True,
    "over": 0,
    "measured_at": "2026-07-05T12:00:00.000Z",
    "by": KINDS | {"mirrors": 3 * GIB, "answers": 6 * GIB},
    "repos": [{"name": "acme/widgets", "bytes": 9 * GIB, "by": KINDS | {"mirrors": 3 * GIB, "answers": 6 * GIB}}],
    "next": [
        {"kind": "answers", "repo": "acme/widgets", "what": "7 cached responses", "bytes": 6 * GIB, "used_at": None}
    ],
    "removed": {"bytes": GIB, "count": 1},
    "removed_last": [
        {
            "at": "2026-07-05T11:00:00.000Z", "kind": "disks", "repo": "acme/widgets", "what": "the disk of main",
            "bytes": GIB, "used_at": None,
        }
    ],
}  # fmt: skip


def test_storage_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """The sizes by kind and by repository, what goes next, and what went last."""
    storage._print(FOUND)
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == "the state directory takes 9.0 GiB of its budget of 10.0 GiB"
    assert lines[1] == "  answers 6.0 GiB, mirrors 3.0 GiB"
    assert lines[4].split() == ["acme/widgets", "9.0", "GiB", "3.0", "GiB", "6.0", "GiB"]
    assert "removed next, in this order:\n  7 cached responses (acme/widgets, 6.0 GiB)\n" in said
    assert "removed last:\n  2026-07-05T11:00:00.000Z  the disk of main (acme/widgets, 1.0 GiB)\n" in said


def test_without_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """What the disk has room for is named instead."""
    storage._print(FOUND | {"has_budget": False, "next": [], "removed_last": []})
    said = capsys.readouterr().out
    assert said.startswith("the state directory takes 9.0 GiB, and its disk has room for 10.0 GiB\n")
    assert "removed next" not in said and "removed last" not in said


def test_when_status_speaks_of_it() -> None:
    """From 80% of what it may take."""
    assert _is_filling(FOUND)
    assert not _is_filling(FOUND | {"used": 8 * GIB})


def test_doctors_line() -> None:
    """One line with all of it."""
    assert storage_line(FOUND) == (
        "9.0 GiB of a budget of 10.0 GiB; answers 6.0 GiB, mirrors 3.0 GiB; largest: acme/widgets 9.0 GiB; "
        "first to go: 7 cached responses (acme/widgets, 6.0 GiB)"
    )
