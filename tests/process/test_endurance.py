"""Which errors a background loop survives, and which must end it."""

from __future__ import annotations

import logging

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.process.endurance import Endurance


def test_each_cause_is_logged_once_until_it_is_well(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that looks every two seconds must not fill the log."""
    endurance = Endurance(logging.getLogger("test"), "maintenance")

    def fail(item: str, error: Exception | None) -> None:
        with endurance.over(item):
            if error:
                raise error

    for _ in range(3):
        fail("a/b", PermissionError(13, "Permission denied", "/x"))
        fail("a/c", GitmirrorError("broken"))
    fail("a/b", OSError(28, "No space left on device"))
    fail("a/c", None)
    fail("a/c", GitmirrorError("broken"))
    assert [record.getMessage() for record in caplog.records] == [
        "a/b: maintenance failed: [Errno 13] Permission denied: '/x'",
        "a/c: maintenance failed: broken",
        "a/b: maintenance failed: [Errno 28] No space left on device",
        "a/c: maintenance failed: broken",
    ]


def test_a_bug_is_not_outlived() -> None:
    """It ends serve, which says so."""
    with pytest.raises(ZeroDivisionError), Endurance(logging.getLogger("test"), "x").over("y"):
        raise ZeroDivisionError
