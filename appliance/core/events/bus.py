"""Hands each event to the rooms that listen for its kind."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from appliance.core.events.facts import Event

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Event)


class EventBus:
    """Listeners by the kind of event. They are called in the order in which they subscribed."""

    def __init__(self) -> None:
        self._listeners: defaultdict[type[Event], list[Callable[[Any], object]]] = defaultdict(list)

    def subscribe(self, kind: type[Kind], *listeners: Callable[[Kind], object]) -> None:
        """From now on each of `listeners` is called with every event of exactly this kind."""
        self._listeners[kind].extend(listeners)

    def publish(self, event: Event) -> None:
        """Tells all listeners. When one fails that is logged, and the others hear of the event all the same."""
        for listener in self._listeners[type(event)]:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed at %s", event)
