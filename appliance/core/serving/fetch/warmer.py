"""Makes the responses that guests will ask for before they do: after a refresh, at low priority."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.models import Health, Repo
from appliance.core.serving.fetch.cached_response import AnswerFailed
from appliance.core.serving.fetch.engine import Engine, ShapeAsked
from appliance.core.serving.fetch.response_cache import ResponseCache
from appliance.core.serving.fetch.upload_pack import UploadPackError
from appliance.core.serving.net.aside import aside
from appliance.core.serving.wire.v2 import FetchShape, in_order

log = logging.getLogger(__name__)

REMEMBER = 3600.0
"""Seconds for which a shape is warmed for new tips after a guest last asked for it."""
MOST_SHAPES = 16
LARGEST_PART = 20
"""A response with history that takes more than the budget divided by this is not warmed: it would drive out others."""

_USUAL = (b"include-tag", b"ofs-delta")
KIT_SHAPES = (
    tuple(sorted((*_USUAL, b"deepen 1"))),
    tuple(sorted((*_USUAL, b"deepen 1", b"filter blob:none"))),
    tuple(sorted((*_USUAL, b"filter blob:none"))),
    tuple(sorted(_USUAL)),
)
"""The shapes in which workspaces are cloned when there is no snapshot: depth 1, with and without blobs, then one branch
with its history, without blobs and with all of them."""
CHECKOUT = (b"filter blob:none", b"ofs-delta")
"""The shape in which git asks for the blobs that a checkout of a `blob:none` clone lacks: all in one request."""


@dataclass
class _Known:
    """The state of one repository: the shapes that guests asked for, with the last time, and the running warming."""

    shapes: dict[tuple[bytes, ...], float] = field(default_factory=dict)
    too_large: dict[tuple[bytes, ...], float] = field(default_factory=dict)
    """Shapes whose response was too large to be warmed, with the time when that was found."""
    task: asyncio.Task[None] | None = None
    tip: str = ""
    done: int = 0
    wanted: int = 0


class Warmer:
    """Warms the tip of the followed branch, which `health` gives for a repository id."""

    def __init__(
        self,
        engine: Engine,
        cache: ResponseCache,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._mirror_of = mirror_of
        self._health = health
        self._known: dict[int, _Known] = {}
        self._one_at_a_time = asyncio.Semaphore(1)

    def saw(self, event: ShapeAsked) -> None:
        """Notes a shape in which a guest fetched the tip, so that the next tip is warmed in it too."""
        repo, shape = event.repo, event.shape
        tip = (self._health(repo.id).tip or "").encode()
        known = self._known.setdefault(repo.id, _Known())
        now = time.monotonic()
        if shape.wants == (tip,) and not shape.shallow:
            known.shapes.pop(shape.rest, None)
            known.shapes[shape.rest] = now
            if len(known.shapes) > MOST_SHAPES:
                del known.shapes[next(iter(known.shapes))]

    def warm(self, repo: Repo) -> None:
        """Warms the current tip, after it moved or when `serve` starts. Cancels the warming of an earlier tip."""
        known = self._known.setdefault(repo.id, _Known())
        if known.task is not None:
            known.task.cancel()
        self._cache.unpin(repo.id)
        known.task = asyncio.create_task(self._run(repo, known), name=f"warm {repo.name}")

    def forget(self, repo_id: int) -> None:
        """Cancels the warming of a repository that is no longer served, and drops its state."""
        known = self._known.pop(repo_id, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    async def stop(self) -> None:
        """Cancels all warming."""
        tasks = [known.task for known in self._known.values() if known.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def state(self, repo_id: int) -> dict[str, object]:
        """For `status`: the tip that is warmed, how many responses are ready, and how many are wanted."""
        known = self._known.get(repo_id, _Known())
        return {"tip": known.tip or None, "answers": known.done, "wanted": known.wanted}

    async def _run(self, repo: Repo, known: _Known) -> None:
        async with self._one_at_a_time:
            try:
                tip = self._health(repo.id).tip
                known.tip, known.done, known.wanted = tip or "", 0, 0
                if tip is None:
                    return
                shapes = await self._shapes(repo, known, tip)
                known.wanted = len(shapes)
                for shape in shapes:
                    known.done += await self._warm_one(repo, known, shape)
                    known.wanted -= shape.rest in known.too_large
            except (GitmirrorError, AnswerFailed, UploadPackError, OSError) as error:
                log.info("%s: warming stopped: %s", repo.name, str(error) or type(error).__name__)

    async def _shapes(self, repo: Repo, known: _Known, tip: str) -> list[FetchShape]:
        now = time.monotonic()
        recent = [rest for rest, at in known.shapes.items() if now - at < REMEMBER]
        wants = (tip.encode(),)
        object_format = b"sha256" if len(tip) == 64 else b"sha1"
        shapes = [FetchShape(wants, (), rest, object_format) for rest in dict.fromkeys([*KIT_SHAPES, *recent])]
        shapes = [shape for shape in shapes if now - known.too_large.get(shape.rest, -REMEMBER) >= REMEMBER]
        # In a thread, because a tree may have a hundred thousand files.
        return shapes + await aside(_checkouts, await self._mirror_of(repo.name).blobs(tip), wants, object_format)

    async def _warm_one(self, repo: Repo, known: _Known, shape: FetchShape) -> bool:
        """Returns whether the response is ready; a full disk prevents it, and so does its size.

        Raises UploadPackError, AnswerFailed.
        """
        response = await self._engine.open_answer(repo, shape, warming=True)
        if response is None:
            return False
        try:
            size = 0
            while (grown := await response.ready_beyond(size)) > size:
                size = grown
                if _has_history(shape) and size > self._cache.budget // LARGEST_PART:
                    known.too_large[shape.rest] = time.monotonic()
                    log.info("%s: a response is not warmed, because it has over %d bytes", repo.name, size)
                    self._cache.leave_out(response)
                    return False
        except asyncio.CancelledError:
            self._cache.give_up(response)
            raise
        except AnswerFailed:
            response.close()
            raise
        response.close()
        return True


def _checkouts(blobs: Collection[bytes], tip: tuple[bytes], object_format: bytes) -> list[FetchShape]:
    """The checkout of a clone of depth 1, and that of a clone with history, as the engine needs them."""
    wants = in_order(set(blobs))
    shapes = [FetchShape(wants, shallow, CHECKOUT, object_format) for shallow in (tip, ()) if wants]
    for shape in shapes:
        shape.prepare()
    return shapes


def _has_history(shape: FetchShape) -> bool:
    """Whether a response grows with the history, and not with the tip alone."""
    return not shape.shallow and b"deepen 1" not in shape.rest
