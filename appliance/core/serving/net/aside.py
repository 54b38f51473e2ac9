"""Runs work on a large request that would block the event loop in a thread, one piece of work at a time.

There is one thread, because each computing thread makes the loop wait for the interpreter lock. It is not one of the
loop's default threads, because other packages need those for the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_thread = ThreadPoolExecutor(1, thread_name_prefix="aside")


async def aside(work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """The result of `work`, which must not touch anything that the event loop changes meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work, *args)
