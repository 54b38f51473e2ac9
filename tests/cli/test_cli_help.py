"""The command line: what it knows, how it is told so, and what goes to stdout."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from appliance.cli.main import cli
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.store.audit import Attempt
from tests.support.serve import ROOT

CONTRACT: dict[str, set[str]] = {
    "serve": {"--git", "--http", "--admin"},
    "add-repo": {"URL", "--name", "--branch", "--interval", "--allow-local", "--no-wait", "--json"},
    "remove-repo": {"NAME", "--purge", "--yes"},
    "enable": {"NAME"},
    "disable": {"NAME"},
    "repos": {"--json"},
    "status": {"--json", "--watch"},
    "refresh": {"NAME", "--json"},
    "refreshes": {"NAME", "--json"},
    "activity": {"--json", "--follow"},
    "sessions": {"--repo", "--json"},
    "session show": {"REPO", "SESSION", "--json"},
    "session diff": {"REPO", "SESSION", "--turn", "--against"},
    "session bundle": {"REPO", "SESSION", "--turn", "-o"},
    "session checkout": {"REPO", "SESSION", "DIR", "--turn"},
    "audit": {"--repo", "--session", "--limit", "--json"},
    "audit verify": {"--head"},
    "audit export": set(),
    "token issue": {"--repo", "--ttl", "--note", "--json"},
    "token list": {"--repo", "--json"},
    "token revoke": {"ID"},
    "api-token issue": {"--scope", "--ttl", "--name", "--json"},
    "api-token list": {"--json"},
    "api-token revoke": {"ID", "--json"},
    "guest add": {"NAME", "--session", "--repo", "--only", "--unix", "--address", "--token", "--ttl", "--json"},
    "guest remove": {"NAME", "--json"},
    "guests": {"--json"},
    "disk": {"REPO", "--branch", "--commit", "--guest", "--ttl", "--single", "--format", "--json"},
    "disk release": {"ID", "--json"},
    "disks": {"--json"},
    "verify": {"REPO", "--full", "--json"},
    "heal": {"REPO", "--json"},
    "backup": {"DIR", "--json"},
    "backup verify": {"DIR", "--json"},
    "restore": {"DIR", "--state", "--yes", "--json"},
    "guest-kit": set(),
    "egress": {"--json"},
    "doctor": {"--json"},
    "install": {"--root"},
    "uninstall": {"--root", "--purge", "--yes"},
    "logs": {"-f", "--follow", "-n", "--since", "-p", "--priority"},
    "completion": {"SHELL"},
    "tui": set(),
}
"""Commands of the contract with their arguments and options; more are welcome."""


def walk(group: click.Group, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with its words."""
    for name, command in sorted(group.commands.items()):
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from walk(command, *above, name)


COMMANDS = dict(walk(cli))
JSON = [words for words, command in COMMANDS.items() if any("--json" in each.opts for each in command.params)]


def run(*words: str, state: Path | None = None) -> Result:
    """Runs a command in this process."""
    before = ["--state", str(state)] if state else []
    return CliRunner().invoke(cli, [*before, *words], prog_name="gitmirror.pyz")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of a node that does not serve, with one repository and some log."""
    stores = open_stores(Layout(tmp_path / "state"))
    stores.audit.record_attempts(
        [Attempt("p", "o/r", f"refs/agents/{n}", str(n), None, "1" * 40, "accepted", None, "c") for n in range(2000)]
    )
    stores.database.close()
    assert run("add-repo", "https://h/o/r", "--no-wait", state=tmp_path / "state").exit_code == 0
    return tmp_path / "state"


# Help


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...], option: str) -> None:
    """Exit 0; a line that can be typed as it stands; the example calls this very command."""
    done = run(*words, option)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: gitmirror.pyz {' '.join(words)}")
    examples = done.stdout.partition("Example")[2]
    assert re.search(rf"gitmirror\.pyz(?: --state \S+)? {' '.join(words)}\b", examples), done.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_every_command_is_explained(words: tuple[str, ...]) -> None:
    """One sentence each."""
    for each in COMMANDS[words].params:
        if isinstance(each, click.Option):
            assert each.help, each.opts


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_first_sentence_fits_the_list_of_commands(words: tuple[str, ...]) -> None:
    """click cuts longer ones with dots."""
    command = COMMANDS[words]
    assert not command.get_short_help_str(200).endswith("...")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_are_what_the_commands_take(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is parsed as it stands, up to what a shell does with it."""
    lines = re.findall(r"(?<!/opt/)gitmirror\.pyz( .*)", (COMMANDS[words].help or "").partition("Example")[2])
    assert lines
    for command in (cli, *COMMANDS.values()):
        monkeypatch.setattr(command, "callback", lambda **_: None)
    for line in lines:
        argv = takewhile(lambda word: word not in ("|", ">", ">>", "&&"), shlex.split(line))
        # The end of `source <(...)` is the shell's.
        cli.main([word.rstrip(")") for word in argv], standalone_mode=False)


