"""docs/when-it-goes-wrong.md: the words that it quotes are those of the program."""

from __future__ import annotations

import re

from tests.support.serve import ROOT

PAGE = (ROOT / "docs" / "when-it-goes-wrong.md").read_text()
BLOCKS = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if not kind]
CELLS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
WORDS = [*(line for block in BLOCKS for line in block.splitlines()), *CELLS]


def sources() -> str:
    """The whole program, with strings that are written in several parts joined."""
    files = sorted([*(ROOT / "appliance").rglob("*.py"), *(ROOT / "appliance").rglob("*.sh")])
    text = "\n".join(path.read_text() for path in files)
    text = re.sub(r"\\\n\s*", "", text)
    return re.sub(r"(?<=[^\s\"])( ?)[\"']\s*\n\s*f?[\"']", r"\1", text)


def test_quoted_words_are_in_the_code() -> None:
    """But for what differs, which is a value there and … here."""
    text = sources()
    pieces = [piece.strip(" :,;") for words in WORDS for piece in words.split("…")]
    # The kit puts its name before each message.
    said = [piece.removeprefix("gitmirror: ") for piece in pieces if len(piece) > 2]
    assert [words for words in said if words not in text] == []
    assert len(said) >= 40


def test_symptoms_that_the_table_names_have_a_section() -> None:
    """And each section is in the table."""
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, re.M)}
    listed = re.findall(r"\]\(#([\w-]+)\)", PAGE.partition("\n## ")[0])
    assert set(listed) == titles
