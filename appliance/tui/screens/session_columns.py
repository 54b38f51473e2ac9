"""The columns of lists of sessions and of their turns."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.models import FileChange, Turn
from appliance.tui.data.activity import seconds_of
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.fleet_lines import short_node
from appliance.tui.screens.marking import Marks
from appliance.tui.text import Cell, cell, client_cell, signed, size, span
from appliance.tui.widgets.listing import Column


class SessionColumns:
    """Makes the columns of a list of sessions; `clock` gives Unix seconds, and `marks` knows what is marked."""

    def __init__(self, clock: Callable[[], float], marks: Marks) -> None:
        self._clock = clock
        self._marks = marks

    def all(self, *, with_repo: bool = True, with_node: bool = False) -> list[Column[SessionRow]]:
        """Returns the columns, from left to right; those of a fleet's sessions `with_node`."""
        return [
            Column("SESSION", self._name, 18 if with_node else 20, 0, 34, grows=True, order=lambda row: row.name),
            *(
                [Column("REPOSITORY", lambda session: cell(session.repo, "dim"), 14, 2, 28, order=lambda row: row.repo)]
                if with_repo
                else []
            ),
            Column("TURNS", lambda session: cell(f"{session.turns:,}"), 5, 1, right=True, order=lambda row: row.turns),
            Column("FILES", lambda session: cell(f"{session.files:,}"), 5, 3, right=True, order=lambda row: row.files),
            Column("ADDED", _insertions, 7, 1, right=True, order=lambda row: row.insertions),
            Column("REMOVED", _deletions, 7, 1, right=True, order=lambda row: row.deletions),
            Column("LAST TURN", self._age, 6, 0, right=True, short="AGE", order=lambda row: -row.last_at),
            Column("SUBJECT", lambda session: cell(session.subject), 16, 4, 60, grows=True, order=_subject),
            Column(
                "SIZE", lambda session: cell(size(session.bytes), "dim"), 8, 6, right=True, order=lambda row: row.bytes
            ),
            Column("CLIENT", lambda session: client_cell(session.client, session.guest), 9, 4, 21, order=_who),
            # Names of nodes often differ only at their end.
            *([Column("NODE", _node, 8, 2, 20, tail=True, order=lambda row: row.node or "")] if with_node else []),
            Column("STATE", lambda session: cell(fate(session), "accent"), 10, 7, order=fate),
        ]

    def _age(self, session: SessionRow) -> Cell:
        return cell(span(self._clock() - session.last_at))

    def _name(self, session: SessionRow) -> Cell:
        return self._marks.piece(session), ("◆ " if session.kept else "", "accent"), (session.name, "strong")


def _insertions(session: SessionRow) -> Cell:
    return cell(signed("+", session.insertions), "good")


def _deletions(session: SessionRow) -> Cell:
    return cell(signed("-", session.deletions), "minus")


def _subject(session: SessionRow) -> str:
    return session.subject.lower()


def _who(session: SessionRow) -> str:
    return session.guest or session.client


def _node(session: SessionRow) -> Cell:
    return cell(short_node(session.node), "dim")


def fate(session: SessionRow) -> str:
    """Returns what retention does with the session, empty if nothing special."""
    return "◆ kept" if session.kept else "▪ archived" if session.archived else ""


def turn_columns(clock: Callable[[], float]) -> list[Column[tuple[int, Turn, float]]]:
    """Makes the columns of a list of turns, whose rows are number, turn and Unix second."""
    return [
        Column("TURN", lambda row: cell(f"{row[0]}", "strong"), 4, 0, right=True),
        Column("AGE", lambda row: cell(span(clock() - row[2])), 6, 1, right=True),
        Column("COMMIT", lambda row: cell(row[1].commit[:10], "accent"), 10, 2),
        Column("FILES", lambda row: cell(f"{row[1].files_changed:,}"), 5, 4, right=True),
        Column("ADDED", lambda row: cell(signed("+", row[1].insertions), "good"), 7, 3, right=True),
        Column("REMOVED", lambda row: cell(signed("-", row[1].deletions), "minus"), 7, 3, right=True),
        Column("SUBJECT", lambda row: cell(row[1].subject), 20, 0, grows=True),
    ]


def turn_rows(turns: list[Turn]) -> list[tuple[int, Turn, float]]:
    """Returns rows for `turn_columns`, newest first, with numbers that count from 1 at the oldest."""
    return [(number, turn, seconds_of(turn.at)) for number, turn in reversed(list(enumerate(turns, 1)))]


def file_columns() -> list[Column[FileChange]]:
    """Makes the columns of a list of changed files."""
    return [
        Column("CHANGED", file_path, 12, 0, grows=True, tail=True),
        Column("ADDED", lambda file: cell(file_number("+", file.insertions, file), "good"), 6, 0, right=True),
        Column("REMOVED", lambda file: cell(file_number("-", file.deletions, file), "minus"), 7, 1, right=True),
    ]


def file_path(file: FileChange) -> Cell:
    """Shows the path with its name standing out, and the path before a rename."""
    directory, slash, name = file.path.rpartition("/")
    was = f"  was {file.before}" if file.before != file.path else ""
    return (directory + slash, "dim"), (name, ""), (was, "dim")


def file_number(sign: str, number: int, file: FileChange) -> str:
    """Shows how many lines changed; a binary file has none."""
    return ("binary" if sign == "+" else "") if file.binary else signed(sign, number)
