"""How the numbered steps of the schema are declared."""

from __future__ import annotations

from collections.abc import Callable

import sqlite_utils
from sqlite_utils.migrations import Migrations


class NumberedMigrations(Migrations):
    """The steps of one database; `names` reveals a file that a newer version wrote."""

    @property
    def names(self) -> set[str]:
        """The names of all steps that this version knows."""
        return {migration.name for migration in self._migrations}


MIGRATIONS = NumberedMigrations("gitmirror")


def step(name: str, *statements: str) -> Callable[[sqlite_utils.Database], None]:
    """Declares the next step. Each is a transaction of its own, and is applied once."""

    def apply(db: sqlite_utils.Database) -> None:
        for statement in statements:
            db.execute(statement)

    return MIGRATIONS(name=name)(apply)
