"""The attachments of turns in a backup: each file once, under the SHA-256 of its bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.manifest import Manifest, StoredFile
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.store.turn_details import AttachmentRow


def back_up_attachments(
    directory: BackupDirectory, layout: Layout, rows: Iterable[AttachmentRow], problems: list[str]
) -> dict[str, StoredFile]:
    """Copies the files that the directory lacks; returns all of them. Adds those that are damaged to `problems`.

    Raises OSError.
    """
    found: dict[str, StoredFile] = {}
    for row in rows:
        file = StoredFile(f"attachments/{row.repo}/{row.sha256}", row.size, row.sha256)
        if not directory.has(file):
            try:
                copied = directory.copy(layout.attachments / row.path, file.path)
            except FileNotFoundError:
                problems.append(f"{row.repo}: the attachment {row.name} of turn {row.turn_id} is missing")
                continue
            if copied != file:
                (directory.path / file.path).unlink(missing_ok=True)
                problems.append(f"{row.repo}: the attachment {row.name} of turn {row.turn_id} is damaged")
                continue
        found[row.path] = file
    return found


def restore_attachments(directory: BackupDirectory, manifest: Manifest, building: Layout, skipped: list[str]) -> None:
    """Copies the attachments of a backup below `building`. Those that are damaged are named in `skipped`.

    Raises OSError.
    """
    for path, file in manifest.attachments.items():
        try:
            directory.require([file], manifest.at)
        except GitmirrorError as error:
            skipped.append(error.message)
            continue
        place = building.attachments / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory.path / file.path, place)


def put_attachments_in_place(building: Layout, layout: Layout) -> None:
    """Moves restored attachments to where they belong; those that are there stay, as a restored database knows them.

    Raises OSError.
    """
    for directory, _, names in os.walk(building.attachments):
        for name in names:
            source = building.attachments.joinpath(directory, name)
            place = layout.attachments / source.relative_to(building.attachments)
            place.parent.mkdir(parents=True, exist_ok=True)
            source.replace(place)
