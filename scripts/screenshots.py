#!/usr/bin/env python3
"""Makes new pictures of the live view for docs/pictures/ from the demo: a real `serve`, guests that clone and record.

    .venv/bin/python scripts/screenshots.py
    .venv/bin/python scripts/screenshots.py --only diff guests

The seed and the time for which the demo runs are fixed, so two runs differ only by ids, addresses and
times. To look at the demo itself, run `gitmirror.pyz demo`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from textual.pilot import Pilot  # noqa: E402

from appliance.core.api.client import call, pages  # noqa: E402
from appliance.core.config.settings import load_config  # noqa: E402
from appliance.core.layout import Layout  # noqa: E402
from appliance.core.node.node import Node  # noqa: E402
from appliance.core.node.queries import NodeQueries  # noqa: E402
from appliance.demo.place import DemoPlace  # noqa: E402
from appliance.demo.supervision import run_beside  # noqa: E402
from appliance.tui.app import STARTS, Tui  # noqa: E402
from tests.support.gitutil import wait_until  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE = (118, 32)
SEED = 7
RUNS = 75.0
"""Seconds for which the demo has run at least: several sessions have three turns, and one is being recorded."""
SETTLES = 2.0
"""Seconds in which a screen has read and drawn everything."""
REPOSITORY = "acme/search"

Keys = Sequence[str]


class Camera:
    """Takes pictures of the view of a demo. `only` are the names of those that are wanted; all if it is empty."""

    def __init__(self, place: DemoPlace, only: Sequence[str]) -> None:
        self.place = place
        self.only = only

    def wants(self, name: str) -> bool:
        """Whether a picture is wanted."""
        return not self.only or name in self.only

    async def take(self, name: str, keys: Keys) -> None:
        """Opens the view, presses the keys, and writes what it shows."""
        if not self.wants(name):
            return
        app = Tui(NodeQueries(Node(self.place.layout, load_config(self.place.config), create=False)))
        async with app.run_test(size=SIZE) as pilot:
            await _settle(pilot)
            for key in keys:
                await pilot.press(*(key.removeprefix("=") if key.startswith("=") else [key]))
                if key in OPENING:
                    await _settle(pilot)
            await _settle(pilot)
            svg = app.export_screenshot(title="gitmirror.pyz demo", simplify=True)
        (PICTURES / f"{name}.svg").write_text(plain_picture(svg))
        print(name, flush=True)


CELL = 12.2
"""Width of a character in a picture."""
_TEXT = re.compile(r'x="([\d.]+)" (y="[\d.]+") textLength="([\d.]+)"([^>]*)>((?:&#160;)*)([^<]*?)((?:&#160;)*)</text>')


def plain_picture(svg: str) -> str:
    """A picture without what changes each time, or looks right in some programs only.

    The ids are random. The fonts come from the reader's machine. Some programs drop spaces around a text, and would
    draw it in the wrong column.
    """

    def trimmed(found: re.Match[str]) -> str:
        x, y, length, rest, before, text, after = found.groups()
        first, last = (len(spaces) // len("&#160;") for spaces in (before, after))
        width = float(length) - CELL * (first + last)
        return f'x="{float(x) + CELL * first:.1f}" {y} textLength="{width:.1f}"{rest}>{text}</text>'

    svg = re.sub(r"terminal-\d+", "terminal", svg)
    svg = re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return _TEXT.sub(trimmed, svg)


OPENING = {"enter", "tab", *(str(number) for number in range(1, 10))}
"""Keys after which something is read. A key that begins with = is a word that is typed."""


async def _settle(pilot: Pilot[None]) -> None:
    await asyncio.sleep(SETTLES)
    await pilot.pause()


async def take_all(camera: Camera, layout: Layout) -> None:
    """Takes every picture, once the demo has something to show in it."""
    begun = time.monotonic()

    def is_worth_it() -> dict[str, Any] | None:
        status = call(layout, "GET", "/v1/status")
        sessions = list(pages(layout, "/v1/sessions"))
        failing = any(repo["state"] == "failing" for repo in status["repos"])
        longest = max(sessions, key=lambda session: (session["turns"], session["insertions"]), default=None)
        is_long = longest is not None and longest["turns"] >= 3
        return longest if failing and is_long and time.monotonic() - begun >= RUNS else None

    longest: dict[str, Any] = await asyncio.to_thread(wait_until, is_worth_it, timeout=300, interval=1.0)
    show: Callable[..., Awaitable[None]] = camera.take
    await show("repositories", ())
    await show("repository", ("slash", f"={REPOSITORY}", "enter", "enter"))
    await show("sessions", ("2",))
    await show("diff", ("2", "slash", f"={longest['session']}", "enter", "enter"))
    await show("activity", ("3",))
    await show("node", (str(list(STARTS).index("node") + 1),))
    await show("guests", (str(list(STARTS).index("guests") + 1),))


def main() -> None:
    """Runs the demo for a fixed while, then takes the pictures."""
    parser = argparse.ArgumentParser(description="Make new pictures of the live view for the docs, from the demo.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="take only these pictures")
    wanted = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with run_beside(SEED) as ready:
        place = ready().place
        asyncio.run(take_all(Camera(place, wanted.only), place.layout))


if __name__ == "__main__":
    main()
