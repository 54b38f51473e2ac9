"""Every action, by its key, against a real serve."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.tui.widgets.lines import Lines
from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git
from tests.tui.conftest import Node
from tests.tui.drive import NARROW, Seen, drive, make_app

pytestmark = pytest.mark.slow


def repos(node: Node) -> dict[str, Any]:
    """The registry by name."""
    return {repo["name"]: repo for repo in node.serve.cli_json("repos")}


def sessions(node: Node) -> dict[str, Any]:
    """The sessions by name."""
    return {session["session"]: session for session in node.serve.cli_json("sessions")}


def test_refresh_says_what_moved(node: Node) -> None:
    """And the new tip is in the row."""
    commit = add_commit(node.upstream.path(WIDGETS), "main", {"new.txt": "x"}, "Add a thing upstream")

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        await seen.press("r")
        await seen.says(f"{WIDGETS}: main {commit[:10]}")
        await seen.shows("Add a thing upstream")
        await seen.press("R")
        await seen.says("nothing moved")

    drive(make_app(node.serve), script, (160, 30))


def test_disable_and_enable(node: Node) -> None:
    """By one key, both ways; taking a mirror out of service is asked for first."""

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        await seen.press("d")
        await seen.shows(f"Disable {WIDGETS}?")
        await seen.press("enter")
        await seen.hides(f"Disable {WIDGETS}?")
        assert repos(node)[WIDGETS]["enabled"]
        await seen.press("d")
        await seen.shows(f"Disable {WIDGETS}?")
        await seen.press("right", "enter")
        await seen.shows("◇ disabled", "neither refreshed nor served")
        assert not repos(node)[WIDGETS]["enabled"]
        await seen.press("d")
        await seen.hides("◇ disabled")
        assert repos(node)[WIDGETS]["enabled"]

    drive(make_app(node.serve), script, NARROW)


def test_leases_of_disks_are_shown_where_they_matter(node: Node) -> None:
    """Node counts them, and so does the question before a repository with its disks is removed."""
    stores = open_stores(Layout(node.serve.state))
    repo = stores.registry.get(WIDGETS)
    for _ in range(2):
        stores.disk_leases.issue(
            repo, branch="main", commit="1" * 40, form="erofs", generation=1, name="one.img", guest=None, ttl=600,
            of_tip=False,
        )  # fmt: skip
    stores.database.close()

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        await seen.press("D")
        await seen.shows("Deleting also removes its disks", "2 leases of them")
        await seen.press("escape", "4")
        facts = seen.app.screen.query_one("#facts", Lines)
        await seen.until(lambda: "2 leases of disks" in facts.text, "the leases are counted")

    drive(make_app(node.serve), script)


def test_add_and_remove(node: Node) -> None:
    """What is wrong with it is said in the form or after; removing asks, and Cancel has the focus."""
    node.upstream.add("acme/second", node.upstream.path(WIDGETS))

    async def script(seen: Seen) -> None:
        await seen.shows("● fresh", "● serving")
        await seen.press("a")
        await seen.shows("Add a repository")
        await seen.press("enter")
        await seen.shows("URL is needed")
        await seen.type("-u evil")
        await seen.press("enter")
        await seen.until(lambda: len(seen.app.screen_stack) == 1, "the form is gone")
        await seen.says("-u evil")
        await seen.press("a")
        await seen.type(node.upstream.url("acme/second"))
        await seen.press("tab", "tab", "tab")
        await seen.type("soon")
        await seen.press("enter")
        await seen.shows("the interval is not a duration")
        await seen.type("2h")
        await seen.press("enter")
        await seen.says("acme/second is registered")
        await seen.until(lambda: "● fresh" in seen.line("acme/second  "), "it is cloned")
        assert repos(node)["acme/second"]["interval"] == 7200
        await seen.press("home")
        assert seen.app.focused is not None
        await seen.press("D")
        await seen.shows("Remove acme/second?")
        await seen.press("enter")
        await seen.until(lambda: len(seen.app.screen_stack) == 1, "the question is gone")
        await seen.press("D", "escape")
        assert "acme/second" in repos(node)
        await seen.press("D", "right", "right", "enter")
        await seen.says("acme/second is removed and its mirror deleted")
        await seen.until(lambda: not seen.line("acme/second  "), "its row is gone")
        assert not node.serve.mirror("acme/second").exists()

    drive(make_app(node.serve), script)
    assert set(repos(node)) == {WIDGETS}


def test_keep_and_drop_a_session(node: Node) -> None:
    """Dropping asks, and Cancel has the focus."""
    guest = node.guest("keeper")
    node.record(guest, "kept-1")
    node.record(guest, "doomed-1", "print('again')\n")

    async def script(seen: Seen) -> None:
        await seen.press("2")
        await seen.shows("kept-1", "doomed-1", "● serving")
        seen.app.screen.query_one("#list").select((WIDGETS, "kept-1"))  # type: ignore[attr-defined]
        await seen.press("K")
        await seen.shows("◆ kept")
        assert sessions(node)["kept-1"]["kept"]
        await seen.press("K")
        await seen.hides("◆ kept")
        seen.app.screen.query_one("#list").select((WIDGETS, "doomed-1"))  # type: ignore[attr-defined]
        await seen.press("X")
        await seen.shows("End the session doomed-1?")
        await seen.press("enter", "X", "right", "enter")
        await seen.says("doomed-1 is ended")
        await seen.until(lambda: not seen.line("doomed-1  "), "its row is gone")
        assert set(sessions(node)) == {"kept-1"}

    drive(make_app(node.serve), script)


def test_checkout_and_export_from_the_diff(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a turn in a directory; the diff as a patch that applies; neither over what is there."""
    guest = node.guest("worker")
    node.record(guest, "work-1", "print(1)\n", "One")
    node.record(guest, "work-1", "print(2)\n", "Two")
    monkeypatch.chdir(tmp_path)

    async def script(seen: Seen) -> None:
        await seen.press("2", "slash")
        await seen.type("work-1")
        await seen.press("enter", "enter")
        await seen.shows("src/hello.py", "+ print(2)", "all 2 turns")
        await seen.press("left_square_bracket", "left_square_bracket")
        await seen.shows("turn 1 of 2", "One", "+ print(1)")
        await seen.press("c", "enter")
        await seen.says("work-1 is at ")
        assert (tmp_path / "work-1" / "src" / "hello.py").read_text() == "print(1)\n"
        await seen.press("right_square_bracket")
        await seen.shows("turn 2 of 2", "Two", "- print(1)", "+ print(2)")
        await seen.press("w")
        await seen.shows("all 2 turns", "new file")
        await seen.press("e", "enter")
        await seen.says("`git apply` takes it")
        await seen.press("e", "enter")
        await seen.says("already exists")

    drive(make_app(node.serve), script)
    clean = node.guest("clean")
    git("apply", str(tmp_path / "work-1.patch"), cwd=clean)
    assert (clean / "src" / "hello.py").read_text() == "print(2)\n"


