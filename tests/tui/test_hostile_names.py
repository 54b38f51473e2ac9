"""Words of strangers in the live view: no screen, no dialog and no notice draws a control character of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.models import Hydration, RefChange, RefreshOutcome, Turn
from appliance.core.node.state_dir import open_stores
from appliance.core.ops import doctor
from appliance.core.store.audit import Attempt
from appliance.core.units import rfc3339
from appliance.tui.data.messages import ActionDone, ActionFailed, ReadFailed
from appliance.tui.screens.dialogs import Ask, Form
from tests.support.generate import add_commit
from tests.support.gitutil import git
from tests.support.terminal import EVIL, unsafe
from tests.tui.drive import Seen, drive
from tests.tui.scene import NOW, PULSE, WIDGETS, Scene, build

WORDS = f"{EVIL}\n\r\t[red]x[/red]"
SESSION = "hostile"


def build_hostile(state: Path) -> None:
    """The usual node, and everything on it that a guest or an upstream can choose."""
    build(state)
    mirror = Layout(state).mirror(WIDGETS)
    tip = git("rev-parse", "main", cwd=mirror)
    git("update-ref", "refs/heads/x\u202e\x9b", tip, cwd=mirror)
    git("branch", "--force", "work", tip, cwd=mirror)
    commit = add_commit(
        mirror, "work", {f"name {EVIL}.py": f"x = '''{EVIL}\x0c'''\r\n", "other.txt": EVIL}, f"see {EVIL}x"
    )
    stores = open_stores(Layout(state))
    repos = {repo.name: repo.id for repo in stores.registry.all()}
    stores.health.update(repos[WIDGETS], tip=commit, head=f"refs/heads/main{EVIL}")
    stores.health.update(repos["acme/infra"], last_error=WORDS)
    moved = (RefChange(f"refs/heads/{EVIL}", None, tip),)
    stores.health.record_refresh(repos[WIDGETS], RefreshOutcome(WIDGETS, NOW - 1, 1.0, moved), refs=14)
    stores.health.record_refresh(repos["acme/infra"], RefreshOutcome("acme/infra", NOW - 1, 1.0, (), WORDS), refs=14)
    stores.activity._clock = lambda: NOW
    stores.activity.record(
        [(NOW - 1, Hydration(WIDGETS, tip, 1, f"deepen-not {WORDS}", "miss", 1, 0.1, 0.1, EVIL, "git", EVIL))]
    )
    refused = Attempt("h1", WIDGETS, f"refs/heads/{WORDS}", None, None, tip, "rejected", WORDS, EVIL)
    taken = Attempt("h2", WIDGETS, f"refs/agents/{SESSION}", SESSION, None, commit, "accepted", None, EVIL, EVIL)
    stores.audit._clock = lambda: NOW - 1
    _, attempt = stores.audit.record_attempts([refused, taken])
    stores.audit.record_outcomes([(attempt, "applied", None)])
    stores.sessions.record(
        Turn(attempt, WIDGETS, SESSION, commit, tip, rfc3339(NOW - 1), f"see {WORDS}", 1, 2, 2, 0, EVIL, 2048, EVIL)
    )
    with stores.database.writing() as connection:
        # `guest add` refuses such names; whoever writes to the file does not.
        connection.execute("UPDATE guests SET name = ?1, unix = ?1 WHERE name = 'vm-7'", [EVIL])
        connection.execute("UPDATE guest_sessions SET session = ?1 WHERE session = 'docs-*'", [EVIL])
        connection.execute("UPDATE guest_repos SET repo = ?1", [EVIL])
    stores.database.close()


@pytest.fixture
def scene(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Scene:
    """A node of strangers."""
    known = {"count": 4, "problems": {EVIL: WORDS}}
    checks = [doctor.Check(EVIL, False, WORDS, WORDS), doctor.Check(f"{EVIL}ok", True, WORDS)]
    return Scene(
        make_once("hostile-scene", build_hostile), {**PULSE, "warnings": [WORDS], "known_guests": known}, checks
    )


WALK: list[tuple[str, ...]] = [
    (),
    ("=acme/infra",),
    ("D",),
    ("escape", "colon", *"infra"),
    ("escape", f"={WIDGETS}", "enter"),
    ("tab",),
    ("tab",),
    ("tab",),
    ("escape", "2"),
    ("c",),
    ("escape", "enter"),
    ("n",),
    ("right_square_bracket",),
    ("escape", "3"),
    ("4",),
    ("5",),
    ("D",),
    ("escape", "enter"),
]
"""Keys from one screen to the next: every screen, the dialogs, the palette."""


@pytest.mark.parametrize("size", [(130, 36), (80, 24)], ids=["wide", "narrow"])
@pytest.mark.slow
def test_no_screen_draws_a_control_character(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """And what a stranger wrote is there, as escapes."""
    seen_escapes: list[str] = []

    async def script(seen: Seen) -> None:
        await seen.settled()
        for keys in WALK:
            for key in keys:
                if key.startswith("="):
                    seen.app.screen.query_one("#list").select(key[1:])  # type: ignore[attr-defined]
                else:
                    await seen.press(key)
                await seen.settled()
            assert not unsafe(seen.text), keys
            if "\\x1b" in seen.text:
                seen_escapes.append(getattr(seen.app.screen, "heading", ""))

    drive(scene.app(monkeypatch), script, size)
    assert {"Repositories", "Repository", "Sessions", "Diff", "Activity", "Node", "Guests"} <= set(seen_escapes)


@pytest.mark.slow
def test_neither_notices_nor_dialogs_nor_problems_do(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their text may be git's words about a guest's content; brackets in it are no markup."""

    async def script(seen: Seen) -> None:
        await seen.settled()
        seen.app.post_message(ActionDone(f"done {WORDS}"))
        seen.app.post_message(ActionFailed(f"act {EVIL}", GitmirrorError(f"failed {WORDS}", hint=f"mend {EVIL}")))
        await seen.shows("done", "failed", "mend", "\\x1b]0;owned", "[red]x[/red]")
        assert not unsafe(seen.text)
        seen.app.post_message(ReadFailed("pulse", GitmirrorError(f"unread {WORDS}")))
        await seen.shows("unread \\x1b")
        assert not unsafe(seen.text)
        for dialog in (Ask(EVIL, WORDS, [("yes", "Yes")]), Form(EVIL, WORDS, [("place", "place", "", "")])):
            seen.app.push_screen(dialog)
            await seen.shows("\\u202e\\u2066")
            await seen.settled()
            assert not unsafe(seen.text)
            await seen.press("escape")

    drive(scene.app(monkeypatch), script)
