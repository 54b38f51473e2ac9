"""Completion in real shells: of commands, and of names that only the database knows; and no trace of having asked."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from appliance.cli.completing import answer
from appliance.cli.main import cli
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.ops.shell_completion import ANSWER, SHELLS, WORDS, completion_script
from tests.support.serve import ROOT
from tests.support.typed import TypedInto

SHELL = {
    "bash": ["bash", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
LOAD = {
    "bash": "source <(./dist/mirror.pyz completion bash --name gm)",
    "zsh": "source <(./dist/mirror.pyz completion zsh)",
    "fish": "./dist/mirror.pyz completion fish | source",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the program under a name of its own, and a state directory with two repositories and a guest."""
    place = tmp_path_factory.mktemp("place")
    program = place / "dist" / "mirror.pyz"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from appliance.__main__ import main\nmain()\n"
    )
    program.chmod(0o755)
    stores = open_stores(Layout(place / "state"))
    with stores.database.writing() as connection:
        for name in ("acme/widgets", "other/gears"):
            repo = {"name": name, "url": f"https://h/{name}", "source": "cli", "created_at": 0.0}
            connection.table("repos").insert(repo)
        numbers = dict.fromkeys(("turns", "commits", "files_changed", "insertions", "deletions", "bytes"), 1)
        session = {"repo": "acme/widgets", "session": "fix-the-resolver", "ref": "r", "tip": "t", "client": "c"}
        connection.table("sessions").insert(session | numbers | {"first_at": "2026", "last_at": "2026"})
        connection.table("guests").insert({"name": "vm-7", "only": 0, "created_at": 0.0})
    stores.database.close()
    return place


def environment(place: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "HOME": str(place), "GITMIRROR_STATE": str(place / "state"), "PS1": "> ", **more}


def asked(place: Path, line: str, **env: str) -> list[str]:
    """The words that the program offers for what stands on a line, as bash asks."""
    answer = subprocess.run(
        [place / "dist" / "mirror.pyz"],
        env=environment(place, _GITMIRROR_COMPLETE="bash", GITMIRROR_WORDS=f"mirror.pyz {line}", **env),
        cwd=place, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.stderr == ""
    return [line.split("\t")[1] for line in answer.stdout.splitlines()]


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_commands_options_and_names(place: Path, shell: str) -> None:
    """By a path, by a value behind =, and by an alias of the file."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    with TypedInto(SHELL[shell], place, environment(place)) as typed:
        typed.press(f"{LOAD[shell]}; alias gm={place}/dist/mirror.pyz; echo re''ady\n")
        typed.wait_for("ready")
        typed.press("./dist/mirror.pyz stat\t")
        typed.wait_for("status ")
        typed.press("\x15./dist/mirror.pyz session show acme/widgets fix\t")
        typed.wait_for("the-resolver")
        typed.press("\x15./dist/mirror.pyz audit --repo=acme/w\t")
        typed.wait_for("idgets")
        typed.press("\x15gm enable oth\t")
        typed.wait_for("er/gears")
        typed.press("\x15./dist/mirror.pyz disable \t\t")
        typed.wait_for(r"acme/widgets\s+(\S+\s+)*other/gears")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("enable ", ["acme/widgets", "other/gears"]),
        ("--color never enable o", ["other/gears"]),
        ("refresh acme/widgets ", ["acme/widgets", "other/gears"]),
        ("session diff acme/widgets ", ["fix-the-resolver"]),
        ("session drop acme/widgets ", ["fix-the-resolver"]),
        ("session keep acme/widgets other ", ["fix-the-resolver"]),
        ("session diff other/gears ", []),
        ("audit --session ", ["fix-the-resolver"]),
        ("guest remove ", ["vm-7"]),
        ("guest add ", []),
        ("activity --guest ", ["vm-7"]),
        ("disk ", ["acme/widgets", "other/gears", "release"]),
        ("audit --verdict=r", ["--verdict=rejected"]),
        ("--state /nowhere enable ", []),
        ("'unclosed", []),
    ],
)
def test_what_is_offered(place: Path, monkeypatch: pytest.MonkeyPatch, line: str, offered: list[str]) -> None:
    """Where a value is expected, those that are there; of sessions, those of the repository."""
    monkeypatch.setenv("GITMIRROR_STATE", str(place / "state"))
    for param in (param for command in [cli, *commands(cli)] for param in command.params):
        monkeypatch.setattr(param, "type", param.type)
    lines = answer(cli, {ANSWER: "bash", WORDS: f"mirror.pyz {line}"})
    assert [line.split("\t")[1] for line in lines] == offered


def test_asking_leaves_no_trace(place: Path, tmp_path: Path) -> None:
    """Nothing is made or changed, neither beside a database nor where there is none, nor beside a damaged one."""
    for name in ("none", "damaged", "whole"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "gitmirror.db").write_bytes(b"no database at all" * 1000)
    shutil.copy(place / "state" / "gitmirror.db", tmp_path / "whole")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, offered in (("none", 0), ("damaged", 0), ("whole", 2), ("missing", 0)):
        assert len(asked(place, "enable ", GITMIRROR_STATE=str(tmp_path / name))) == offered
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_nothing_that_is_typed_or_offered_runs(place: Path, tmp_path: Path) -> None:
    """Neither the words before, nor what another program of that name says."""
    other = tmp_path / "gitmirror"
    other.write_text("#!/bin/sh\nprintf 'plain\\t$(touch offered)\\t\\n'\n")
    other.chmod(0o755)
    line = "./gitmirror remove-repo `touch typed` $(touch typed) x"
    program = (
        f"{completion_script('bash', 'gitmirror.pyz')}\n"
        f"COMP_LINE={line!r} COMP_POINT={len(line)} _gitmirror ./gitmirror; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "$(touch offered)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["gitmirror"]


def test_a_name_that_a_shell_would_expand_is_not_offered(place: Path, tmp_path: Path) -> None:
    """No version takes such a name, but somebody may have written the database."""
    shutil.copy(place / "state" / "gitmirror.db", tmp_path)
    names = ("$(touch x)", "a b", "a;b", "it's", "`x`", "*")
    with contextlib.closing(sqlite3.connect(tmp_path / "gitmirror.db")) as connection:
        for name in names:
            connection.execute(
                "INSERT INTO repos (name, url, source, created_at) VALUES (?, ?, 'cli', 0)", (name, name)
            )
        connection.commit()
    assert asked(place, "enable ", GITMIRROR_STATE=str(tmp_path)) == ["acme/widgets", "other/gears"]


def test_a_name_must_be_a_word() -> None:
    """It becomes part of a script."""
    done = CliRunner().invoke(cli, ["completion", "bash", "--name", "x; rm -rf ~"])
    assert done.exit_code == 2 and done.stdout == ""
