"""What the tests of reading a mirror share: whole streams, odd objects, and how many git processes run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tests.git.lab import Lab
from tests.support.gitutil import git_bytes


async def whole(stream: AsyncGenerator[bytes, None]) -> bytes:
    """Return all that a stream yields."""
    async with aclosing(stream):
        return b"".join([piece async for piece in stream])


async def left_early(stream: AsyncGenerator[bytes, None]) -> bytes:
    """Take one piece, as a reader that leaves then."""
    async with aclosing(stream):
        return await anext(stream)


def stored(repository: Path, kind: str, content: bytes) -> str:
    """Store an object as it is, also one that git itself would not make, and return its id."""
    code, stdout, stderr = git_bytes(
        "hash-object", "-w", "--literally", "-t", kind, "--stdin", cwd=repository, input=content
    )
    assert code == 0, stderr
    return stdout.decode().strip()


def plain(repository: Path, *args: str) -> bytes:
    """Return what git prints, unchanged."""
    code, stdout, stderr = git_bytes(*args, cwd=repository)
    assert code == 0, stderr
    return stdout


def counting(lab: Lab, work: Callable[[], Coroutine[Any, Any, Any]]) -> int:
    """Return how many processes a piece of work starts."""
    children, started = lab.git.children, 0
    start = children.start

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal started
        started += 1
        return start(*args, **kwargs)

    children.start = count  # type: ignore[method-assign]
    try:
        lab.run(work())
    finally:
        children.start = start  # type: ignore[method-assign]
    return started
