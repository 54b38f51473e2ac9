"""How much guests may record: new sessions a minute, turns of a session, bytes in all, objects in a pack."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from appliance.core.config.settings import RecordingConfig
from appliance.core.units import format_size

MINUTE = 60.0


class Quota:
    """What has been used of the limits. `clock` is monotonic."""

    def __init__(self, limits: Callable[[], RecordingConfig], clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._new: dict[str, deque[float]] = {}
        self.used_bytes = 0

    def too_large(self, size: int) -> str | None:
        """Why a push of `size` bytes could not succeed (git cuts it off at max_push), or None."""
        most = self._limits().max_push
        return f"larger than recording.max_push, {format_size(most)}" if size > most else None

    def refuse(self, repo: str, turns: dict[str, int], objects: int) -> str | None:
        """Why a push is too much, or None. `turns` are the turns each of its sessions has; `objects` in its pack.

        New sessions of a push that is allowed are counted.
        """
        limits, now = self._limits(), self._clock()
        if objects > limits.max_objects:
            return f"{objects} objects in one push, at most {limits.max_objects} are taken"
        for session, count in turns.items():
            if count >= limits.max_turns:
                return f"the session {session} has {count} turns, no more are taken; begin another session"
        if self.used_bytes >= limits.max_bytes:
            return f"all sessions together hold {format_size(self.used_bytes)}, no more is taken until some are ended"
        new = [session for session, count in turns.items() if count == 0]
        recent = self._new.setdefault(repo, deque())
        while recent and now - recent[0] > MINUTE:
            recent.popleft()
        if len(recent) + len(new) > limits.max_new_sessions:
            return f"{limits.max_new_sessions} new sessions a minute are taken; try again in a minute"
        recent.extend([now] * len(new))
        return None
