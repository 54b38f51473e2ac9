"""Checks the arguments of commands on the control socket, so that a wrong one is an error and no bug of `serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.core.daemon.control_server import Handler
from appliance.core.errors import UsageError
from appliance.core.process.control import Tell

MOST_SECONDS = 10**9
"""Above all intervals; an infinite one, or one that is not a number, fits in no timer."""


def _is_text(value: object) -> bool:
    """Also whether SQLite, git and the file system can take it: JSON can hold NULs and half a surrogate pair."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST_SECONDS


_KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "text": (_is_text, "text that a file name can hold"),
    "texts": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of such text"),
    "switch": (lambda value: isinstance(value, bool), "true or false"),
    "seconds": (_is_seconds, "a positive number"),
}


def taking(handler: Handler, **kinds: str) -> Handler:
    """`handler`, which is only called if its arguments are of these kinds; otherwise UsageError is raised.

    An argument whose kind ends in `?` may be missing or null. Unknown arguments are let through, because a newer
    command may send more of them.
    """

    async def checked(arguments: Mapping[str, Any], tell: Tell) -> Any:
        for name, kind in kinds.items():
            value, (is_valid, wanted) = arguments.get(name), _KINDS[kind.removesuffix("?")]
            if not (is_valid(value) or (value is None and kind.endswith("?"))):
                raise UsageError(f"{name} is {ascii(value)[:100]}", hint=f"it must be {wanted}")
        return await handler(arguments, tell)

    return checked