def test_every_command_stands_in_one_section_of_the_help() -> None:
    """With its whole first sentence on one line of a terminal of 80 columns."""
    listed = [name for names in cli.sections.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)
    said = run("--help").stdout.splitlines()
    for name, command in cli.commands.items():
        assert any(line.split() == [name, *command.get_short_help_str(200).split()] for line in said), name


def test_the_commands_are_those_of_the_contract() -> None:
    """Names, arguments and options exactly as the outside relies on them."""
    for name, expected in CONTRACT.items():
        command = COMMANDS[tuple(name.split())]
        known: set[str] = set()
        for each in command.params:
            label = (each.metavar or each.name or "").strip("[].").upper()
            known |= set(each.opts) if isinstance(each, click.Option) else {label}
        assert expected <= known, f"{name}: {sorted(expected - known)} missing"


def test_options_before_the_command() -> None:
    """As the contract has them; without a command there is help."""
    assert {"--state", "--config", "--color", "--no-pager", "--version", "--licenses"} <= {
        each.opts[0] for each in cli.params
    }
    bare = run()
    assert "Usage: gitmirror.pyz" in bare.output
    assert "Serve and install:" in bare.output


def test_the_version_is_one_line() -> None:
    """By itself and after other options."""
    from appliance import version_text

    assert run("--version").stdout == f"{version_text()}\n"
    argv = [sys.executable, "-m", "appliance", "--version"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout == f"{version_text()}\n"


# Wrong usage


@pytest.mark.parametrize(
    "words",
    [
        ["dance"],
        ["--nonsense"],
        ["repos", "--nonsense"],
        ["repos", "surplus"],
        ["add-repo"],
        ["add-repo", "https://h/a/b", "--interval", "soon"],
        ["add-repo", "https://h/a/b", "--interval", "100ms"],
        ["add-repo", "https://h/a/b", "--name", "nonsense"],
        ["add-repo", "ssh://git@h/a/b"],
        ["add-repo", "https://user:password@h/a/b"],
        ["add-repo", "--", "-oProxyCommand=x"],
        ["add-repo", "/srv/git/a/b"],
        ["remove-repo"],
        ["enable"],
        ["audit", "--limit", "0"],
        ["audit", "--limit", "many"],
        ["audit", "verify", "surplus"],
        ["refreshes", "--limit", "-1"],
        ["session", "show", "a/b"],
        ["serve", "--git", "nonsense"],
        ["serve", "--admin", "127.0.0.1:99999"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_nothing_on_stdout(tmp_path: Path, words: list[str]) -> None:
    """What is wrong stands on stderr, and nothing was registered."""
    done = run(*words, state=tmp_path / "state")
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert "password" not in done.stderr.replace("user and password", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [("[serve]\nmax_client = 1\n", "max_clients"), ("nonsense", "not valid TOML"), (None, "No such file")],
)
def test_a_wrong_config_exits_2_and_names_the_file(tmp_path: Path, text: str | None, said: str) -> None:
    """For every command that reads it."""
    config = tmp_path / "gitmirror.toml"
    if text is not None:
        config.write_text(text)
    for words in (["repos"], ["status", "--json"], ["serve"], ["audit"]):
        done = run("--config", str(config), *words, state=tmp_path / "state")
        assert (done.exit_code, done.stdout) == (2, "")
        assert str(config) in done.stderr
        assert said in done.stderr


def test_an_error_is_what_happened_and_what_to_do(tmp_path: Path) -> None:
    """Two lines, the second a hint; exit 2 for what was asked for wrongly, 4 for what needs serve."""
    done = run("enable", "no/such", state=tmp_path / "state")
    assert done.exit_code == 2
    hint = "`repos` lists all of them, `add-repo URL` adds one"
    assert done.stderr.startswith(f"error: no/such is not registered\nhint: {hint}\nthere is no state directory ")
    done = run("refresh", state=tmp_path / "state")
    assert done.exit_code == 4
    assert done.stderr.startswith("error: serve is not running on ")


# What goes to stdout


NEEDS: dict[tuple[str, ...], list[str]] = {
    ("token", "issue"): ["--repo", "o/r"],
    ("api-token", "issue"): ["--scope", "read"],
    ("api-token", "revoke"): ["1"],
    ("add-repo",): ["https://h/o/r", "--no-wait"],
    ("session", "show"): ["o/r", "s"],
    ("session", "drop"): ["--repo", "o/r", "--older-than", "7d"],
    ("guest", "add"): ["vm-7", "--token"],
    ("guest", "remove"): ["vm-7"],
    ("disk",): ["o/r"],
    ("disk", "release"): ["1f0c"],
    ("backup", "verify"): ["/nowhere"],
    ("restore",): ["/nowhere"],
    ("heal",): ["o/r"],
}
ENDS = {
    ("status",): 4,
    ("refresh",): 4,
    ("disk",): 4,
    ("disk", "release"): 4,
    ("session", "show"): 1,
    ("api-token", "revoke"): 1,
    ("backup", "verify"): 1,
    ("restore",): 1,
    ("heal",): 1,
    ("guest", "remove"): 1,
}


@pytest.mark.parametrize("words", JSON, ids=" ".join)
def test_json_is_one_document_and_nothing_else(state: Path, words: tuple[str, ...]) -> None:
    """With or without anything to tell; where a command fails, stdout stays empty."""
    config = state.with_name("off.toml")
    config.write_text(f'[serve]\ngit = "127.0.0.1:9418"\nadmin = ""\n[backup]\nto = "{state.parent}/backups"\n')
    done = run("--config", str(config), *words, *NEEDS.get(words, []), "--json", state=state)
    assert done.exit_code in (0, 3, ENDS.get(words, 0)), done.output
    if done.stdout or done.exit_code in (0, 3):
        json.loads(done.stdout)
        assert done.stdout.isascii()


def test_an_empty_node_answers_in_json_too(tmp_path: Path) -> None:
    """An empty list is a document; messages for people are on stderr."""
    for words in (["repos"], ["audit"], ["refreshes"], ["activity"], ["sessions"]):
        done = run(*words, "--json", state=tmp_path / "state")
        assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    said = run("repos", state=tmp_path / "state")
    assert said.stdout == ""
    assert "add-repo URL" in said.stderr


def test_the_log_is_exported_as_json_lines_that_can_be_checked(state: Path) -> None:
    """Each event on a line of its own, oldest first, with its hash."""
    lines = run("audit", "export", state=state).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["id"] for event in events] == list(range(1, 2001))
    done = run("audit", "verify", "--head", events[-1]["hash"], state=state)
    assert (done.exit_code, done.stdout) == (0, f"2000 events, the chain holds; head {events[-1]['hash']}\n")
    done = run("audit", "verify", "--head", "f" * 64, state=state)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "broken" in done.stderr


def command_line(state: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "appliance", "--state", str(state), *words]


CHATTY = [["audit", "export"], ["audit", "--limit", "2000"], ["audit", "--json"], ["repos"], ["--version"], ["--help"]]


@pytest.mark.parametrize("words", CHATTY, ids=" ".join)
def test_a_reader_that_has_gone_leaves_no_traceback(state: Path, words: list[str]) -> None:
    """As with `| head -1`: many lines or one, the reader closed before any came."""
    reading, writing = os.pipe()
    os.close(reading)
    argv = command_line(state, *words) if words[0] != "--version" else [sys.executable, "-m", "appliance", *words]
    done = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(writing)
    assert done.stderr == ""


def on_a_terminal(argv: list[str], **env: str) -> str:
    """What a command writes when stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        argv, stdout=theirs, stderr=theirs, cwd=ROOT, env={**os.environ, "TERM": "xterm", **env}
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while more := os.read(ours, 65536):
                said += more
        except OSError:
            # Linux tells the end of a terminal by EIO.
            pass
        process.wait(60)
    os.close(ours)
    return said.decode()


@pytest.mark.slow
def test_colour_is_for_a_terminal_that_wants_it(state: Path) -> None:
    """None into a pipe, none with NO_COLOR."""
    argv = command_line(state, "enable", "no/such")
    assert "\x1b[31merror:" in on_a_terminal(argv)
    assert "\x1b" not in on_a_terminal(argv, NO_COLOR="1")
    assert "\x1b" not in subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False).stderr


READING = (
    "status", "repos", "sessions", "sessions --grep x", "activity", "audit", "audit verify", "audit export",
    "refreshes", "storage", "guests", "token list", "api-token list", "fleet status", "egress", "guest-kit",
    "doctor", "verify", "config show", "disks", "refresh", "session show o/r s", "session diff o/r s",
    "session keep o/r s", "heal o/r", "session checkout o/r s DIR", "token revoke 1", "guest remove vm-7",
    "backup DIR", "remove-repo o/r", "enable o/r", "disable o/r",
)  # fmt: skip


@pytest.mark.parametrize("line", READING)
def test_reading_makes_nothing(tmp_path: Path, line: str) -> None:
    """With a wrong --state it is said that there is nothing, and what to do. So it is with an empty directory."""
    words = [str(tmp_path / "made") if word == "DIR" else word for word in line.split()]
    (tmp_path / "empty").mkdir()
    for state in (tmp_path / "no" / "state", tmp_path / "empty"):
        done = run(*words, state=state)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert words[0] == "config" or str(state) in done.output
        assert {path.name for path in tmp_path.rglob("*")} == {"empty"}
    if line == "status":
        assert done.exit_code == 4 and "name its directory with --state" in done.stderr


def test_what_is_made_is_for_its_owner_and_the_group(tmp_path: Path) -> None:
    """As what `serve` makes: the directory, the database in it, a backup, and what is restored of that."""
    (tmp_path / "config.toml").write_text('[[repos]]\nurl = "https://h/o/r"\n')
    made = [tmp_path / "state", tmp_path / "backup", tmp_path / "again"]
    config = ("--config", str(tmp_path / "config.toml"))
    assert run(*config, "disable", "o/r", state=made[0]).exit_code == 0
    assert run("backup", str(made[1]), state=made[0]).exit_code == 0
    restored = run("restore", str(made[1]), state=made[2])
    assert restored.exit_code == 0 and "there is no state directory" not in restored.output
    paths = [path for root in made for path in (root, *root.rglob("*"))]
    # git's settings, in a directory that is closed.
    assert {path.name for path in paths if path.stat().st_mode & 0o007} <= {"git.config", "serving.config"}


def test_a_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("repos", state=tmp_path / "file")
    assert (done.exit_code, done.stdout) == (2, "") and "/file is not a directory" in done.stderr


def test_a_kit_that_names_all_addresses_is_warned_of(tmp_path: Path) -> None:
    """No guest reaches 0.0.0.0."""
    config = tmp_path / "config.toml"
    config.write_text('[serve]\ngit = "0.0.0.0:9418"\nhttp = "[::]:9419"\npublic_git = "git://mirror:9418"\n')
    done = run("--config", str(config), "guest-kit", state=tmp_path / "state")
    assert done.exit_code == 0 and done.stdout.startswith("#!/bin/sh")
    assert (
        "guests cannot reach http://[::]:9419" in done.stderr and '[serve] public_http = "http://mirror' in done.stderr
    )
    assert "cannot reach" not in run("guest-kit", state=tmp_path / "state").stderr


@pytest.mark.parametrize("line", ["sessions", "activity", "audit", "token list"])
def test_a_misspelt_repository_is_no_empty_list(state: Path, line: str) -> None:
    """Exit code 2, and which one is meant; of one that is registered, nothing to list is an empty list."""
    done = run(*line.split(), "--repo", "R", state=state)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "R is not registered" in done.stderr and "did you mean o/r?" in done.stderr
    assert run(*line.split(), "--repo", "o/r", state=state).exit_code == 0
