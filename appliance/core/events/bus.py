"""Hands each event to the listeners that subscribed to its class."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from appliance.core.events.facts import Event

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Event)


class EventBus:
    """Listeners by the class of the event. They are called in the order in which they subscribed."""

    def __init__(self) -> None:
        self._listeners: defaultdict[type[Event], list[Callable[[Any], object]]] = defaultdict(list)

    def subscribe(self, kind: type[Kind], *listeners: Callable[[Kind], object]) -> None:
        """Calls each of `listeners` with every later event of exactly this class, not of its subclasses."""
        self._listeners[kind].extend(listeners)

    def publish(self, event: Event) -> None:
        """Calls all listeners. If one raises, the error is logged and the others are still called."""
        for listener in self._listeners[type(event)]:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed to handle %s", event)
