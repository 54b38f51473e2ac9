"""Runs reads and orders off the UI thread. Only one read of each name runs at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from textual.message import Message
from textual.message_pump import MessagePump

from appliance.core.errors import GitmirrorError
from appliance.tui.data.batch import Batch
from appliance.tui.data.messages import ActionDone, ActionFailed, BatchDone, ReadFailed, ReadRecovered

Work = Callable[[], Message | None]
Failed = Callable[[ReadFailed], None]
Job = tuple[MessagePump, Work, Failed | None]


def tell(target: MessagePump, message: Message) -> None:
    """Posts a message from a thread. A target that closed meanwhile no longer needs it."""
    with contextlib.suppress(RuntimeError):
        target.post_message(message)


class Loader:
    """Runs each read in a daemon thread, so that one that hangs delays neither the others nor the exit."""

    def __init__(self, app: MessagePump) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._waiting: dict[str, Job] = {}
        self._failed: set[str] = set()

    def read(self, name: str, target: MessagePump, work: Work, *, failed: Failed | None = None) -> None:
        """Runs `work` and posts what it returns to `target`.

        While a read of that name runs, the newest request waits for it and replaces older requests. `failed` is called
        on the UI thread with an error that concerns this view alone; without it the error goes to every view.
        """
        job = (target, work, failed)
        with self._lock:
            if name in self._running:
                self._waiting[name] = job
                return
            self._running.add(name)
        threading.Thread(target=self._run, args=(name, job), name=f"read {name}", daemon=True).start()

    def act(self, what: str, work: Callable[[], str]) -> None:
        """Runs an order and posts its outcome to the app; `what` names it in an error."""

        def run() -> None:
            try:
                tell(self._app, ActionDone(work()))
            except GitmirrorError as error:
                tell(self._app, ActionFailed(what, error))
            except Exception as error:
                tell(self._app, ActionFailed(what, _fault(what, error)))

        threading.Thread(target=run, name=what, daemon=True).start()

    def act_on_all(self, what: str, work: Callable[[], Batch], finished: Callable[[Batch], None]) -> None:
        """Runs several orders and posts what became of them to the app, which calls `finished`.

        `what` names them if none could be carried out.
        """

        def run() -> None:
            try:
                tell(self._app, BatchDone(work(), finished))
            except GitmirrorError as error:
                tell(self._app, ActionFailed(what, error))
            except Exception as error:
                tell(self._app, ActionFailed(what, _fault(what, error)))

        threading.Thread(target=run, name=what, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether any read is running."""
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
            # Every error is reported: a thread that died silently would leave the screen at "reading…" for ever.
            wrong = error if isinstance(error, GitmirrorError) else _fault(name, error)
            message = ReadFailed(name, wrong, failed)
            if failed is None:
                self._failed.add(name)
            target = self._app
        else:
            if name in self._failed:
                self._failed.discard(name)
                tell(self._app, ReadRecovered(name))
        if message is not None:
            tell(target, message)


def _fault(name: str, error: Exception) -> GitmirrorError:
    return GitmirrorError(f"{name}: {error!r}", hint="this is a bug in the live view; try the command instead")
