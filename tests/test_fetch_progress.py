"""What git's lines of progress say, and that nothing else is read as progress."""

from __future__ import annotations

import pytest

from appliance.core.events.fetch_progress import FetchProgress


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("remote: Enumerating objects: 1234, done.", "enumerating objects: 1,234"),
        ("remote: Counting objects:  42% (42/100)", "counting objects: 42% (42 of 100)"),
        (
            "Receiving objects:  45% (450123/1000000), 1.25 GiB | 12.00 MiB/s",
            "receiving objects: 45% (450,123 of 1,000,000), 1.2 GiB, 12.0 MiB/s",
        ),
        (
            "Receiving objects: 100% (3/3), 512 bytes | 512.00 KiB/s, done.",
            "receiving objects: 100% (3 of 3), 512 B, 512 KiB/s",
        ),
        ("Receiving objects: 999% (3/3), 9.9.9 KiB", "receiving objects: 100% (3 of 3), 0 B"),
    ],
)
def test_what_git_prints_is_read(line: str, words: str) -> None:
    progress = FetchProgress().after(line)
    assert progress.words() == words
    assert FetchProgress.of(progress.document()) == progress


def test_what_was_received_stays_known_while_deltas_are_resolved() -> None:
    received = FetchProgress().after("Receiving objects: 100% (9/9), 1.50 MiB | 1.00 MiB/s, done.")
    assert received.after("Resolving deltas:  50% (1/2)").words() == "resolving deltas: 50% (1 of 2), 1.5 MiB"


@pytest.mark.parametrize(
    "line", ["", "remote: Receiving money: 99% (1/1)", "remote: \x1b[31m", "Receiving objects: lots", "fatal: no"]
)
def test_other_words_of_an_upstream_say_nothing(line: str) -> None:
    progress = FetchProgress().after("Receiving objects:  45% (45/100)")
    assert progress.after(line) is progress
