"""Work on a large request that would keep the loop from all others: in one thread, one piece of work at a time.

One thread, since each that computes makes the loop wait for its turn, and other rooms need the usual ones for the disk.
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
    """The result of `work`, which touches nothing that the loop changes meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work, *args)
