"""The pointers of git-lfs."""

from __future__ import annotations

import pytest

from appliance.core.lfs.pointers import Pointer, parse_pointer

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
TEXT = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n"


def test_a_pointer_names_its_object() -> None:
    """As in the specification, and without the last line break, which git-lfs reads too."""
    assert parse_pointer(TEXT.encode()) == Pointer(OID, 12345)
    assert parse_pointer(TEXT.rstrip().encode()) == Pointer(OID, 12345)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version https://git-lfs.github.com/spec/v1\n",
        TEXT + "x",
        TEXT.replace("sha256:4", "sha256:../"),
        TEXT.replace("12345", "-1"),
        TEXT.replace("v1\n", "v1\next-0-foo sha256:" + OID + "\n"),
        TEXT + " " * 1024,
    ],
)
def test_anything_else_is_a_file(text: str) -> None:
    """What an extension made of the object is not the object, so such a pointer stays a file, too."""
    assert parse_pointer(text.encode()) is None
