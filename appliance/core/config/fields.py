"""Declares a setting of the configuration: its default as the file writes it, its parser, its line of help."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import field
from typing import Any
from urllib.parse import urlsplit

from appliance.core.units import parse_duration, parse_size

ANYONE, GUESTS = "anyone", "guests"
"""Who may push sessions: every guest, or known guests alone."""
POINTERS, CONTENT = "pointers", "content"
"""What a workspace has in the place of LFS files."""


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


def writers(value: Any) -> str:
    """Parses who may push sessions. Raises ValueError."""
    if value not in (ANYONE, GUESTS):
        raise ValueError(f'"{ANYONE}" or "{GUESTS}"')
    return str(value)


def lfs(value: Any) -> str:
    """Parses what a workspace has in the place of LFS files. Raises ValueError."""
    if value not in (POINTERS, CONTENT):
        raise ValueError(f'"{POINTERS}" or "{CONTENT}"')
    return str(value)


def parse_budget(value: Any) -> int | None:
    """Parses a size in bytes, or the empty string for none. Raises ValueError."""
    return None if value == "" else parse_size(value)


def directories(value: Any) -> tuple[str, ...]:
    """Parses a list of absolute paths. Raises ValueError."""
    if not isinstance(value, list) or not all(isinstance(path, str) and path.startswith("/") for path in value):
        raise ValueError('a list of absolute paths such as ["/run/fc"]')
    return tuple(value)


def parse_flag(value: Any) -> bool:
    """Parses true or false. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def parse_count(value: Any) -> int:
    """Parses a whole number of at least 1. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def parse_interval(value: Any) -> float:
    """Parses a duration of at least a second, in seconds. Raises ValueError."""
    seconds = parse_duration(value)
    if seconds < 1:
        raise ValueError("a duration of at least 1s")
    return seconds


def parse_positive(value: Any) -> float:
    """Parses a duration above zero, in seconds. Raises ValueError."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("a duration above 0s")
    return seconds


def public_url(*schemes: str) -> Callable[[Any], str]:
    """Returns a parser for a URL with one of these schemes, or the empty string."""

    def parse(value: Any) -> str:
        given = text(value)
        try:
            parts = urlsplit(given)
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if given and not usable:
            raise ValueError(f'a URL such as "{schemes[0]}://mirror:9418", or "" for the address it listens on')
        return given

    return parse


def parse_url(value: Any) -> str:
    """Parses a URL that documents are posted to, or the empty string."""
    given = text(value)
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in given
    except ValueError:
        usable = False
    if given and not usable:
        raise ValueError('a URL such as "http://127.0.0.1:9000/alerts", without user and password, or "" for none')
    return given


def parse_directory(value: Any) -> str:
    """Parses an absolute path, or the empty string."""
    given = text(value)
    if given and not given.startswith("/"):
        raise ValueError('an absolute path such as "/mnt/backup/node1", or "" for none')
    return given
