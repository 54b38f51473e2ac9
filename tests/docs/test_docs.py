"""The documents say what there is: every command, every setting, and nothing that is not there."""

from __future__ import annotations

import re
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
from appliance.core.units import parse_duration, parse_size
from tests.support.serve import ROOT

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)


COMMANDS = dict(commands(cli))
ROWS = re.findall(r"^\| `([^`]+)` \|(.*)\|$", README.read_text(), re.MULTILINE)
SETTINGS = {cell: rest for cell, rest in ROWS if cell.startswith("[")}
DOCUMENTED = {
    " ".join(re.findall(r"(?<![\w<\[-])[a-z][a-z-]*(?![\w>\]])", cell)): cell
    for cell, _ in ROWS
    if cell not in SETTINGS
}
"""Rows of the table of commands: the words in lower case are the command, `add-repo URL` is `add-repo`."""


@pytest.mark.parametrize("name", [name for name, each in COMMANDS.items() if not isinstance(each, click.Group)])
def test_every_command_is_documented(name: str) -> None:
    """One row each in the README."""
    assert name in DOCUMENTED


def test_every_documented_command_is_there() -> None:
    """With the arguments and options that the row shows."""
    for name, cell in DOCUMENTED.items():
        assert name in COMMANDS, f"the README documents {name}"
        known = {(each.metavar or each.name or "").strip("[].").upper() for each in COMMANDS[name].params}
        for argument in re.findall(r"\b[A-Z]{2,}\b", cell):
            assert argument in known, f"{name} has no {argument}"


def test_every_option_that_the_readme_names_is_there() -> None:
    """In whatever sentence it stands."""
    known = {option for each in (cli, *COMMANDS.values()) for param in each.params for option in param.opts} | {
        "--help"
    }
    text = re.sub(r"^(?:git|sudo git) .*$|gitmirror_[a-z]+ [^`]*`", "", README.read_text(), flags=re.MULTILINE)
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert mentioned <= known


def keys() -> Iterator[tuple[str, Any, Any]]:
    for section, kind in SECTIONS.items():
        for each in fields(kind):
            yield f"[{section}] {each.name}", each.metadata["default"], each.default
    for each in fields(RepoConfig):
        yield f"[[repos]] {each.name}", "", each.default
    for each in fields(AllowConfig):
        yield f"[[allow]] {each.name}", each.metadata["default"], each.default
    for each in fields(CredentialConfig):
        yield f"[[credentials]] {each.name}", each.metadata["default"], each.default


KEYS = {name: (default, read) for name, default, read in keys()}


@pytest.mark.parametrize("name", KEYS)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    """The default in the table is the one that holds."""
    written, read = KEYS[name]
    assert name in SETTINGS
    default, _, text = SETTINGS[name].partition("|")
    assert text.strip()
    shown = default.strip().strip("`")
    if isinstance(read, bool):
        assert shown == str(read).lower()
    elif isinstance(read, float) and shown:
        assert parse_duration(shown) == read
    elif isinstance(written, str) and re.fullmatch(r"\d+[KMGT]iB", written):
        assert parse_size(shown) == read
    else:
        assert shown == str(written)


def test_no_setting_is_documented_that_is_not_there() -> None:
    """Who writes it into the file gets an error."""
    assert SETTINGS.keys() == KEYS.keys()


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
    lines = re.findall(r"^(?:sudo )?(\./scripts/\S+)", README.read_text(), re.MULTILINE)
    assert {"./scripts/run.sh", "./scripts/test.sh"} <= set(lines)
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
