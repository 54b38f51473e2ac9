"""Diffs as JSON while clients take them: on disk, and nothing of them is left."""

from __future__ import annotations

import asyncio
import io
import json
import tracemalloc
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.core.api.session_routes import DOCUMENTS, LINES, SessionRoutes
from appliance.core.api.spool import BATCH, spool, spooled
from appliance.core.errors import GitmirrorError
from appliance.core.git.diff_document import diff_document
from appliance.core.git.mirror import Mirror
from appliance.core.recording.comparison import Comparison, Side
from tests.git.conftest import lab
from tests.git.lab import Lab
from tests.support.gitutil import commit_files, git

__all__ = ["lab"]

LINE = "\x01" * 400 + "\n"
COUNT = LINES * 2 + 1
MUCH = 6 * len(LINE) * COUNT * 0.99
"""Bytes of the JSON of one of these diffs, or a little less."""


def test_diffs_that_are_being_taken_are_not_in_memory(lab: Lab, tmp_path: Path) -> None:
    """More at once than may be made at once. A control character takes six bytes of JSON."""
    git("init", "-q", "work", cwd=tmp_path)
    work = tmp_path / "work"
    commit_files(work, {"a.txt": LINE * COUNT, "b": "", "c": "x\n"}, "Lines")
    new = git("rev-parse", "HEAD", cwd=work).strip()
    mirror = Mirror(work / ".git", lab.git)
    nobody: Any = None
    node: Any = SimpleNamespace(scratch=lambda: tmp_path)
    routes = SessionRoutes(node, nobody)
    compared = Comparison("acme/widgets", Side("s", None, None), Side("s", 1, None), (None, new))

    async def test() -> None:
        tracemalloc.start()
        try:
            taken = [routes._diff_document(mirror, "acme/widgets", compared) for _ in range(DOCUMENTS * 2)]
            pieces = [[await anext(each)] for each in taken]
            # A thread lets go of what it wrote a moment after it has said that it is done.
            for _ in range(1000):
                held, most = tracemalloc.get_traced_memory()
                if held < MUCH / 4:
                    break
                await asyncio.sleep(0.01)
        finally:
            tracemalloc.stop()
        for got, each in zip(pieces, taken, strict=True):
            got += [piece async for piece in each]
        documents = [json.loads(b"".join(got)) for got in pieces]
        size = len(b"".join(pieces[0]))
        assert size > MUCH
        assert held < size / 4, (held, most, size)
        expected = await diff_document(mirror, None, new)
        for document in documents:
            assert {key: document[key] for key in expected} == expected
            assert (document["repo"], document["new"]) == ("acme/widgets", new)

    lab.run(test())
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("work", "lab")] == []


def test_a_body_comes_back_as_it_was_written(tmp_path: Path) -> None:
    async def test() -> None:
        pieces = [b"", b"a" * (BATCH - 1), b"bc", b"d" * BATCH, b"e"]
        with await spool(_each(pieces), tmp_path) as file:
            assert not list(tmp_path.iterdir())
            assert b"".join([piece async for piece in spooled(file)]) == b"".join(pieces)

    asyncio.run(test())


async def _each(pieces: list[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("place", ["missing", "/dev/full"])
def test_a_disk_that_takes_nothing_is_told(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do. No file stays open."""
    if place == "/dev/full":
        monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: io.FileIO(place, "r+"))
    with pytest.raises(GitmirrorError) as caught:
        asyncio.run(spool(_each([b"x" * BATCH, b"y"]), tmp_path / "missing"))
    assert str(tmp_path / "missing") in caught.value.message and "free space" in caught.value.hint
