"""Runs children without root's privileges: as a service's user, bound by file modes, or as another user."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.forked import Ids, can_fork, run_forked
from tests.support.serve import ROOT


def bound_by_modes() -> list[str]:
    """Return a command prefix under which file modes apply to root too; skip the test where that is impossible.

    root without CAP_DAC_OVERRIDE owns its files like any user. Another user could not reach the test's directory.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and setpriv is missing to change that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@functools.cache
def other_users_python(user: int) -> tuple[str, str]:
    """Return an interpreter that the user `user` may run, and the PYTHONPATH of this checkout; skip without one.

    The tests' own may be below root's home.
    """
    path = os.pathsep.join([str(ROOT), *site.getsitepackages()])
    code = "import sys; assert sys.version_info >= (3, 11); import appliance.cli.main, appliance.core.daemon.service"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        env = {"PYTHONPATH": path, "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
        with contextlib.suppress(OSError):
            argv = [python, "-c", code]
            done = subprocess.run(
                argv, user=user, group=user, extra_groups=[], env=env, cwd="/", timeout=60, check=False
            )
            if done.returncode == 0:
                return python, path
    pytest.skip("no Python of 3.11 or newer that another user may run")


def run_as(
    ids: Ids, command: Sequence[str], words: Sequence[str], *, env: Mapping[str, str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run `command` with `words` as somebody, and return its output. Raises OSError if they may not even start it."""
    if can_fork(command, env):
        raw = run_forked(words, env=env, cwd=cwd, input=None, timeout=60, python=command[:1], ids=ids)
        return subprocess.CompletedProcess(raw.args, raw.returncode, raw.stdout.decode(), raw.stderr.decode())
    user, group, groups = ids
    return subprocess.run(
        [*command, *words],
        user=user, group=group, extra_groups=groups, cwd=cwd, env=env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
