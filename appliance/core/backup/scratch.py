"""Runs git on a directory that no node owns: a scratch directory, or a state directory that is being restored."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from appliance.core.git.command import Git, git_environment, write_git_configs
from appliance.core.layout import Layout
from appliance.core.process.children import Children, take_lock

_MAX_PUSH = 2**28
"""A value for the config for serving, which is not used here; `serve` writes that config again."""
_WITHOUT_SYNC = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsync", "GIT_CONFIG_VALUE_0": "none"}
"""Nothing counts before all of it is in place, so one sync at the end is enough: 10,000 syncs would take minutes."""

Item = TypeVar("Item")


@contextmanager
def git_below(layout: Layout) -> Iterator[Git]:
    """Returns a runner of git whose configs and records of children are below `layout.run`. Raises OSError.

    Files that git writes are not synced.
    """
    layout.run.mkdir(parents=True, exist_ok=True)
    lock = take_lock(layout.children_lock, inheritable=True)
    try:
        write_git_configs(layout, max_push=_MAX_PUSH)
        environment = git_environment(layout, layout.git_config, os.environ) | _WITHOUT_SYNC
        yield Git(Children(layout.children, lock), environment)
    finally:
        os.close(lock)


async def side_by_side(items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Runs `work` for each item, one per processor at a time. The first error cancels the rest and is raised."""
    waiting = iter(items)

    async def take() -> None:
        for item in waiting:
            await work(item)

    workers = [asyncio.ensure_future(take()) for _ in range(os.cpu_count() or 1)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
