"""What a command does on a terminal that it does not do in a pipe: a pager, colours, and drawing in place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.process.pager import pager_command
from appliance.core.store.audit import Attempt
from tests.support.serve import ROOT
from tests.support.typed import TypedInto


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a node that does not serve, with more rows in its log than a pipe holds."""
    state = tmp_path_factory.mktemp("node") / "state"
    stores = open_stores(Layout(state))
    attempts = [("p", "o/r", f"refs/agents/s{n}", f"s{n}", None, "1" * 40, "accepted", None, "c") for n in range(1000)]
    stores.audit.record_attempts([Attempt(*each) for each in attempts])
    stores.database.close()
    return state


def on_terminal(state: Path, *words: str, **env: str) -> TypedInto:
    argv = [sys.executable, "-m", "appliance", "--state", str(state), *words]
    return TypedInto(argv, ROOT, {**os.environ, **env})


def test_long_output_goes_through_the_pager(state: Path, tmp_path: Path) -> None:
    """All of it, with messages for people after it; leaving the pager early is no failure."""
    kept = tmp_path / "kept"
    with on_terminal(state, "audit", "--limit", "1000", GITMIRROR_PAGER=f"cat > {kept}", PAGER="false") as shown:
        assert shown.end() == 0 and shown.shown == ""
    assert kept.read_text().count("refs/agents/") == 1000
    with on_terminal(state, "audit", "--limit", "1000", GITMIRROR_PAGER="true") as shown:
        assert shown.end() == 0 and shown.shown == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "pager"),
    [
        (["--no-pager", "audit"], "false"),
        (["audit", "--json"], "false"),
        (["audit"], ""),
        (["audit"], "cat"),
        (["audit"], "no-such-pager"),
        (["audit", "verify"], "false"),
    ],
    ids=str,
)
def test_no_pager_where_none_is_wanted(state: Path, words: list[str], pager: str) -> None:
    """The output is on the terminal itself, whole."""
    with on_terminal(state, *words, GITMIRROR_PAGER=pager) as shown:
        assert shown.end() == 0
    assert re.search("refs/agents/s950|1000 events", shown.shown)


def test_an_error_needs_no_pager(state: Path, tmp_path: Path) -> None:
    """It is on the terminal, and its code is that of the command."""
    with on_terminal(state, "session", "show", "o/r", "no", GITMIRROR_PAGER=f"cat > {tmp_path}/kept") as shown:
        assert shown.end() == 2
    assert "\x1b[31merror:\x1b[0m" in shown.shown
    assert not (tmp_path / "kept").exists()


def test_the_first_variable_that_is_set_decides() -> None:
    """Ours, that of all programs, less; the quotes of a shell are understood, and unbalanced ones are none."""
    assert pager_command({"GITMIRROR_PAGER": "sh -c 'cat'", "PAGER": "true"}) == "sh -c 'cat'"
    assert pager_command({"PAGER": "LESS=R true"}) == "LESS=R true"
    assert pager_command({"GITMIRROR_PAGER": "", "PAGER": "true"}) == ""
    assert pager_command({"PAGER": "sh -c 'cat"}) == ""
    assert pager_command({}) in ("less", "")


@pytest.mark.parametrize("by", ["SUDO_UID", ""])
def test_a_pager_of_another_user_starts_no_shell(state: Path, tmp_path: Path, by: str) -> None:
    """Who may run this command by sudo may not, for all that, run every other one."""
    kept = tmp_path / "kept"
    more = {by: "1000"} if by else {}
    pager = f"env > {kept}; cat > {os.devnull}"
    with on_terminal(state, "audit", GITMIRROR_PAGER=pager, **more) as shown:
        assert shown.end() == 0
    assert ("LESSSECURE=1" in kept.read_text().splitlines()) is bool(by)


@pytest.mark.parametrize(("choice", "coloured"), [("always", True), ("never", False), ("auto", False)])
def test_colours_as_they_are_asked_for(state: Path, choice: str, coloured: bool) -> None:
    """In a pipe; --color goes before NO_COLOR."""
    argv = [sys.executable, "-m", "appliance", "--color", choice, "--state", str(state), "enable", "no/such"]
    env = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert ("\x1b[31merror:" in done.stderr) is coloured


def test_the_state_is_watched_in_place(state: Path) -> None:
    """Each time over the last; Ctrl-C ends it, and is no failure."""
    with on_terminal(state, "status", "--watch", "0.2") as shown:
        for _ in range(3):
            shown.wait_for("serve is not running")
        shown.press("\x03")
        assert shown.end() == 0
    assert shown.shown.count("\x1b[2A") >= 2, "it goes up by the lines that it wrote"
    assert "\x1b[2J" not in shown.shown, "what stood on the terminal before stays"


def test_the_state_is_watched_in_a_pipe(state: Path) -> None:
    """One document on each line, or one state after another with an empty line between."""
    for more, is_next in ((["--json"], lambda line: json.loads(line)["serving"] is False), ([], str.isspace)):
        argv = [sys.executable, "-m", "appliance", "--state", str(state), "status", "--watch", "0.2", *more]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert is_next(process.stdout.readline())
            process.send_signal(2)
            assert process.wait(60) == 0
