"""How much guests may record: new sessions per minute, turns per session, total bytes, objects per pack."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from appliance.core.config.settings import RecordingConfig
from appliance.core.units import format_size

MINUTE = 60.0


class Quota:
    """Tracks how much of the limits is used. `clock` is monotonic, in seconds."""

    def __init__(self, limits: Callable[[], RecordingConfig], clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._new: dict[str, deque[float]] = {}
        self.used_bytes = 0

    def too_large(self, size: int) -> str | None:
        """Why a push of `size` bytes cannot succeed, or None. git itself cuts it off at max_push."""
        most = self._limits().max_push
        return f"larger than recording.max_push, {format_size(most)}" if size > most else None

    def refuse(self, repo: str, turns: dict[str, int], objects: int) -> str | None:
        """Why a push exceeds a limit, or None.

        `turns` is the number of turns of each of its sessions, and `objects` the number of objects in its pack. If the
        push is allowed, its new sessions are counted.
        """
        limits, now = self._limits(), self._clock()
        if objects > limits.max_objects:
            return f"{objects} objects in one push, at most {limits.max_objects} are allowed"
        for session, count in turns.items():
            if count >= limits.max_turns:
                return f"the session {session} has {count} turns, no more are allowed; begin another session"
        if self.used_bytes >= limits.max_bytes:
            return (
                f"all sessions together hold {format_size(self.used_bytes)}, no more is accepted until some are ended"
            )
        new = [session for session, count in turns.items() if count == 0]
        recent = self._new.setdefault(repo, deque())
        while recent and now - recent[0] > MINUTE:
            recent.popleft()
        if len(recent) + len(new) > limits.max_new_sessions:
            return f"{limits.max_new_sessions} new sessions a minute are allowed; try again in a minute"
        recent.extend([now] * len(new))
        return None
