"""Three real nodes on three NATS servers: how soon all have what one has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from benchlib.processes import BenchError, Places

PATIENCE = 60.0


def measure_hydrations(places: Places, times: int) -> dict[str, list[float]]:
    """Seconds of each step, as often as it was done."""
    # The nodes, servers and guests are those of the tests.
    from tests.support.gitutil import clean_env

    for name, value in clean_env(places.scratch).items():
        os.environ[name] = value
    from benchlib.fleet_steps import Steps

    with Steps(places.fast) as steps:
        found: dict[str, list[float]] = {}
        for number in range(times):
            for name, step in steps.all():
                try:
                    found.setdefault(name, []).append(step(number))
                except AssertionError as error:
                    raise BenchError(f"{name}: {error}") from error
        return found


def timed(done: Callable[[], object]) -> float:
    """Seconds until something holds, looked at all the time. Raises BenchError after PATIENCE seconds."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > PATIENCE:
            raise BenchError("it does not come to hold")
        time.sleep(0.005)
    return time.monotonic() - began
