"""Fetches what agents attached on other nodes, when somebody asks for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from appliance.core.errors import GitmirrorError, TooLarge
from appliance.core.fleet.downloads import fetch_object
from appliance.core.fleet.link import FleetLink
from appliance.core.layout import Layout
from appliance.core.recording.attachments import LARGEST
from appliance.core.store.away_turns import AwayTurnStore
from appliance.core.store.turn_details import AttachmentRow
from appliance.core.units import format_size


class AttachedFiles:
    """Puts attachments of other nodes' turns below `layout`, where those of this node are."""

    def __init__(self, link: FleetLink, layout: Layout, away: AwayTurnStore) -> None:
        self._link = link
        self._layout = layout
        self._away = away
        self._one_at_a_time = asyncio.Lock()

    async def bring(self, row: AttachmentRow) -> None:
        """Has the file of an attachment here, with the bytes that its turn names. Raises GitmirrorError.

        A file that is here already, and one of a turn of this node, is left as it is.
        """
        if not self._link.is_on:
            return
        place = self._layout.attachments / row.path
        # One after the other: they are small, and two requests for one file cause one download.
        async with self._one_at_a_time:
            if await asyncio.to_thread(place.exists):
                return
            turn = await asyncio.to_thread(self._away.get, row.turn_id)
            if turn is None:
                return
            if row.size > LARGEST:
                raise TooLarge(f"{row.name} has {format_size(row.size)}, an attachment may have {format_size(LARGEST)}")
            try:
                await self._fetch(row, place)
            except GitmirrorError as error:
                raise GitmirrorError(
                    f"{row.name} was attached on node {turn.node} and cannot be fetched now: {error.message}",
                    hint=error.hint,
                ) from error
            except OSError as error:
                raise GitmirrorError(f"{row.name} cannot be written: {error.strerror} ({error.filename})") from error

    async def _fetch(self, row: AttachmentRow, place: Path) -> None:
        upload = self._layout.uploads / f"fleet-{row.turn_id}-{row.sha256}"
        await asyncio.to_thread(_make_directories, upload.parent, place.parent)
        try:
            await fetch_object(self._link, row.sha256, row.size, row.sha256, upload)
            await asyncio.to_thread(_put_in_place, upload, place)
        finally:
            upload.unlink(missing_ok=True)


def _make_directories(*directories: Path) -> None:
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)


def _put_in_place(upload: Path, place: Path) -> None:
    """Syncs a file before its name is final, because nobody would fetch one again that is there and damaged."""
    descriptor = os.open(upload, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(upload, place)
