"""The event stream of a running serve, followed in a thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from textual.message_pump import MessagePump

from appliance.core.api.client import Watch
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.process.control_socket import is_serving
from appliance.tui.data.loader import tell
from appliance.tui.data.messages import EventsArrived, StreamChanged

LOOK_AGAIN = 0.3
"""Seconds between two looks for a serve while none is running. A look opens one file and tries its lock."""

ABSENT = "serve is not running"


class EventFollower:
    """Follows the events of a serve, reconnects to the next one when that ends, and reports whether one is running."""

    def __init__(self, layout: Layout, app: MessagePump) -> None:
        self._layout = layout
        self._app = app
        self._events: deque[dict[str, Any]] = deque()
        self._told = threading.Event()
        self._ended = threading.Event()
        self._watch: Watch | None = None

    def start(self) -> None:
        """Starts to follow, in a thread."""
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def take(self) -> list[dict[str, Any]]:
        """Returns the events since the last call, oldest first."""
        self._told.clear()
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        """Closes the connection and ends the thread."""
        self._ended.set()
        if self._watch is not None:
            self._watch.close()

    def _run(self) -> None:
        absent: str | None = None
        while not self._ended.is_set():
            try:
                if not is_serving(self._layout):
                    raise GitmirrorError(ABSENT)
                self._watch = Watch(self._layout)
            except GitmirrorError as error:
                if error.message != absent:
                    absent = error.message
                    tell(self._app, StreamChanged(False, absent))
                self._ended.wait(LOOK_AGAIN)
                continue
            absent = None
            tell(self._app, StreamChanged(True))
            for event in self._watch:
                self._events.append(event)
                if not self._told.is_set():
                    # One message announces all events that arrive before the app takes them.
                    self._told.set()
                    tell(self._app, EventsArrived())
