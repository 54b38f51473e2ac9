"""Waits for a library that may swallow a cancellation.

`asyncio.wait_for` returns a result that came together with a cancellation (until Python 3.12), and nats-py takes a
cancellation for the end of a connection that ended at the same time. A task that goes on after that is never told
again: a task group cancels its tasks once, and then waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


async def cancellable(work: Awaitable[Result]) -> Result:
    """The result of `work`; raises CancelledError if this task was cancelled meanwhile, whatever came of `work`.

    Not for what runs while a cancellation is handled, such as in a `finally`.
    """
    try:
        return await work
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
