"""Where the log of `serve` is: in the journal, or wherever its stderr goes."""

from __future__ import annotations

import os
import shutil
import stat
from datetime import datetime
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.ops.install import SERVICE
from appliance.core.process.owner import SERVE, find_owner

UNIT_PATHS = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
LINES = 100


def journal_command(
    layout: Layout,
    *,
    follow: bool = False,
    lines: int | None = None,
    since: str | None = None,
    priority: str | None = None,
) -> list[str]:
    """Returns the command that prints the log of the service. `since` is a time in RFC 3339.

    Raises GitmirrorError if this machine has no journal or no unit, which says where the log is instead.
    """
    if shutil.which("journalctl") is None:
        raise GitmirrorError("this machine has no journal", hint=_elsewhere(layout))
    if not any((Path(place) / SERVICE).exists() for place in UNIT_PATHS):
        raise GitmirrorError(
            f"{SERVICE} is not installed here, so the journal has no log of it", hint=_elsewhere(layout)
        )
    argv = ["journalctl", f"--unit={SERVICE}"]
    if lines is None and since is None:
        lines = LINES
    argv += [f"--lines={lines}"] if lines is not None else []
    argv += [f"--since=@{datetime.fromisoformat(since).timestamp():.0f}"] if since else []
    argv += [f"--priority={priority}"] if priority else []
    argv += ["--follow"] if follow else []
    return argv


def _elsewhere(layout: Layout) -> str:
    owner = find_owner(layout)
    if owner is None or owner.role != SERVE:
        return "serve writes its log to stderr: start it with `gitmirror.pyz serve 2> serve.log`, or install it"
    try:
        target = os.readlink(f"/proc/{owner.pid}/fd/2")
        is_file = stat.S_ISREG(os.stat(f"/proc/{owner.pid}/fd/2").st_mode)
    except OSError:
        return f"the log is the stderr of serve, process {owner.pid}"
    if is_file:
        return f"serve, process {owner.pid}, writes its log to a file: `tail -f {target}`"
    if target.startswith("/"):
        return f"serve, process {owner.pid}, writes its log to {target}, the terminal or device that it was started on"
    return f"serve, process {owner.pid}, writes its log into a {target.partition(':')[0]} that another process reads"
