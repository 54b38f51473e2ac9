"""Takes root's privilege to ignore file modes away from a child, so that it acts like a service's user."""

from __future__ import annotations

import os
import shutil

import pytest


def bound_by_modes() -> list[str]:
    """Return a command prefix under which file modes apply to root too; skip the test where that is impossible.

    root without CAP_DAC_OVERRIDE owns its files like any user. Another user could not reach the test's directory.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and setpriv is missing to change that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
