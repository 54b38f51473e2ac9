"""A child whose output is streamed: what ends it, what it may take, and what is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from appliance.core.git.command import Git, GitError
from appliance.core.process.children import Children, take_lock
from appliance.core.process.run import PIECE, ChildFailed, stream_child
from tests.support.gitutil import wait_until
from tests.support.processes import processes_of


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Where children are recorded."""
    lock = take_lock(tmp_path / "lock", inheritable=True)
    yield Children(tmp_path / "children", lock)
    os.close(lock)


def shell(
    children: Children, script: str, tmp_path: Path, *, deadline: float = 60.0, stdin: bytes = b""
) -> AsyncGenerator[bytes, None]:
    """Stream what a shell script prints."""
    return stream_child(
        children, ["sh", "-c", script], env=dict(os.environ), cwd=tmp_path, deadline=deadline, stderr=2, stdin=stdin
    )


async def whole(stream: AsyncGenerator[bytes, None]) -> bytes:
    """All of it."""
    async with aclosing(stream):
        return b"".join([piece async for piece in stream])


def test_what_is_printed_arrives_in_small_pieces(children: Children, tmp_path: Path) -> None:
    """Also what is far more than a pipe holds, and what answers an input of that size."""
    data = os.urandom(3 * 2**20)

    async def work() -> None:
        async with aclosing(shell(children, "cat", tmp_path, stdin=data)) as stream:
            pieces = [piece async for piece in stream]
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= PIECE
        assert len(children) == 0

    asyncio.run(work())


def test_a_failure_comes_after_the_output(children: Children, tmp_path: Path) -> None:
    """With its exit code, or the signal that ended it."""

    async def work() -> None:
        for script, code in (("echo out; exit 3", 3), ("echo out; kill -9 $$", -9)):
            stream = shell(children, script, tmp_path)
            assert await anext(stream) == b"out\n"
            with pytest.raises(ChildFailed) as raised:
                await anext(stream)
            assert raised.value.code == code
            assert len(children) == 0

    asyncio.run(work())


@pytest.mark.parametrize("script", ["echo out; sleep 600", "echo out; exec >&-; sleep 600"])
def test_a_child_that_takes_too_long_is_ended(children: Children, tmp_path: Path, script: str) -> None:
    """Whether it prints no more or does not end after its output; its own children go with it."""

    async def work() -> None:
        stream = shell(children, script, tmp_path, deadline=3.0)
        assert await anext(stream) == b"out\n"
        with pytest.raises(TimeoutError):
            await anext(stream)
        assert len(children) == 0

    began = time.monotonic()
    asyncio.run(work())
    assert time.monotonic() - began < 60
    wait_until(lambda: not processes_of(tmp_path / "lock"), message="a child is left")


def test_waits_add_up(children: Children, tmp_path: Path) -> None:
    """A child that prints a little now and then does not live forever."""

    async def work() -> None:
        with pytest.raises(TimeoutError):
            await whole(shell(children, "while sleep 0.1; do echo; done", tmp_path, deadline=0.7))
        assert len(children) == 0

    asyncio.run(work())


@pytest.mark.slow
def test_the_time_of_the_reader_does_not_count(children: Children, tmp_path: Path) -> None:
    """A guest on a slow line gets all of it."""
    deadline = 3.0

    async def work() -> None:
        total = 0
        async with aclosing(shell(children, "head -c 200000 /dev/zero", tmp_path, deadline=deadline)) as stream:
            async for piece in stream:
                total += len(piece)
                # The reader's pace is what this is about, so it has to take time.
                await asyncio.sleep(deadline / 2)
        assert total == 200_000

    began = time.monotonic()
    asyncio.run(work())
    assert time.monotonic() - began > deadline


def test_nobody_else_waits_for_a_fast_child(children: Children, tmp_path: Path) -> None:
    """A child that always has more and a reader that never waits leave the loop to the others."""

    async def work() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        pieces = 0
        async with aclosing(shell(children, "exec cat /dev/zero", tmp_path)) as stream:
            async for _ in stream:
                pieces += 1
                if pieces == 200:
                    break
        task.cancel()
        assert turns >= pieces
        assert len(children) == 0

    asyncio.run(work())


def test_a_program_that_is_not_there(children: Children, tmp_path: Path) -> None:
    """Nothing is left open."""
    before = len(os.listdir("/proc/self/fd"))

    async def work() -> None:
        with pytest.raises(FileNotFoundError):
            await whole(stream_child(children, ["/no/such"], env={}, cwd=tmp_path, deadline=1, stderr=2))

    asyncio.run(work())
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_given_back(children: Children, tmp_path: Path) -> None:
    """After a whole stream, one that was left, and one that failed."""

    async def work() -> None:
        await whole(shell(children, "echo", tmp_path))
        before = len(os.listdir("/proc/self/fd"))
        for script in ("echo", "exit 1", "exec cat /dev/zero"):
            stream = shell(children, script, tmp_path)
            with suppress(ChildFailed):
                await anext(stream)
            await stream.aclose()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(work())


def test_git_says_what_failed(children: Children, tmp_path: Path) -> None:
    """Its own words, once, also to whom listens for damage; options in front are no command."""
    heard: list[tuple[Path, str]] = []
    git = Git(children, dict(os.environ), hear=lambda path, text: heard.append((path, text)))

    async def work() -> None:
        with pytest.raises(GitError, match=r"^git cat-file failed: fatal: ") as raised:
            await whole(git.stream("-c", "a.b=c", "--no-pager", "cat-file", "-p", "x", cwd=tmp_path, deadline=60))
        assert not raised.value.timed_out
        assert heard == [(tmp_path, raised.value.stderr)]
        with pytest.raises(GitError, match=r"^git cat-file took longer than 0.2s and was ended$") as raised:
            await whole(
                Git(children, {**os.environ, "PATH": str(tmp_path)}).stream("cat-file", cwd=tmp_path, deadline=0.2)
            )
        assert raised.value.timed_out
        assert len(children) == 0

    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\n/bin/sleep 600\n")
    slow.chmod(0o755)
    asyncio.run(work())


def test_git_is_not_there(children: Children, tmp_path: Path) -> None:
    """That is said as for commands that are not streamed."""

    async def work() -> None:
        with pytest.raises(GitError, match="git cannot be started"):
            await whole(Git(children, {"PATH": str(tmp_path)}).stream("version", cwd=tmp_path, deadline=60))

    asyncio.run(work())
