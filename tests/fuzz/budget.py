"""How many inputs are tried, and how long a turn of the event loop may take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

T = TypeVar("T")

INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))
"""Inputs of each fuzzer; 0 is the small number that each sets for the normal run. CONTRIBUTING.md tells of it."""

MOST_EXAMPLES = 4000
"""Requests that hypothesis makes for one fuzzer. It remembers them all, so more inputs are more mutations of each."""
FEWEST_VARIANTS = 5

LONGEST_TURN = 0.05
"""Seconds of processor time that the event loop may work for one input before others have their turn."""


@dataclass(frozen=True)
class Budget:
    """`examples` requests, each tried as it is and in `variants - 1` mutations."""

    examples: int
    variants: int

    @classmethod
    def of(cls, normal: int) -> Budget:
        """The budget of a fuzzer that tries `normal` inputs in the normal run."""
        inputs = INPUTS or normal
        examples = max(1, min(inputs // FEWEST_VARIANTS, MOST_EXAMPLES))
        return cls(examples, -(-inputs // examples))

    @property
    def settings(self) -> settings:
        """Always the same inputs in the normal run, and others at each run by hand."""
        return settings(
            max_examples=self.examples,
            derandomize=not INPUTS,
            database=None,
            deadline=None,
            # Explaining and shrinking a failure by its time would take minutes, and the input is small enough to read.
            phases=[Phase.explicit, Phase.generate] if INPUTS else [Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )


class Slow(AssertionError):
    """One turn of the loop took too long."""


def timed(work: Callable[[], T]) -> T:
    """The result of `work`, which runs on the loop in one piece. Raises Slow if it takes longer than LONGEST_TURN.

    The time is that of the processor, so a busy machine lengthens it little, and the least of three, because a
    collection of garbage may fall into one.
    """
    least = LONGEST_TURN
    for _ in range(3):
        start = time.thread_time()
        result = work()
        taken = time.thread_time() - start
        if taken <= LONGEST_TURN:
            return result
        least = taken if least == LONGEST_TURN else min(least, taken)
    raise Slow(f"the loop stood still for {least * 1000:.0f} ms")


def in_turns(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of a coroutine that only gives way to others (`sleep(0)`), run without a loop. Raises Slow."""
    longest = 0.0
    for _ in range(3):
        coroutine, longest = make(), 0.0
        while True:
            start = time.thread_time()
            try:
                waited_for = coroutine.send(None)
            except StopIteration as end:
                if max(longest, time.thread_time() - start) <= LONGEST_TURN:
                    return end.value  # type: ignore[no-any-return]
                break
            longest = max(longest, time.thread_time() - start)
            assert waited_for is None, f"it waits for {waited_for!r}"
    raise Slow(f"the loop stood still for {longest * 1000:.0f} ms")


class Timed(Coroutine[Any, Any, None]):
    """A coroutine whose turns on a running loop are measured; `longest` is in seconds of processor time."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self.longest = 0.0

    def send(self, value: Any) -> Any:
        """One turn."""
        start = time.thread_time()
        try:
            return self._work.send(value)
        finally:
            self.longest = max(self.longest, time.thread_time() - start)

    def throw(self, *args: Any) -> Any:
        """One turn that begins with an exception."""
        return self._work.throw(*args)

    def close(self) -> None:
        """Ends it."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        """For `await`."""
        return self._work.__await__()
