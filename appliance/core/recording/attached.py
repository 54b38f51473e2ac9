"""Finds and opens attachments, for those who may read them. A file that changed since it was attached is not given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

from appliance.core.errors import GitmirrorError, NotFound
from appliance.core.layout import Layout
from appliance.core.models import Turn
from appliance.core.recording.comparison import find_turn
from appliance.core.store.turn_details import AttachmentRow, TurnDetailStore
from appliance.core.text import escape_ascii

_PIECE = 2**20


def find_attachment(
    details: TurnDetailStore, session: str, turns: Sequence[Turn], name: str, number: int | None
) -> AttachmentRow:
    """The attachment `name` of a turn, by default of the newest turn that has one. Raises NotFound, StoreError.

    `turns` are those of the session, oldest first.
    """
    chosen = list(reversed(turns)) if number is None else [find_turn(session, turns, number)[1]]
    for turn in chosen:
        for row in details.attachments(turn.id):
            if row.name == name:
                return row
    where = f"the session {session} has" if number is None else f"turn {number} of the session {session} has"
    raise NotFound(f"{where} no attachment {escape_ascii(name, 200)}", hint="`session show` lists them")


def open_attachment(layout: Layout, row: AttachmentRow) -> BinaryIO:
    """Opens an attachment after reading all of it. Raises GitmirrorError if it is missing or not what was attached."""
    path = layout.attachments / row.path
    hint = f"a backup may have it: `backup verify`; {path}"
    try:
        file = path.open("rb")
    except OSError as error:
        raise GitmirrorError(f"the attachment {row.name} cannot be read: {error.strerror}", hint=hint) from error
    try:
        digest = hashlib.sha256()
        while piece := file.read(_PIECE):
            digest.update(piece)
        file.seek(0)
    except OSError as error:
        file.close()
        raise GitmirrorError(f"the attachment {row.name} cannot be read: {error.strerror}", hint=hint) from error
    if digest.hexdigest() != row.sha256:
        file.close()
        raise GitmirrorError(f"the attachment {row.name} is damaged: its bytes are not those that came", hint=hint)
    return file
