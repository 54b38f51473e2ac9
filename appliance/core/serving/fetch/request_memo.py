"""Large requests that were read before: guests that do the same say the same."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from appliance.core.serving.net.reading import Charge
from appliance.core.serving.wire.v2 import V2Request

LARGE = 8192
"""Bytes past which a request is first looked up whole."""


@dataclass(frozen=True)
class Known:
    """A request that was read, what it takes of the budget, and its bytes without compression."""

    request: V2Request
    charge: Charge
    size: int


class RequestMemo:
    """Large requests that were read before, by their bytes.

    Every guest that checks a tip out asks for the same thousands of blobs, and reading that costs more than sending
    the answer (2,000 wants: 8 ms). What is remembered is bounded by MOST_REMEMBERED bytes of requests.
    """

    MOST_REMEMBERED = 8 * 2**20

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._bytes = 0

    def is_worth(self, raw: bytes | bytearray) -> bool:
        """Whether a request of so many bytes is looked up: a smaller one is read as fast, a larger one not kept."""
        return LARGE < len(raw) <= self.MOST_REMEMBERED // 2

    def find(self, raw: bytes | bytearray) -> Known | None:
        """The request of exactly these bytes, if it was read before."""
        key = hashlib.sha256(raw).digest()
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def remember(self, raw: bytes | bytearray, request: V2Request, charge: Charge, size: int | None = None) -> None:
        """Keeps a request for the next guest that sends the same; `size` is what it is without compression."""
        key, size = hashlib.sha256(raw).digest(), len(raw) if size is None else size
        if key in self._known or size > self.MOST_REMEMBERED // 2:
            return
        self._known[key] = Known(request, charge, size)
        self._bytes += size
        while self._bytes > self.MOST_REMEMBERED:
            self._bytes -= self._known.popitem(last=False)[1].size
