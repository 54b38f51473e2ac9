"""Whether a file still holds what was written: by its identity, by its digest, at once, slowly, and interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import platform
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance.core.process import checked_file as checked
from appliance.core.process.checked_file import CheckedFile, Identity, NotRight
from tests.support.in_place import change_in_place, touch_all_but_the_content


def written(path: Path, size: int = 3 * 2**20 + 17, *, known: bool = True) -> CheckedFile:
    """A file of random bytes, right after it was written."""
    data = os.urandom(size)
    path.write_bytes(data)
    return CheckedFile(path, Identity.of(path.stat()), hashlib.sha256(data).hexdigest() if known else None)


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


@pytest.mark.parametrize("harm", ["in place", "at its end", "replaced", "cut", "grown", "gone"])
def test_every_change_shows_without_a_reading(tmp_path: Path, harm: str) -> None:
    """Also one of the same size whose mtime was set back."""
    path = tmp_path / "file"
    file = written(path)
    assert file.is_untouched() and file.is_as_checked(path)
    if harm == "in place":
        change_in_place(path)
    elif harm == "at its end":
        change_in_place(path, at=0.999999)
    elif harm == "replaced":
        touch_all_but_the_content(path)
    elif harm == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (1 if harm == "grown" else -1))
    assert not file.is_untouched()


@pytest.mark.parametrize("slowly", [False, True])
def test_a_reading_tells_a_touch_from_a_change(tmp_path: Path, slowly: bool) -> None:
    """A copy with the same bytes is right, and trusted from then on. One with other bytes is not."""

    async def test() -> None:
        path = tmp_path / "file"
        file = written(path)
        touch_all_but_the_content(path)
        await (file.check_slowly(2**40) if slowly else file.check())
        assert file.is_untouched()
        change_in_place(path)
        with pytest.raises(NotRight, match="its bytes are not those that were written"):
            await (file.check_slowly(2**40) if slowly else file.check())
        assert not file.is_untouched()
        path.unlink()
        with pytest.raises(FileNotFoundError):
            await (file.check_slowly(2**40) if slowly else file.check())

    in_loop(test)


def test_a_disk_that_lies_is_found_by_the_digest_alone(tmp_path: Path) -> None:
    """Nothing touched the file, says the file system. The beginning of a digest is enough."""
    path = tmp_path / "file"
    whole = written(path)
    assert whole.digest
    change_in_place(path)
    lied = CheckedFile(path, Identity.of(path.stat()), whole.digest[:16])
    assert lied.is_untouched()
    with pytest.raises(NotRight):
        lied.verify()


def test_a_digest_is_taken_of_what_was_written_and_of_nothing_else(tmp_path: Path) -> None:
    """The first reading of an untouched file takes it. One that was touched before that is not right."""
    path = tmp_path / "file"
    file = written(path, known=False)
    file.verify()
    assert file.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    change_in_place(path)
    with pytest.raises(NotRight):
        file.verify()
    late = written(tmp_path / "late", known=False)
    change_in_place(late.path)
    with pytest.raises(NotRight, match="before its digest was taken"):
        late.verify()


def test_a_file_that_was_not_looked_at_is_touched(tmp_path: Path) -> None:
    """As one that an earlier process left: it is right once it was read."""
    path = tmp_path / "file"
    path.write_bytes(b"left")
    file = CheckedFile(path, None, hashlib.sha256(b"left").hexdigest())
    assert not file.is_untouched()
    file.verify()
    assert file.is_untouched()


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once is forgiven, as `chmod` does no harm. One that goes on changing is not right."""
    path, readings = tmp_path / "file", []
    file = written(path)
    original = checked._digest

    def touched(*args: object) -> str:
        readings.append(1)
        found = original(*args)  # type: ignore[arg-type]
        if len(readings) == 1 or endless:
            path.chmod(0o600 if path.stat().st_mode & 0o040 else 0o640)
        return found

    monkeypatch.setattr(checked, "_digest", touched)
    endless = False
    file.verify()
    assert len(readings) == 2 and file.is_untouched()
    endless = True
    with pytest.raises(NotRight, match="keeps changing"):
        file.verify()


def test_what_cannot_be_read_is_not_right(tmp_path: Path) -> None:
    """A bad sector is damage: here a directory, which opens and then fails to read. The words name no path."""
    file = CheckedFile(tmp_path / "file", None, "0" * 64)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(NotRight) as caught, open(os.devnull, "rb", buffering=0) as stand_in:
            os.dup2(descriptor, stand_in.fileno())
            checked._digest(stand_in, checked.Pace(None, threading.Event()))
    finally:
        os.close(descriptor)
    assert str(caught.value) == "its file cannot be read: Is a directory"
    with pytest.raises(FileNotFoundError):
        file.verify()


def test_all_who_wait_share_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty guests, of whom some leave: one reading, not by the loop's thread, and the others learn what it found."""
    readings: list[str] = []
    original = checked._digest

    def counted(*args: object) -> str:
        readings.append(threading.current_thread().name)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checked, "_digest", counted)

    async def test() -> None:
        path = tmp_path / "file"
        file = written(path)
        change_in_place(path)
        waiting = [asyncio.create_task(file.check()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in waiting[:10]:
            task.cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in found[10:]} == {NotRight}
        assert len(readings) == 1
        path.write_bytes(b"")
        with contextlib.suppress(NotRight):
            await file.check()
        assert len(readings) == 2
        with contextlib.suppress(NotRight):
            await file.check_slowly()
        assert [name.partition("_")[0] for name in readings] == ["check", "check", "scrub"]

    in_loop(test)


def test_a_slow_reading_keeps_to_its_rate_and_ends_at_once(tmp_path: Path) -> None:
    """4 MiB at 8 MiB a second take half a second at least; cancelled at 1 byte a second, it holds up nobody."""

    async def test() -> None:
        file = written(tmp_path / "file", 4 * 2**20)
        start = time.monotonic()
        await file.check_slowly(8 * 2**20)
        assert time.monotonic() - start >= 0.45
        for _ in range(2):
            task = asyncio.create_task(file.check_slowly(1.0))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        # It would wait for the one thread if that still read.
        await file.check_slowly(2**40)

    in_loop(test)


@pytest.mark.skipif(platform.machine() not in checked._IOPRIO_SET, reason="its system calls have other numbers")
def test_the_background_has_the_disk_when_nobody_else_wants_it() -> None:
    """The class that the kernel tells is the idle one, in that thread alone."""
    number = {"x86_64": 252, "aarch64": 31}[platform.machine()]

    def priority() -> int:
        return int(ctypes.CDLL(None).syscall(number, *checked._THIS_THREAD))

    assert checked._background.submit(priority).result() == checked._IDLE_CLASS
    assert priority() != checked._IDLE_CLASS
    assert checked._at_once.submit(priority).result() != checked._IDLE_CLASS