def test_lines_that_are_copied_can_be_typed(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clone line by a guest; the checkout line by whoever runs the command."""
    node.record(node.guest("copied"), "copied-1")
    monkeypatch.chdir(tmp_path)
    copied: list[str] = []

    async def script(seen: Seen) -> None:
        monkeypatch.setattr(seen.app, "copy_to_clipboard", copied.append)
        await seen.shows("● fresh", "● serving")
        await seen.until(lambda: seen.app.context.model.pulse, "serve told its address")
        await seen.press("y")
        await seen.says("git clone ")
        await seen.press("2", "slash")
        await seen.type("copied-1")
        await seen.press("enter", "y")
        await seen.says("session checkout ")

    command = shlex.join([*node.serve.command, "--state", str(node.serve.state)])
    drive(make_app(node.serve, command), script)
    for line in copied:
        subprocess.run(line, shell=True, check=True, cwd=tmp_path, env=node.serve.env, capture_output=True)
    assert (tmp_path / "widgets" / "README.md").exists()
    assert (tmp_path / "copied-1" / "src" / "hello.py").exists()


def test_a_question_of_one_key(node: Node) -> None:
    """Which is behind, and why, is one key from the start; what an agent changed is two, with the choice three."""
    node.record(node.guest("asked"), "asked-1", "print('asked')\n")
    node.upstream.add("acme/broken", node.upstream.path(WIDGETS))
    node.serve.cli("add-repo", node.upstream.url("acme/broken"))
    node.upstream.on("acme/broken").fail = True
    for _ in range(3):
        node.serve.cli("refresh", "acme/broken", check=False)

    async def script(seen: Seen) -> None:
        await seen.shows("✗ failing")
        await seen.press("end", "b")
        await seen.shows("✗ acme/broken is failing", "3 failures in a row")
        error = seen.app.context.model.repos["acme/broken"].health.last_error
        assert error and error[:30] in seen.text
        await seen.press("2", "home", "enter")
        await seen.shows("src/hello.py", "print('asked')")

    try:
        drive(make_app(node.serve), script, NARROW)
    finally:
        node.serve.cli("remove-repo", "acme/broken", "--purge", "--yes")


def test_help_palette_and_themes(node: Node) -> None:
    """`?` has every key, `^p` finds a repository, `T` changes the colours."""

    async def script(seen: Seen) -> None:
        await seen.press("question_mark")
        await seen.shows("In Repositories", "worst first, and see why")
        await seen.press("escape", "ctrl+p")
        await seen.press(*"widgets")
        await seen.shows(f"fresh, {node.upstream.url(WIDGETS)}")
        await seen.press("enter")
        await seen.shows("refreshes", "hydrations")
        await seen.press("tab")
        await seen.shows("feature/search")
        await seen.press("escape", "T")
        assert seen.app.theme == "gitmirror-light"

    drive(make_app(node.serve), script)
