"""Sessions whose newest turn another node of the fleet took: they come when a guest asks for them by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from appliance.core.errors import GitmirrorError
from appliance.core.models import Repo
from appliance.core.serving.fetch.ref_snapshots import AGENTS

MOST_NAMED = 16
"""Sessions that one request may have brought; the refs of more are those that are here."""


class SessionAway(GitmirrorError):
    """A session that a guest asked for cannot be had now."""


class AwaySessions(Protocol):
    """Brings sessions of other nodes: `fleet.bringing.Bringing`."""

    @property
    def is_on(self) -> bool:
        """Whether there are other nodes."""
        ...

    async def newest(self, repo: Repo, session: str) -> str | None:
        """The commit that a session's ref must have because its last turn is another node's; otherwise None."""
        ...

    async def bring_newest(self, repo: Repo, session: str) -> None:
        """Has the mirror hold that commit under the session's ref. Raises GitmirrorError."""
        ...

    async def bring_commit(self, repo: Repo, oid: str) -> bool:
        """Has the mirror hold a commit if it is a turn's that another node took; returns whether. As above."""
        ...


def named_sessions(arguments: Sequence[bytes]) -> Iterator[str]:
    """The sessions that the prefixes of an `ls-refs` may name."""
    for line in arguments:
        name = line.removeprefix(b"ref-prefix " + AGENTS)
        if name and name != line:
            yield name.decode("utf-8", "surrogateescape")
