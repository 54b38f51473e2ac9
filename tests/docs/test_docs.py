"""The documents say what there is: every command, every setting, and nothing that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from appliance.cli.main import cli
from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.repositories import AllowConfig, RepoConfig
from appliance.core.config.settings import SECTIONS
from tests.support.serve import ROOT

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LISTS: dict[str, type[Any]] = {"repos": RepoConfig, "allow": AllowConfig, "credentials": CredentialConfig}


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)


COMMANDS = dict(commands(cli))
BEFORE = {name: param for param in cli.params if isinstance(param, click.Option) for name in param.opts}
"""The options that stand before the command."""
CALL = re.compile(r"gitmirror\.pyz((?: (?:[^\s`|&;>()\\]+|'[^'\n]*'))+)")
"""A call of the program, up to what the shell takes for itself."""
CODE = re.compile(r"^```\w*\n(.*?)^```$|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
SHOWN = [page for page in PAGES if page.parent.name != "decisions" and page.name != "CHANGELOG.md"]
"""Pages that tell what is there now."""
REFERENCE = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("commands", "settings")}


def test_the_reference_is_what_the_code_says() -> None:
    """Otherwise: scripts/reference_docs.py."""
    argv = [sys.executable, str(ROOT / "scripts" / "reference_docs.py"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_a_section() -> None:
    """And is in the table at the top, if it does something by itself."""
    titles = re.findall(r"^##+ (.+)$", REFERENCE["commands"].partition("\n## All commands\n")[2], re.MULTILINE)
    assert sorted(titles) == sorted(name for name, each in COMMANDS.items() if not each.hidden)
    for name, each in COMMANDS.items():
        if not isinstance(each, click.Group) and not each.hidden:
            assert f"\n| [`{name}`](#" in REFERENCE["commands"], name


def test_every_setting_has_a_row_with_its_default() -> None:
    """The default in the table is the one that holds."""
    for section, kind in {**SECTIONS, **LISTS}.items():
        _, _, below = REFERENCE["settings"].partition(f"\n## {'[[' if section in LISTS else '['}{section}]")
        rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", below.partition("\n## ")[0], re.MULTILINE))
        assert list(rows) == [each.name for each in fields(kind)]
        for each in fields(kind):
            default = re.match(r"`(.+?)` \|", rows[each.name])
            if default:
                assert each.metadata["parse"](tomllib.loads(f"x = {default[1]}")["x"]) == each.default


def faults(call: str) -> Iterator[str]:
    """What is wrong with the words of a call: a command or an option that is not there."""
    words = call.split()
    while words and words[0] in BEFORE:
        words = words[1 if BEFORE[words[0]].is_flag else 2 :]
    if not words or words[0] == "COMMAND" or words[0].startswith("["):
        return
    found: click.Command = cli
    path = ""
    while isinstance(found, click.Group) and words and words[0] in found.commands:
        found, path = found.commands[words[0]], f"{path} {words[0]}"
        words = words[1:]
    if found is cli:
        yield f"no command {words[0]}"
    known = {option for param in found.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
    if found is not cli:
        for word in words:
            if word.startswith("--") and word.partition("=")[0] not in known:
                yield f"{path} has no {word}"


@pytest.mark.parametrize("page", SHOWN, ids=[str(page.relative_to(ROOT)) for page in SHOWN])
def test_calls_of_the_program_are_right(page: Path) -> None:
    """Every command and option that a page shows is there."""
    code = "\n".join(block or words for block, words in CODE.findall(page.read_text()))
    calls = [re.sub(r" #.*", "", call).strip() for call in CALL.findall(code)]
    assert {call: list(faults(call)) for call in calls if list(faults(call))} == {}


def test_a_call_that_is_wrong_is_found() -> None:
    """Or the test above holds nothing."""
    assert list(faults("sesion show a b")) == ["no command sesion"]
    assert list(faults("session show a b --turns 2")) == [" session show has no --turns"]
    assert CALL.findall("`gitmirror.pyz --state DIR status | less` and") == [" --state DIR status"]


def test_the_readme_is_a_page_that_one_reads() -> None:
    """The tables of commands and settings are in docs/."""
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    """Relative ones, with the heading that they name."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert there.is_relative_to(ROOT)
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Scripts and sources of this checkout."""
    for name in re.findall(
        r"(?<![\w/.])(?:\./)?((?:scripts|appliance|docs|tests|systemd|requirements)/[\w./-]*\w)", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_scripts_that_the_readme_runs_can_be_run() -> None:
    """As they stand there, with no interpreter in front."""
    lines = re.findall(r"(?<![\w/])\./scripts/\w+\.sh", README.read_text())
    assert {"./scripts/build_pyz.sh", "./scripts/run.sh", "./scripts/test.sh"} <= set(lines)
    for line in lines:
        assert (ROOT / line).stat().st_mode & 0o111, line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_page_names_a_place_of_one_machine(page: Path) -> None:
    """Homes, work and scratch directories."""
    text = page.read_text()
    for pattern in (
        r"/home/\w",
        r"/root/\w",
        r"/work\b",
        r"/tmp/\w{1,3}/",
        r"\.pyenv",
    ):
        assert not re.search(pattern, text), pattern


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_page_has_one_title_and_no_unfinished_business(page: Path) -> None:
    """The first line is the title; fences are closed."""
    text = page.read_text()
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1
    assert "```" not in outside
    assert not re.search(r"\b(?:TODO|FIXME|TBD|XXX)\b", text)


def test_every_decision_is_numbered_and_says_why() -> None:
    """One each, numbered without gaps, with context and choice."""
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [path.name[:3] for path in decisions] == [f"{number:03d}" for number in range(1, len(decisions) + 1)]
    for path in decisions:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:3]}: ")
        assert "**Context.**" in text and "**Choice.**" in text, path.name
