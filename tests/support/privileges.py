"""What root may do that a service's user may not: taken away from a child, so that file modes hold for it too."""

from __future__ import annotations

import os
import shutil

import pytest


def bound_by_modes() -> list[str]:
    """A command prefix under which file modes hold, also for root; skips the test where there is no such thing.

    root without CAP_DAC_OVERRIDE owns its files as any user does. Another user could not reach the test's directory.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and setpriv is not there to change that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
