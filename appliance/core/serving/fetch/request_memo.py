"""Remembers large requests that were read before, because guests that do the same thing send the same bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from appliance.core.serving.net.reading import Charge
from appliance.core.serving.wire.v2 import V2Request

LARGE = 8192
"""Bytes above which a request is looked up as a whole before it is parsed."""


@dataclass(frozen=True)
class Known:
    """A request that was read, its charge to the budget, and its size in bytes without compression."""

    request: V2Request
    charge: Charge
    size: int


class RequestMemo:
    """Large requests that were read before, by their bytes.

    Every guest that checks out a tip asks for the same thousands of blobs, and parsing that request costs more than
    sending the response (2,000 wants: 8 ms). At most MOST_REMEMBERED bytes of requests are kept.
    """

    MOST_REMEMBERED = 8 * 2**20

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._bytes = 0

    def is_worth(self, raw: bytes | bytearray) -> bool:
        """Whether to look up a request of this size: a smaller one is parsed as fast, a larger one is not stored."""
        return LARGE < len(raw) <= self.MOST_REMEMBERED // 2

    def find(self, raw: bytes | bytearray) -> Known | None:
        """The request with exactly these bytes, or None if it was not read before."""
        key = hashlib.sha256(raw).digest()
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def remember(self, raw: bytes | bytearray, request: V2Request, charge: Charge, size: int | None = None) -> None:
        """Stores a request for the next guest that sends the same bytes. `size` is its size without compression."""
        key, size = hashlib.sha256(raw).digest(), len(raw) if size is None else size
        if key in self._known or size > self.MOST_REMEMBERED // 2:
            return
        self._known[key] = Known(request, charge, size)
        self._bytes += size
        while self._bytes > self.MOST_REMEMBERED:
            self._bytes -= self._known.popitem(last=False)[1].size
