"""docs/tui.md names every key; the help fits 80 columns; pictures that are shown are there."""

from __future__ import annotations

import re

import pytest
from textual.binding import Binding

from appliance.tui.app import help_sections
from appliance.tui.widgets.keys import key_names
from tests.support.serve import ROOT

PAGE = (ROOT / "docs" / "tui.md").read_text()
KEYS = {
    (title, key): binding
    for title, bindings in help_sections(None)
    for binding in bindings
    if isinstance(binding, Binding)
    for key in key_names(binding.key).split()
}


@pytest.mark.parametrize(("title", "key"), KEYS)
def test_every_key_is_documented(title: str, key: str) -> None:
    """In the table of its view, between backticks."""
    section = PAGE.partition(f"\n### {title}\n")[2].partition("\n#")[0]
    assert section, f"docs/tui.md has no section {title}"
    assert f"`{key}`" in section, f"docs/tui.md does not name {key} {title}"


@pytest.mark.parametrize(("title", "key"), KEYS)
def test_every_key_is_explained_in_one_line(title: str, key: str) -> None:
    """That fits the help at 80x24."""
    binding = KEYS[title, key]
    assert 0 < len(binding.tooltip or binding.description) <= 50


def test_no_key_means_two_things() -> None:
    """In one view."""
    sections = help_sections(None)
    for title, bindings in sections:
        keys = [key for each in bindings if isinstance(each, Binding) for key in each.key.split(",")]
        assert len(keys) == len(set(keys)), title


def test_the_pictures_are_there() -> None:
    """As the README and the page show them."""
    for page in (ROOT / "README.md", ROOT / "docs" / "tui.md"):
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+\.svg)\)", page.read_text())
        assert shown
        assert all((page.parent / path).is_file() for path in shown)
