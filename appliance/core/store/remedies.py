"""What an operator can do about a database that is gone, damaged, or behind its mirrors."""

from __future__ import annotations

import shlex
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.store.audit import LogBehind
from appliance.core.store.database import DatabaseLost


def remedy(error: GitmirrorError, state: Path, backups: str) -> str:
    """Returns what to do about `error`: its hint, or the command that restores the last of the backups in `backups`.

    `backups` is the directory of `[backup]`, empty without one. Only operators get this advice, because the
    directory is not a guest's business.
    """
    if not backups or not isinstance(error, DatabaseLost | LogBehind):
        return error.hint
    command = f"gitmirror.pyz restore {shlex.quote(backups)} --state {shlex.quote(str(state))} --database --yes"
    advice = (
        f"restore the last backup: `systemctl stop gitmirror; {command}; systemctl start gitmirror`; mirrors stay as "
        "they are, and their turns that the backup lacks are recorded again"
    )
    return f"{advice}; or {error.hint}" if isinstance(error, LogBehind) else advice
