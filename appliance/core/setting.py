"""A field of the configuration: its default as the file writes it, how it is read, its line of help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any


def setting(default: Any, parse: Callable[[Any], Any], text: str) -> Any:
    """A field of a section. `default` is written as in the file, `text` is its line of help."""
    return field(default=parse(default), metadata={"parse": parse, "default": default, "help": text})


def text(value: Any) -> str:
    """A text. ValueError says so."""
    if not isinstance(value, str):
        raise ValueError("a text in quotes")
    return value
