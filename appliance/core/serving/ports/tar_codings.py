"""Chooses how a snapshot is sent: as it is, or gzipped (RFC 9110, sections 8.4 and 12.5.3)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.core.models import Tar
from appliance.core.serving.net.http import Exchange
from appliance.core.serving.net.road_speeds import MEANINGFUL, RoadSpeeds
from appliance.core.workspace.gzipped import GzippedTar, GzippedTars

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


@dataclass(frozen=True)
class Coded:
    """The file to send, its strong ETag, and the headers that go with it."""

    path: Path
    etag: str
    headers: Mapping[str, str]


class TarCodings:
    """Sends the gzipped copy of a tar to whoever prefers it, and on a slow road to whoever takes either.

    The kit takes either: it says `identity, gzip;q=0.5`. While a copy is being made, the tar itself is sent.
    """

    def __init__(self, gzipped: GzippedTars) -> None:
        self._gzipped = gzipped
        self._speeds = RoadSpeeds()

    def choose(self, exchange: Exchange, tar: Tar) -> Coded:
        """What to send in response to a request for `tar`. Awaits nothing, so the file is still there."""
        vary = {"vary": "Accept-Encoding"}
        if (copy := self._wanted(exchange, tar)) is not None:
            return Coded(copy.path, f"{tar.commit}-{copy.digest}", vary | {"content-encoding": "gzip"})
        return Coded(tar.path, tar.etag, vary)

    def watch(self, exchange: Exchange, count: int, start: float) -> None:
        """Learns from a response how fast the road is, once the guest has closed the connection."""

        def closed() -> None:
            self._speeds.note(exchange.seat.peer, count, time.monotonic() - start)

        exchange.seat.on_closed = closed

    def _wanted(self, exchange: Exchange, tar: Tar) -> GzippedTar | None:
        prefers = preference(exchange.headers.get("accept-encoding", ""))
        if prefers is None or (prefers < 1 and not self._is_worth_it(exchange, tar)):
            return None
        header = exchange.headers.get
        if f'"{tar.etag}"' in (header("if-none-match") or "") or f'"{tar.etag}"' == header("if-range"):
            # The client has the tar itself, or a part of it.
            return None
        copy = self._gzipped.get(tar.path)
        if copy is not None and "range" in exchange.headers and header("if-range") != f'"{tar.commit}-{copy.digest}"':
            # Whoever does not say which bytes it has a part of has those of the tar.
            return None
        return copy

    def _is_worth_it(self, exchange: Exchange, tar: Tar) -> bool:
        try:
            return tar.path.stat().st_size >= MEANINGFUL and self._speeds.is_slow(exchange.seat)
        except OSError:
            return False


def preference(accept_encoding: str) -> float | None:
    """How gzip is accepted: None if it is not, 1 if it is preferred, and less if the tar itself is preferred.

    `*` does not count, because who sends it may not know what it gets.
    """
    qualities = {}
    for part in accept_encoding.split(","):
        name, _, parameter = part.partition(";")
        match = _QUALITY.fullmatch(parameter.strip()) if parameter.strip() else None
        qualities[name.strip().lower()] = float(match[1]) if match else 0.0 if parameter.strip() else 1.0
    gzip = max(qualities.get("gzip", 0.0), qualities.get("x-gzip", 0.0))
    if not gzip:
        return None
    return 1.0 if gzip >= qualities.get("identity", 0.0) else gzip
