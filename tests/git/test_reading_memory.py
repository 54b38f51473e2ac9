"""git that reads a mirror for somebody has little memory, whatever agents pushed."""

from __future__ import annotations

import resource
from collections.abc import Coroutine
from typing import Any

import pytest

from appliance.core.errors import TooLarge
from appliance.core.git.diff_document import diff_document, diff_text
from appliance.core.git.mirror import Mirror
from appliance.core.git.reading import FileAtRef, open_file
from appliance.core.git.session_bundle import bundle
from appliance.core.process import children
from tests.git.lab import Lab
from tests.git.reads import whole
from tests.support.generate import add_commit, create_repository

LIMIT = 32 * 2**20
SIZE = 2 * LIMIT


@pytest.mark.slow
def test_a_diff_of_a_file_that_is_too_large_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do instead. A file and a bundle are streamed, so they need no more for a large one."""
    mirror = lab.mirror()
    create_repository(mirror.path)
    # The objects of so many zeros take next to nothing on the disk, and took as little to push.
    add_commit(mirror.path, "main", {"large": bytes(SIZE)})

    async def refused(diff: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(TooLarge) as caught:
            # The first that is heard of it: no half a patch comes before.
            made = await diff
            await anext(made)
        assert caught.value.message.startswith("git diff needs more than ") and caught.value.hint

    async def read() -> None:
        found = await open_file(mirror, "main", "large")
        assert isinstance(found, FileAtRef)
        assert len(await whole(found.chunks)) == SIZE
        assert len(await whole(await bundle(mirror, "main", "refs/agents/x", ()))) < SIZE / 10
        await refused(diff_text(mirror, None, "main"))
        await refused(diff_document(mirror, None, "main"))

    assert len(lab.run(_text(mirror))) > SIZE / 2000
    monkeypatch.setattr(children, "MOST_DATA_OF_A_READER", LIMIT)
    lab.run(read())
    # This process keeps what it had.
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


async def _text(mirror: Mirror) -> bytes:
    return await whole(await diff_text(mirror, None, "main"))
