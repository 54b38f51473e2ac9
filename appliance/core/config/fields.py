"""Declares a setting of the configuration: its default as the file writes it, its parser, its line of help."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import field
from typing import Any


def setting(default: Any, parse: Callable[[Any], Any], text: str) -> Any:
    """Declares a field of a section. `default` is written as in the file, `text` is the line of help."""
    return field(default=parse(default), metadata={"parse": parse, "default": default, "help": text})


def text(value: Any) -> str:
    """Parses a string. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("a string in quotes")
    return value


def words(value: Any) -> tuple[str, ...]:
    """Parses a command line: a list of arguments, or one string that is split as a shell would. No shell runs it."""
    wanted = 'a list of arguments such as ["/usr/local/bin/page", "--now"], or the same as one string'
    try:
        found = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(wanted) from None
    if not isinstance(found, list) or not all(isinstance(word, str) and "\0" not in word for word in found):
        raise ValueError(wanted)
    if found and not found[0]:
        raise ValueError(wanted)
    return tuple(found)


def history(value: Any) -> str:
    """Parses how much history a disk has. Raises ValueError."""
    if value not in ("full", "tip"):
        raise ValueError('"full" or "tip"')
    return str(value)


def workspace_history(value: Any) -> str:
    """Parses how much history a snapshot has. Raises ValueError."""
    if value not in ("auto", "full", "trees", "tip"):
        raise ValueError('"auto", "full", "trees" or "tip"')
    return str(value)


def group(value: Any) -> str:
    """Parses the name of a group, or the empty string. Raises ValueError."""
    name = text(value)
    if name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ValueError('the name of a group such as "vmm", or "" for the service\'s own')
    return name
