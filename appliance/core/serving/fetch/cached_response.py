"""What a guest has of a response: one that is complete, or one that is being written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class CacheResult(StrEnum):
    """How a guest got its response."""

    HIT = "hit"
    JOINED = "joined"
    MISS = "miss"
    DIRECT = "direct"


class AnswerFailed(Exception):
    """The response is not complete. The part that was sent ends with git's own error message, if it wrote one."""


@dataclass
class GrowingResponse:
    """A response that is being written. `size` is the bytes so far; `done` and `failed` say whether and how it ended.

    `wanted` is false once no guest will ask for it again. It is then finished for its `readers`, and not kept.
    """

    key: str
    repo: int
    pinned: bool
    descriptor: int
    on_left: Callable[[GrowingResponse], None]
    """Called when a reader has left."""
    wanted: bool = True
    size: int = 0
    done: bool = False
    failed: bool = False
    readers: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[bool] | None = None
    watch: asyncio.Task[None] | None = None
    """Sees the file grow, once upload-pack has begun."""


@dataclass
class CachedResponse:
    """One guest's view of a response: an open file. `ready_beyond` says how much of it may be sent."""

    way: CacheResult
    _descriptor: int
    _size: int | None
    growing: GrowingResponse | None
    key: str

    @property
    def size(self) -> int | None:
        """The total bytes, or None while it is being written."""
        return self._size

    def whole_size(self) -> int | None:
        """The total bytes as far as they are known now, also of one whose writing has ended meanwhile."""
        growing = self.growing
        return growing.size if growing is not None and growing.done and not growing.failed else self._size

    async def ready_beyond(self, offset: int) -> int:
        """Waits for bytes past `offset`, or the end; returns the bytes so far. Raises AnswerFailed at a failed end."""
        if self.growing is None:
            assert self._size is not None
            return self._size
        while self.growing.size <= offset and not self.growing.done:
            await self.growing.grown.wait()
        if self.growing.size <= offset and self.growing.failed:
            raise AnswerFailed
        return self.growing.size

    def file(self) -> int:
        """The descriptor to send from."""
        return self._descriptor

    def close(self) -> None:
        """Ends this guest's use. One that is being written goes on, as far as `MOST_UNREAD` and the disk allow it.

        One that still waits for its turn is given up if nobody else waits for it.
        """
        os.close(self._descriptor)
        if self.growing is not None:
            self.growing.readers -= 1
            self.growing.on_left(self.growing)
