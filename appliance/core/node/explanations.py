"""What to do about something that went wrong earlier: a refresh that failed, a push that was refused. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.core.git.failures import hint_of
from appliance.core.models import Repo
from appliance.core.recording.advice import ONLY_KNOWN, advice
from appliance.core.recording.policy import EVERY_SESSION


def hint_of_refresh(kind: str | None) -> str:
    """What to do about a refresh that failed, by the `kind` of its error; empty if nothing is known."""
    return hint_of(kind) or ""


def hint_of_refusal(
    repo: Repo, refused: Mapping[str, str], guest: str | None, guests: Sequence[Mapping[str, Any]], *, only_known: bool
) -> str:
    """What the guest of a refused push may do instead, in lines, as the guest read them.

    `refused` has the reason for each ref, `guests` are the known guests as a listing has them, and `only_known` says
    whether no others may push.
    """
    known = next((each for each in guests if each["name"] == guest), None)
    sessions = tuple(known["sessions"]) if known else () if guest or only_known else EVERY_SESSION
    # The first lines only repeat the refs and the reasons.
    lines = advice(repo, refused, sessions, guest)[len(refused) :]
    return "\n".join([*lines, *([ONLY_KNOWN] if only_known and not known else [])])
