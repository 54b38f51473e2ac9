"""Durations, sizes, addresses and times as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+)(B|KiB|MiB|GiB|TiB)")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_duration(text: str) -> float:
    """Parses `30s`, `5m`, `2h`, `7d` or `250ms` into seconds. Raises ValueError that says what is allowed."""
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a duration such as "30s", "5m", "2h" or "7d"')
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """Formats seconds with at most two units: `850ms`, `12s`, `3m 20s`, `5h 2m`, `3d 4h`."""
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f}ms"
    whole = round(seconds)
    for name, size, smaller, smaller_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{name} {rest}{smaller}" if rest else f"{whole // size}{name}"
    return f"{whole}s"


def parse_size(text: str) -> int:
    """Parses `512B`, `256KiB`, `256MiB` or `10GiB` into bytes. Raises ValueError that says what is allowed."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a size such as "256KiB", "256MiB" or "10GiB"')
    return int(match[1]) * _BYTES[match[2]]


def counted(number: int, word: str, plural: str) -> str:
    """Formats a number with what it counts: `1 repository`, `1,024 repositories`."""
    return f"{number:,} {word if number == 1 else plural}"


def format_size(size: int) -> str:
    """Formats bytes in binary units, with one decimal below 100: `512 B`, `1.4 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


@dataclass(frozen=True)
class Address:
    """A TCP address to listen on. Port 0 means any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address | None:
    """Parses `HOST:PORT` or `[V6]:PORT`; returns None, a listener that is off, for the empty string.

    Raises ValueError that says what is allowed.
    """
    if text == "":
        return None
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError('an address such as "127.0.0.1:9418" or "[::1]:9418", or "" to turn it off')
    return Address(host, int(port))


def parse_moment(text: str, now: float) -> str:
    """Parses `2h` (before `now`, in Unix seconds), `2026-01-31` or `2026-01-31T12:00:00+01:00` into RFC 3339 in UTC.

    A time without an offset is in UTC. Raises ValueError that says what is allowed.
    """
    try:
        return rfc3339(now - parse_duration(text))
    except (ValueError, OverflowError, OSError):
        pass
    try:
        moment = datetime.fromisoformat(text)
        return rfc3339((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError, OSError):
        raise ValueError("a duration such as 2h or a time such as 2026-01-31T12:00:00Z") from None


def rfc3339(timestamp: float) -> str:
    """Formats Unix seconds as RFC 3339 in UTC with milliseconds: `2026-01-31T12:00:00.123Z`.

    As texts, times have the order that they have: the year has four digits.
    """
    return datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
