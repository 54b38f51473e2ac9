"""What a refused guest reads on its terminal: which ref was refused and why, and what it may write instead. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.core.models import Repo
from appliance.core.recording.policy import ALLOWED, EVERY_SESSION, named
from appliance.core.text import escape_ascii

MOST_LINES = 16
"""The most refused refs that are named."""
ONLY_KNOWN = "only guests that the operator made known may push here (recording.writers)"

NO_LONGER_KNOWN = "this guest is no longer known"


def advice(repo: Repo, refused: Mapping[str, str], sessions: Sequence[str], guest: str | None) -> tuple[str, ...]:
    """The lines; none if nothing was refused. `sessions` are what the guest may write, `guest` its name if known."""
    if not refused:
        return ()
    lines = [f"refused {escape_ascii(ref)}: {reason}" for ref, reason in list(refused.items())[:MOST_LINES]]
    lines += _allowed(tuple(sessions), guest)
    if any(ref.startswith(("refs/heads/", "refs/tags/")) for ref in refused):
        lines.append(
            f"real branches and tags go to the upstream: git push {repo.url} (a redirected guest: pushInsteadOf)"
        )
    return tuple(lines)


def _allowed(sessions: tuple[str, ...], guest: str | None) -> list[str]:
    if sessions and sessions == EVERY_SESSION:
        return [f"allowed here: git push MIRROR HEAD:refs/agents/SESSION ({ALLOWED.partition(', where ')[2]})"]
    if sessions:
        words = f"allowed here: git push MIRROR HEAD:REF, where REF is {named(sessions)}"
        # A known guest writes more only when the operator says so, and a person may read this.
        return [words, f"this is the guest {guest}; the operator of the mirror decides what it may write"]
    if guest is not None:
        words = f"allowed here: nothing; this is the guest {guest}, which has no session"
        return [words, "the operator of the mirror gives it one: `guest remove`, then `guest add --session`"]
    return [
        "allowed here: nothing, because the mirror does not know this guest",
        "the operator makes it known: `guest add NAME --session SESSION` with --unix, --address or --token",
    ]
