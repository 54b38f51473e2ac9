"""Guests of a node that serves: what they do is on screen at once, and the keys change who is known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from appliance.tui.data import follower
from appliance.tui.data.traffic import GuestLine
from appliance.tui.widgets.listing import Listing
from tests.tui.conftest import Node
from tests.tui.drive import NARROW, WIDE, Seen, drive, make_app
from tests.tui.test_guests_view import names


def know(node: Node, name: str, **facts: Any) -> None:
    """Makes a guest known."""
    call(Layout(node.serve.state), "POST", "/v1/guests", {"name": name, **facts})


def forget(node: Node, name: str) -> None:
    """Removes a guest, as somebody else does."""
    call(Layout(node.serve.state), "DELETE", f"/v1/guests/{name}")


@pytest.mark.slow
def test_what_it_does_appears_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the events alone: that it hydrated, that it recorded, and in whose name."""
    monkeypatch.setattr(follower, "TICK", 3600.0)
    know(node, "vm-1", sessions=["seen-*"], address="127.0.0.1", ttl=3600)

    async def script(seen: Seen) -> None:
        await seen.shows("● serving")
        await seen.press("5")
        await seen.shows("1 guest ", "vm-1", "seen-*", "never")
        guest = await asyncio.to_thread(node.guest, "known")
        await seen.until(lambda: "hydrated" in seen.line("vm-1  "), "that it hydrated")
        await asyncio.to_thread(node.record, guest, "seen-1")
        await seen.until(lambda: "recorded seen-1" in seen.text, "that it recorded")
        await seen.press("enter")
        await seen.shows("guest:vm-1", "seen-1", "vm-1 from 127.0.0.1")

    try:
        drive(make_app(node.serve), script, (140, 30))
    finally:
        forget(node, "vm-1")


@pytest.mark.slow
def test_one_is_removed(node: Node, tmp_path: Path) -> None:
    """From here after a question, by somebody else while it is chosen, and by somebody else while it is asked about."""
    for number in range(4):
        know(node, f"box-{number}", unix=str(tmp_path / f"{number}.sock"))

    async def script(seen: Seen) -> None:
        async def has(many: int) -> None:
            await seen.until(
                lambda: sum(name.startswith("box-") for name in names(seen)) == many, f"{many} of them are known"
            )

        await seen.press("5")
        await seen.shows("● serving")
        await has(4)
        listing: Listing[GuestLine] = seen.app.screen.query_one("#list", Listing)
        listing.select("box-0")
        await seen.press("down", "D")
        await seen.shows("Remove the guest box-1?", "What it recorded stays")
        await seen.press("enter")
        await seen.hides("Remove the guest")
        assert (tmp_path / "1.sock_9418").exists()
        await seen.press("D")
        await seen.shows("Remove the guest box-1?")
        await seen.press("right", "enter")
        await seen.says("box-1 is no longer known")
        await has(3)
        assert not (tmp_path / "1.sock_9418").exists() and not (tmp_path / "1.sock_9419").exists()
        assert listing.row and listing.row.name == "box-2"
        await asyncio.to_thread(forget, node, "box-2")
        await has(2)
        assert listing.row and listing.row.name == "box-3"
        await seen.press("D")
        await seen.shows("Remove the guest box-3?")
        await asyncio.to_thread(forget, node, "box-3")
        await seen.press("right", "enter")
        await seen.says("there is no known guest box-3")
        await has(1)
        await asyncio.to_thread(forget, node, "box-0")
        await has(0)

    drive(make_app(node.serve), script, NARROW)


@pytest.mark.slow
def test_several_are_removed(node: Node) -> None:
    """After one question that counts them; strangers stay, as does the mark of one that somebody else removed first."""
    for number in range(4):
        know(node, f"rack-{number}", address=f"10.9.0.{number}")

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("● serving", "rack-0", "rack-3")
        await seen.press("slash")
        await seen.type("127.0.0.1")
        # Whoever other tests have had served is listed for an hour.
        await seen.until(lambda: names(seen) == ["127.0.0.1"], "the stranger alone is listed")
        await seen.press("enter", "asterisk", "D")
        await seen.says("no marked guest is known")
        await seen.press("slash")
        await seen.type("rack")
        await seen.until(lambda: len(names(seen)) == 4, "the four alone are listed")
        await seen.press("enter", "asterisk")
        await seen.shows("5 marked", "✓ rack-0")
        seen.app.screen.query_one("#list", Listing).select("rack-3")
        await seen.press("space", "D")
        await seen.shows("Remove 3 guests?", "not known anyway")
        await asyncio.to_thread(forget, node, "rack-1")
        await seen.press("right", "enter")
        await seen.says("2 guests are removed")
        await seen.shows("1 of 3 not removed", "rack-1: there is no known guest")
        await seen.press("escape")
        await seen.until(lambda: names(seen) == ["rack-3"], "those that were marked are gone")
        await seen.press("escape", "escape")
        await seen.hides("marked")

    guest = node.guest("stranger")
    assert guest.exists()
    try:
        drive(make_app(node.serve), script, WIDE)
    finally:
        forget(node, "rack-3")


@pytest.mark.slow
def test_the_pulse_says_who_cannot_come(node: Node, tmp_path: Path) -> None:
    """How many are known, and why one cannot come, by its name."""
    sockets = tmp_path / "gone"
    sockets.mkdir()
    know(node, "vm-1", unix=str(sockets / "v.sock"))
    know(node, "vm-2", token=True)
    node.serve.terminate()
    for path in sockets.iterdir():
        path.unlink()
    sockets.rmdir()
    node.serve.start()
    known = call(Layout(node.serve.state), "GET", "/v1/pulse")["known_guests"]
    for name in ("vm-1", "vm-2"):
        forget(node, name)
    assert known["count"] == 2 and list(known["problems"]) == ["vm-1"]
    assert str(sockets) in known["problems"]["vm-1"]
    assert call(Layout(node.serve.state), "GET", "/v1/pulse")["known_guests"] == {"count": 0, "problems": {}}


# Many
