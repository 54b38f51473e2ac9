"""What Health lists as problems."""

from __future__ import annotations

import pytest

from appliance.core.ops import doctor
from appliance.tui.widgets.listing import Listing
from tests.tui.drive import Seen, drive
from tests.tui.scene import PULSE, Scene, build
from tests.tui.test_guests_view import Make


@pytest.mark.slow
def test_what_serve_warns_of_is_listed_once(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's check of `serve` joins its warnings; something else that it finds has a row."""
    checks = [doctor.Check("storage", False, "full", "raise the budget"), doctor.Check("serve", False, "a; b", "mend")]

    async def script(seen: Seen) -> None:
        await seen.press("4")
        await seen.shows("3 problems to fix")
        rows = seen.app.screen.query_one("#list", Listing).rows
        assert [(row.name, row.found) for row in rows] == [("warning 1", "a"), ("warning 2", "b"), ("storage", "full")]

    drive(Scene(make_once("scene", build), {**PULSE, "warnings": ["a", "b"]}, checks).app(monkeypatch), script)

    async def with_other_words(seen: Seen) -> None:
        await seen.press("4")
        await seen.shows("3 problems to fix", "a; b")

    drive(Scene(make_once("scene", build), {**PULSE, "warnings": ["a"]}, checks).app(monkeypatch), with_other_words)
