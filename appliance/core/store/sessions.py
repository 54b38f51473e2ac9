"""Sessions and their turns: the columns that a listing needs, computed once when a turn is recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from appliance.core.models import Turn
from appliance.core.store.audit import UNKNOWN
from appliance.core.store.cursors import Page, cut
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet import enqueue_kept
from appliance.core.store.session_ends import end_session, node_name, require_going_on, set_kept
from appliance.core.store.session_search import SESSIONS, conditions, key_of, raw_name
from appliance.core.store.session_summary import renumber, summarise, turn_of
from appliance.core.store.turn_places import take_place

_LISTED = (
    "repo, session, ref, tip, base, turns, commits, files_changed, insertions, deletions, first_at, last_at, client, "
    "guest, node, kept, archived, bytes"
)


@dataclass(frozen=True)
class Unbooked:
    """An applied push that has no turn yet, because `serve` was killed before it could inspect the commit."""

    id: int
    repo: str
    session: str
    ref: str
    commit: str
    at: str
    client: str
    guest: str | None = None


class RecordedTurn(NamedTuple):
    """An applied push of a session that was not ended, booked or not. `id` is its audit id."""

    id: int
    session: str
    commit: str


class SessionStore:
    """The sessions and turns in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, turn: Turn) -> int:
        """Adds a turn and updates its session; returns the turn's number. An existing turn stays as it is."""
        with self._database.writing() as connection:
            found = rows(connection, "SELECT turn FROM turns WHERE id = ?", turn.id)
            if found:
                return int(found[0]["turn"])
            [count] = rows(
                connection,
                """SELECT count(*) AS n, max(CASE WHEN seq IS NULL THEN id END) AS last FROM turns
                   WHERE repo = ? AND session = ?""",
                turn.repo,
                turn.session,
            )
            number = int(count["n"]) + 1
            columns = asdict(turn) | {"turn": number, "node": node_name(connection)}
            columns["commit_id"] = columns.pop("commit")
            connection.table("turns").insert(columns)
            is_known = take_place(connection, turn)
            if is_known or (count["last"] and count["last"] > turn.id):
                # Pushes may end in another order than they were accepted in. The log has the order of the ref's values,
                # and the fleet may have had the turn before this database.
                renumber(connection, turn.repo, turn.session)
                [row] = rows(connection, "SELECT turn FROM turns WHERE id = ?", turn.id)
                number = int(row["turn"])
            summarise(connection, turn.repo, turn.session)
            if turn.client == UNKNOWN:
                # Its time is a guess, and whether it was marked as kept is lost, so only an operator may end it.
                connection.execute(
                    "UPDATE sessions SET kept = 1 WHERE repo = ? AND session = ?", [turn.repo, turn.session]
                )
            return number

    def all(self, repo: str | None = None) -> list[dict[str, Any]]:
        """All sessions, newest first, with the keys that the contract names and `kept`, `archived`, `bytes`."""
        return self.find(repo)[0]

    def find(
        self,
        repo: str | None = None,
        path: str | None = None,
        text: str | None = None,
        since: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        guest: str | None = None,
        before: str | None = None,
    ) -> Page:
        """One page of `all`, of the sessions that match everything given. Raises UsageError for a bad path or cursor.

        `path` is a file or a directory, from the top of the repository: a turn touched it, or something below it.
        `text` is in the session's name or in the messages of its commits, in upper or lower case. `since` is a time in
        RFC 3339, in UTC: the last turn is not older; of `before`, it is older. `guest` is a known guest that recorded
        a turn. Turns that are not indexed yet have no paths and no messages.
        """
        where, values = conditions(repo, path, text, since, after, guest, before)
        with self._database.searching() as connection:
            found = rows(
                connection,
                f"SELECT {_LISTED} FROM sessions s WHERE {where} ORDER BY last_at DESC, session, repo LIMIT ?",
                *values,
                -1 if limit is None else limit + 1,
            )
        return cut(SESSIONS, [_listed(row) for row in found], limit, key_of)

    def page(self, repo: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` sessions in the form of `all`, with the `subject` of their last turn."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                f"""SELECT {_LISTED}, (SELECT subject FROM turns t WHERE t.repo = s.repo AND t.session = s.session
                       AND t.turn = s.turns) AS subject
                   FROM sessions s WHERE (?1 IS NULL OR repo = ?1) ORDER BY last_at DESC, session LIMIT ?2""",
                repo,
                limit,
            )
        return [_listed(row) for row in found]

    def count(self, repo: str | None) -> int:
        """How many sessions there are."""
        with self._database.reading() as connection:
            [found] = rows(connection, "SELECT count(*) AS n FROM sessions WHERE (?1 IS NULL OR repo = ?1)", repo)
        return int(found["n"])

    def get(self, repo: str, session: str) -> dict[str, Any] | None:
        """The session with exactly that name, in the form of `all`, or None."""
        return next(iter(self._listed_where("session = CAST(? AS TEXT)", repo, raw_name(session))), None)

    def matching(self, repo: str, prefix: str) -> list[dict[str, Any]]:
        """The session with exactly that name, otherwise all whose names begin with it, newest first."""
        if exact := self.get(repo, prefix):
            return [exact]
        begin = raw_name(prefix)
        # UTF-8 has no byte 0xff, so every name that begins so lies below the second bound, and an index has them.
        between = "session >= CAST(? AS TEXT) AND session < CAST(? AS TEXT)"
        return self._listed_where(between, repo, begin, begin + b"\xff")

    def turns(self, repo: str, session: str) -> list[Turn]:
        """A session's turns, oldest first."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM turns WHERE repo = ? AND session = ? ORDER BY turn", repo, session)
        return [turn_of(row) for row in found]

    def unbooked(self) -> list[Unbooked]:
        """Applied pushes without a turn, oldest first, except those of sessions that have been ended since."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT a.id, a.repo, a.session, a.ref, a.new AS "commit", a.at, a.client, a.guest FROM audit_events a
                   JOIN audit_events o ON o.attempt = a.id AND o.outcome = 'applied'
                   WHERE a.session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.id = a.id)
                   AND a.id > coalesce((SELECT max(e.last_attempt) FROM session_ends e
                                        WHERE e.repo = a.repo AND e.session = a.session), 0)
                   ORDER BY a.id""",
            )
        return [Unbooked(**row) for row in found]

    def recorded(self, repo: str) -> list[RecordedTurn]:
        """Every turn of a repository that this node took, oldest first, including those that are not booked yet.

        Those of a session whose end has begun are left out, because their refs may be gone already.
        """
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT id, session, commit_id AS "commit" FROM turns t WHERE repo = ?1 AND away = 0
                   AND id > coalesce((SELECT last_attempt FROM ends_begun e
                                      WHERE e.repo = t.repo AND e.session = t.session), 0)
                   UNION ALL
                   SELECT a.id, a.session, a.new FROM audit_events a
                   WHERE a.repo = ?1 AND a.kind = 'attempt' AND a.verdict = 'accepted' AND a.session IS NOT NULL
                   AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.id = a.id)
                   AND EXISTS (SELECT 1 FROM audit_events o WHERE o.attempt = a.id AND o.outcome = 'applied')
                   AND a.id > coalesce((SELECT max(e.last_attempt) FROM session_ends e
                                        WHERE e.repo = a.repo AND e.session = a.session), 0)
                   AND a.id > coalesce((SELECT last_attempt FROM ends_begun e
                                        WHERE e.repo = a.repo AND e.session = a.session), 0)
                   ORDER BY id""",
                repo,
            )
        return [RecordedTurn(**row) for row in found]

    def archived(self, repo: str) -> set[str]:
        """The sessions whose refs are in the archive."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT session FROM sessions WHERE repo = ? AND archived", repo)
        return {row["session"] for row in found}

    def being_pushed(self, repo: str) -> set[str]:
        """The sessions with an accepted push whose outcome is not known yet."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT DISTINCT session FROM audit_events a
                   WHERE repo = ? AND kind = 'attempt' AND verdict = 'accepted' AND session IS NOT NULL
                   AND NOT EXISTS (SELECT 1 FROM audit_events o WHERE o.attempt = a.id)""",
                repo,
            )
        return {row["session"] for row in found}

    def keep(self, repo: str, session: str, kept: bool) -> None:
        """Exempts a session from retention, or ends the exemption, on every node of the fleet.

        Raises NotFound if there is none, and Conflict if it is too late to keep it, because its end has begun.
        """
        with self._database.writing() as connection:
            require_going_on(connection, repo, session, may_end=not kept)
            set_kept(connection, repo, session, kept)
            if node_name(connection) is not None:
                enqueue_kept(connection, repo, session, kept, time.time())

    def set_archived(self, repo: str, sessions: list[str], archived: bool) -> None:
        """Records that the refs of these sessions moved to the archive, or back."""
        with self._database.writing() as connection:
            for session in sessions:
                connection.execute(
                    "UPDATE sessions SET archived = ? WHERE repo = ? AND session = ?", [int(archived), repo, session]
                )

    def applied(self, repo: str, session: str) -> dict[int, str]:
        """The id and commit of every attempt that made a turn of the current session, booked or not, oldest first."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT a.id, a.new FROM audit_events a
                   JOIN audit_events o ON o.attempt = a.id AND o.outcome = 'applied'
                   WHERE a.repo = ?1 AND a.ref = ?2 AND a.session = ?3 AND a.id >
                       coalesce((SELECT max(e.last_attempt) FROM session_ends e
                                 WHERE e.repo = ?1 AND e.session = ?3), 0)
                   ORDER BY a.id""",
                repo,
                f"refs/agents/{session}",
                session,
            )
        return {int(row["id"]): str(row["new"]) for row in found}

    def extent(self, repo: str, session: str) -> tuple[dict[int, str], int]:
        """The turns of a session in their order, as id and commit, and the highest place in the fleet's order."""
        with self._database.reading() as connection:
            query = "SELECT id, commit_id, seq FROM turns WHERE repo = ? AND session = ? ORDER BY turn"
            found = rows(connection, query, repo, session)
        highest = max((row["seq"] for row in found if row["seq"] is not None), default=0)
        return {int(row["id"]): str(row["commit_id"]) for row in found}, highest

    def end(
        self, repo: str, ended: Mapping[str, int], reason: str, at: float, upto: Mapping[str, int] | None = None
    ) -> None:
        """Deletes sessions, each up to the given attempt, and adds a note with the reason to the audit log.

        Their refs must already be deleted. A turn later than that attempt stays, as the first of a new session, and so
        does one of another node whose place in the fleet's order is after `upto`. The whole fleet is told.
        """
        with self._database.writing() as connection:
            for session, last in ended.items():
                found = rows(connection, "SELECT * FROM sessions WHERE repo = ? AND session = ?", repo, session)
                if found:
                    end_session(connection, found[0], last, (upto or {}).get(session), reason, at)

    def end_all(self, repo: str, reason: str, at: float, *, own_only: bool = False) -> None:
        """Deletes every session of a repository whose mirror is removed, on every node of the fleet.

        With `own_only`, this node's turns alone: another node ended all that it knew, and what a third one took since
        is of the repository as it was added anew.
        """
        own = "EXISTS (SELECT 1 FROM turns t WHERE t.repo = s.repo AND t.session = s.session AND t.away = 0)"
        with self._database.writing() as connection:
            chosen = f"SELECT * FROM sessions s WHERE repo = ? AND ({own} OR ?)"
            for row in rows(connection, chosen, repo, int(not own_only)):
                [newest] = rows(
                    connection,
                    "SELECT max(id) AS id FROM audit_events WHERE repo = ? AND session = ?",
                    repo,
                    row["session"],
                )
                end_session(connection, row, newest["id"] or 0, 0 if own_only else None, reason, at)

    def without_turn(self, repo: str, attempts: Mapping[int, str]) -> list[int]:
        """The ids in `attempts` (id to commit) that certainly have no turn.

        Their push failed, or its session has been ended since. An id that the log knows with another commit is not
        returned.
        """
        settled = """SELECT a.id FROM audit_events a JOIN audit_events o ON o.attempt = a.id
            WHERE a.id = ?1 AND a.repo = ?2 AND a.new = ?3 AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.id = a.id)
            AND (o.outcome = 'failed' OR EXISTS (SELECT 1 FROM session_ends e WHERE e.repo = a.repo
                 AND e.session = a.session AND e.last_attempt >= a.id))"""
        with self._database.reading() as connection:
            return [number for number, commit in attempts.items() if rows(connection, settled, number, repo, commit)]

    def not_away(self, repo: str, turns: Mapping[int, str]) -> list[int]:
        """The ids in `turns` (id to commit) under which there is no such turn of another node."""
        known = "SELECT 1 FROM turns WHERE id = ? AND repo = ? AND commit_id = ? AND away = 1"
        with self._database.reading() as connection:
            return [number for number, commit in turns.items() if not rows(connection, known, number, repo, commit)]

    def recorded_bytes(self) -> int:
        """The total size of all packs and attachments that this node recorded, in bytes."""
        packs = "SELECT sum(bytes) FROM sessions) - (SELECT coalesce(sum(bytes), 0) FROM turns WHERE away = 1"
        files = "SELECT sum(size) FROM turn_attachments a JOIN turns t ON t.id = a.turn_id AND t.away = 0"
        with self._database.reading() as connection:
            [total] = rows(connection, f"SELECT coalesce(({packs}), 0) + coalesce(({files}), 0) AS n")
        return int(total["n"])

    def packs_by_repo(self) -> dict[str, int]:
        """The size of the packs that this node recorded of each repository that has any, in bytes."""
        away = "SELECT coalesce(sum(bytes), 0) FROM turns t WHERE t.away = 1 AND t.repo = s.repo"
        query = f"SELECT repo, sum(bytes) - ({away}) AS n FROM sessions s GROUP BY repo"
        with self._database.reading() as connection:
            return {row["repo"]: int(row["n"]) for row in rows(connection, query)}

    def count_by_repo(self) -> dict[str, int]:
        """Returns how many sessions each repository has; those that have none are left out."""
        with self._database.reading() as connection:
            return {
                row["repo"]: row["n"]
                for row in rows(connection, "SELECT repo, count(*) AS n FROM sessions GROUP BY repo")
            }

    def turn_count(self, repo: str, session: str) -> int:
        """How many turns of a session this node took; 0 if there is no such session."""
        query = "SELECT count(*) AS n FROM turns WHERE repo = ? AND session = ? AND away = 0"
        with self._database.reading() as connection:
            [found] = rows(connection, query, repo, session)
        return int(found["n"])

    def _listed_where(self, condition: str, repo: str, *values: Any) -> list[dict[str, Any]]:
        with self._database.reading() as connection:
            found = rows(
                connection,
                f"SELECT {_LISTED} FROM sessions WHERE repo = ? AND {condition} ORDER BY last_at DESC, session",
                repo,
                *values,
            )
        return [_listed(row) for row in found]


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"kept": bool(row["kept"]), "archived": bool(row["archived"])}
