"""Reads what git prints on stderr about the mirrors, and publishes messages that may mean damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.core.events.facts import DamageSuspected, Publish
from appliance.core.git.failures import speaks_of_damage
from appliance.core.layout import Layout

Hear = Callable[[Path, str], None]
"""Receives a repository and what git printed on stderr while it worked there."""


def hears_nothing(repository: Path, text: str) -> None:
    """Ignores the output, for a process that does not watch its mirrors."""


class Complaints:
    """Publishes a `DamageSuspected` for a message about a mirror below `layout`."""

    def __init__(self, layout: Layout, publish: Publish) -> None:
        self._layout = layout
        self._publish = publish

    def hear(self, repository: Path, text: str) -> None:
        """Reads git's error output, which is usually empty."""
        if text and (words := speaks_of_damage(text)) and (name := self._layout.name_of(repository)):
            self._publish(DamageSuspected(mirror=name, words=words))
