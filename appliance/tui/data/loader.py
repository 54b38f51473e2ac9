"""Work off the UI thread: reads by name, of which one runs at a time, and the event stream of a running serve."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.process.control import Watch, is_serving
from appliance.tui.data.messages import ActionDone, ActionFailed, Happened, ReadFailed, ReadWorks, Watching

LOOK_AGAIN = 0.3
"""Seconds between two looks for a serve while there is none; a look is one open file and its lock."""

ABSENT = "serve is not running"

Work = Callable[[], Message | None]
Failed = Callable[[ReadFailed], None]
Job = tuple[MessagePump, Work, Failed | None]


def tell(target: MessagePump, message: Message) -> None:
    """Posts from a thread. A view that was closed meanwhile needs it no more."""
    with contextlib.suppress(RuntimeError):
        target.post_message(message)


class Reader:
    """Runs reads in daemon threads: one that hangs holds up neither the others nor the end of the program."""

    def __init__(self, app: MessagePump) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._waiting: dict[str, Job] = {}
        self._failed: set[str] = set()

    def read(self, name: str, target: MessagePump, work: Work, *, failed: Failed | None = None) -> None:
        """Posts what `work` returns to `target`. While one of that name runs, only the newest asked comes after it.

        `failed` is called on the UI thread with an error that concerns this view alone; without it the app is told.
        """
        job = (target, work, failed)
        with self._lock:
            if name in self._running:
                self._waiting[name] = job
                return
            self._running.add(name)
        threading.Thread(target=self._run, args=(name, job), name=f"read {name}", daemon=True).start()

    def act(self, what: str, work: Callable[[], str]) -> None:
        """Does something that was asked for, and tells the app how it went; `what` is for the error."""

        def run() -> None:
            try:
                tell(self._app, ActionDone(work()))
            except GitmirrorError as error:
                tell(self._app, ActionFailed(what, error))
            except Exception as error:
                tell(self._app, ActionFailed(what, _fault(what, error)))

        threading.Thread(target=run, name=what, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether anything is read just now."""
        with self._lock:
            return bool(self._running)

    def _run(self, name: str, job: Job) -> None:
        while True:
            self._read(name, *job)
            with self._lock:
                following = self._waiting.pop(name, None)
                if following is None:
                    self._running.discard(name)
                    return
            job = following

    def _read(self, name: str, target: MessagePump, work: Work, failed: Failed | None) -> None:
        try:
            message = work()
        except Exception as error:
            # Also one that nobody foresaw: a thread that ended without a word would leave the screen as it was.
            wrong = error if isinstance(error, GitmirrorError) else _fault(name, error)
            message = ReadFailed(name, wrong, failed)
            if failed is None:
                self._failed.add(name)
            target = self._app
        else:
            if name in self._failed:
                self._failed.discard(name)
                tell(self._app, ReadWorks(name))
        if message is not None:
            tell(target, message)


def _fault(name: str, error: Exception) -> GitmirrorError:
    return GitmirrorError(f"{name}: {error!r}", hint="this is a fault of the view; the commands may still tell it")


class Watcher:
    """Follows the events of a serve, of the next one when that ends, and says when there is one and when not."""

    def __init__(self, layout: Layout, app: MessagePump) -> None:
        self._layout = layout
        self._app = app
        self._events: deque[dict[str, Any]] = deque()
        self._told = threading.Event()
        self._ended = threading.Event()
        self._watch: Watch | None = None

    def start(self) -> None:
        """Begins, in a thread."""
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def take(self) -> list[dict[str, Any]]:
        """The events since the last time, oldest first."""
        self._told.clear()
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        """Hangs up."""
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
                    tell(self._app, Watching(False, absent))
                self._ended.wait(LOOK_AGAIN)
                continue
            absent = None
            tell(self._app, Watching(True))
            for event in self._watch:
                self._events.append(event)
                if not self._told.is_set():
                    # One message for as many events as come before the app looks.
                    self._told.set()
                    tell(self._app, Happened())
