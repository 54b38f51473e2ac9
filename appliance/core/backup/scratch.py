"""Runs git on a directory that no node owns: a scratch directory, or a state directory that is being restored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.core.git.command import Git, git_environment, write_git_configs
from appliance.core.layout import Layout
from appliance.core.process.children import Children, take_lock

_MAX_PUSH = 2**28
"""Goes into the config for serving, which is not used here; `serve` writes it again."""


@contextmanager
def git_below(layout: Layout) -> Iterator[Git]:
    """Returns a runner of git whose configs and records of children are below `layout.run`. Raises OSError."""
    layout.run.mkdir(parents=True, exist_ok=True)
    lock = take_lock(layout.children_lock, inheritable=True)
    try:
        write_git_configs(layout, max_push=_MAX_PUSH)
        yield Git(Children(layout.children, lock), git_environment(layout, layout.git_config, os.environ))
    finally:
        os.close(lock)
