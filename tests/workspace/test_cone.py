"""The cone of a part of a tree: which paths it has, and how git writes it down."""

from __future__ import annotations

import pytest

from appliance.core.workspace.cone import in_cone, outermost, patterns


@pytest.mark.parametrize(
    ("path", "only", "there"),
    [
        ("README", ("a/b",), True),
        ("a/file", ("a/b",), True),
        ("a/b/file", ("a/b",), True),
        ("a/b/c/d/file", ("a/b",), True),
        ("a/bc/file", ("a/b",), False),
        ("a/other/file", ("a/b",), False),
        ("b/file", ("a/b",), False),
        ("libs/x", ("libs/x",), True),
        ("libs/x", ("libs/y",), True),
        ("libs/x", ("other",), False),
        ("any/thing", (), True),
    ],
)
def test_a_path_is_in_a_cone(path: str, only: tuple[str, ...], there: bool) -> None:
    """Files at the top, those beside the way to a directory, and everything in it."""
    assert in_cone(path, only) is there


def test_directories_in_others_are_not_named() -> None:
    """And duplicates are one."""
    assert outermost(["b", "a/b", "a/b/c", "ab", "b", "b/x/y"]) == ("a/b", "ab", "b")


def test_patterns_are_what_git_writes() -> None:
    """Parents before directories, each sorted by its bytes, with git's escapes."""
    assert patterns(("a/b", "a/c*", "z\udcff")) == (b"/*\n!/*/\n/a/\n!/a/*/\n/a/b/\n/a/c\\*/\n/z\xff/\n")
