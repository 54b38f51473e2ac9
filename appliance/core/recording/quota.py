"""Limits how much guests may record: new sessions a minute, turns in a session, total bytes, objects in a pack."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from appliance.core.config.settings import RecordingConfig
from appliance.core.units import format_size

MINUTE = 60.0


class Quota:
    """Tracks how much of the limits is used. `clock` is monotonic."""

    def __init__(self, limits: Callable[[], RecordingConfig], clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._new: dict[str, deque[float]] = {}
        self.used_bytes = 0

    def too_large(self, size: int) -> str | None:
        """Why a push of `size` bytes cannot succeed (git cuts it off at max_push), or None."""
        most = self._limits().max_push
        return f"larger than recording.max_push, {format_size(most)}" if size > most else None

    def refuse(self, repo: str, turns: dict[str, int], objects: int) -> str | None:
        """Why a push exceeds a limit, or None.

        `turns` maps each session of the push to its number of turns; `objects` is the number of objects in the pack. If
        the push is allowed, its new sessions count towards the limit.
        """
        limits, now = self._limits(), self._clock()
        if objects > limits.max_objects:
            return f"{objects} objects in one push, at most {limits.max_objects} are allowed"
        for session, count in turns.items():
            if count >= limits.max_turns:
                return f"the session {session} has {count} turns and takes no more; start another session"
        if self.used_bytes >= limits.max_bytes:
            used = format_size(self.used_bytes)
            return f"all sessions together use {used}, so no push is accepted until some sessions are ended"
        new = [session for session, count in turns.items() if count == 0]
        recent = self._new.setdefault(repo, deque())
        while recent and now - recent[0] > MINUTE:
            recent.popleft()
        if len(recent) + len(new) > limits.max_new_sessions:
            return f"at most {limits.max_new_sessions} new sessions a minute are allowed; try again in a minute"
        recent.extend([now] * len(new))
        return None
