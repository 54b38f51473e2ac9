"""The arguments of commands on the control socket: wrong ones are errors with words, and reach no handler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from appliance.core.daemon.control_arguments import taking
from appliance.core.errors import UsageError
from appliance.core.process.control import Tell


async def handler(arguments: Mapping[str, Any], tell: Tell) -> Any:
    return dict(arguments)


CHECKED = taking(handler, name="text", branch="text?", names="texts?", interval="seconds?", purge="switch?")


def ask(arguments: Mapping[str, Any]) -> Any:
    """What the handler got."""
    return asyncio.run(CHECKED(arguments, print))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "a/b"},
        {"name": "ö", "branch": None, "names": None, "interval": None, "purge": None, "of a newer version": {}},
        {"name": "", "branch": "b", "names": [], "interval": 1, "purge": False},
        {"name": "a", "names": ["b", "c"], "interval": 0.5},
    ],
)
def test_what_commands_send_reaches_the_handler(arguments: dict[str, Any]) -> None:
    assert ask(arguments) == arguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"name": 7},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"branch": []},
        {"names": "abc"},
        {"names": [7]},
        {"names": {"a": 1}},
        {"interval": "1"},
        {"interval": True},
        {"interval": float("nan")},
        {"interval": float("inf")},
        {"interval": -1},
        {"interval": 10**400},
        {"purge": "yes"},
    ],
    ids=repr,
)
def test_what_is_wrong_is_named(wrong: dict[str, Any]) -> None:
    """Names that SQLite cannot store or files cannot have, and numbers that no timer takes, were bugs of `serve`."""
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} is ") as caught:
        ask({"name": "a/b"} | wrong)
    assert caught.value.message.isprintable() and "must be" in caught.value.hint
