"""The schema, as numbered steps. Append only: a released step never changes."""

from __future__ import annotations

# Steps are applied in the order in which they are declared, so these come first.
import appliance.core.store.first_migrations  # noqa: F401
from appliance.core.store.steps import MIGRATIONS, step

__all__ = ["MIGRATIONS"]

step(
    "0010_disks",
    # `repo_id` is the registration, as for read tokens; a lease itself outlives it, because its drives are in use.
    """CREATE TABLE disk_leases (
        id TEXT PRIMARY KEY,
        repo TEXT NOT NULL,
        repo_id INTEGER NOT NULL,
        branch TEXT NOT NULL,
        commit_id TEXT NOT NULL,
        form TEXT NOT NULL,
        generation INTEGER NOT NULL,
        name TEXT NOT NULL,
        guest TEXT,
        of_tip INTEGER NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        released_at REAL
    )""",
    "CREATE INDEX disk_leases_by_repo ON disk_leases (repo_id, created_at)",
)

step(
    "0011_guests",
    # See store/chain.py: events that are there stay in version 1 of the hashed form.
    "ALTER TABLE audit_events ADD COLUMN version INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE audit_events ADD COLUMN guest TEXT",
    "ALTER TABLE audit_events ADD COLUMN digest TEXT",
    "ALTER TABLE turns ADD COLUMN guest TEXT",
    "ALTER TABLE sessions ADD COLUMN guest TEXT",
    "ALTER TABLE hydrations ADD COLUMN guest TEXT",
    """CREATE TABLE guests (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        only INTEGER NOT NULL,
        unix TEXT UNIQUE,
        address TEXT UNIQUE,
        hash TEXT UNIQUE,
        created_at REAL NOT NULL,
        expires_at REAL
    )""",
    """CREATE TABLE guest_sessions (
        guest_id INTEGER NOT NULL REFERENCES guests(id) ON DELETE CASCADE,
        session TEXT NOT NULL,
        PRIMARY KEY (guest_id, session)
    ) WITHOUT ROWID""",
    # `repo_id` is the registration, as for read tokens: what is registered later under the name is another repository.
    """CREATE TABLE guest_repos (
        guest_id INTEGER NOT NULL REFERENCES guests(id) ON DELETE CASCADE,
        repo TEXT NOT NULL,
        repo_id INTEGER NOT NULL,
        PRIMARY KEY (guest_id, repo)
    ) WITHOUT ROWID""",
    # The files that `serve` bound, so that it never removes one of somebody else, not even after a kill.
    """CREATE TABLE guest_sockets (
        guest_id INTEGER NOT NULL REFERENCES guests(id) ON DELETE CASCADE,
        path TEXT NOT NULL UNIQUE,
        identity TEXT NOT NULL
    )""",
    "CREATE INDEX hydrations_by_guest ON hydrations (guest, id) WHERE guest IS NOT NULL",
    "CREATE INDEX turns_by_guest ON turns (guest, id) WHERE guest IS NOT NULL",
)

step(
    "0012_turn_details",
    # By the id of the attempt, because notes are stored before the push, and its turn is recorded after it.
    """CREATE TABLE turn_notes (
        turn_id INTEGER NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (turn_id, key)
    ) WITHOUT ROWID""",
    """CREATE TABLE turn_attachments (
        turn_id INTEGER NOT NULL REFERENCES turns(id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        size INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (turn_id, name)
    ) WITHOUT ROWID""",
    """CREATE TRIGGER turn_notes_end AFTER DELETE ON turns BEGIN
        DELETE FROM turn_notes WHERE turn_id = OLD.id;
    END""",
)

step(
    "0013_allowed",
    # SQLite cannot change the CHECK of `repos`, which knows two sources, without deleting every repository's health.
    """CREATE TABLE allowed_repos (
        repo_id INTEGER PRIMARY KEY REFERENCES repos(id) ON DELETE CASCADE,
        expire_after REAL NOT NULL,
        used_at REAL NOT NULL
    )""",
    # Names that ended and whose files are still to be deleted.
    "CREATE TABLE allowed_ends (name TEXT PRIMARY KEY) WITHOUT ROWID",
)

step(
    "0014_whole_disks",
    # None without submodules, so that leases from before have none.
    "ALTER TABLE disk_leases ADD COLUMN modules TEXT",
    "ALTER TABLE disk_leases ADD COLUMN missing TEXT",
)

step(
    "0015_fleet",
    # `node` took the turn; NULL means that this one did, before it was in a fleet. `seq` is the turn's place in the
    # fleet's order, NULL while the fleet does not have it. `uid` is the turn's name in the fleet: the hash of its
    # attempt in the log of the node that took it. A turn that is `away` was taken by another node; its id is above
    # every audit id, and its objects may not be here.
    "ALTER TABLE turns ADD COLUMN node TEXT",
    "ALTER TABLE turns ADD COLUMN seq INTEGER",
    "ALTER TABLE turns ADD COLUMN uid TEXT",
    "ALTER TABLE turns ADD COLUMN away INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX turns_to_send ON turns (id) WHERE seq IS NULL AND away = 0",
    "ALTER TABLE sessions ADD COLUMN node TEXT",
    "ALTER TABLE turn_attachments ADD COLUMN sent INTEGER NOT NULL DEFAULT 0",
    # The row of each turn as it stands in the fleet's stream, with the names of its objects.
    """CREATE TABLE fleet_turns (
        uid TEXT PRIMARY KEY,
        turn_id INTEGER NOT NULL REFERENCES turns(id) ON DELETE CASCADE,
        document TEXT NOT NULL
    ) WITHOUT ROWID""",
    # Turns that were ended before the fleet had given them a place, so that they do not come back.
    "CREATE TABLE fleet_ended (uid TEXT PRIMARY KEY) WITHOUT ROWID",
    # The registry as this node last saw it in the fleet: the revision and the document of each name.
    """CREATE TABLE fleet_repos (
        name TEXT PRIMARY KEY,
        revision INTEGER NOT NULL,
        document TEXT NOT NULL
    ) WITHOUT ROWID""",
    # Ends, keeps and changes of the registry that wait to go out, in order.
    """CREATE TABLE fleet_outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        document TEXT NOT NULL,
        created_at REAL NOT NULL
    )""",
    # Which streams this node knows, and how far it has read each.
    "CREATE TABLE fleet_state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)

step(
    "0016_turns_of_others",
    # Turns of other nodes have no event in this node's log. SQLite would rebuild the table for that, which empties the
    # tables that refer to it; its manual has this way for constraints, which change nothing in the rows.
    "PRAGMA writable_schema = ON",
    """UPDATE sqlite_master SET sql = replace(sql, 'PRIMARY KEY REFERENCES audit_events(id)', 'PRIMARY KEY')
       WHERE type = 'table' AND name = 'turns'""",
    # SQLite 3.34 takes RESET for OFF; see Database._open.
    "PRAGMA writable_schema = RESET",
    "UPDATE turns SET uid = (SELECT hash FROM audit_events a WHERE a.id = turns.id)",
    # Last, because hashes that enter an index one by one take three times as long: 5 s for 100,000 turns.
    "CREATE UNIQUE INDEX IF NOT EXISTS turns_by_uid ON turns (uid) WHERE uid IS NOT NULL",
    "CREATE INDEX turns_away ON turns (repo, bytes) WHERE away = 1",
    "CREATE INDEX fleet_turns_by_turn ON fleet_turns (turn_id)",
    # Which sessions the fleet keeps, also those whose turns are not here yet.
    """CREATE TABLE fleet_kept (
        repo TEXT NOT NULL,
        session TEXT NOT NULL,
        PRIMARY KEY (repo, session)
    ) WITHOUT ROWID""",
    # Turns of sessions that another node ended, whose refs are still to be deleted here.
    """CREATE TABLE fleet_leftovers (
        repo TEXT NOT NULL,
        session TEXT NOT NULL,
        turn_id INTEGER NOT NULL,
        commit_id TEXT NOT NULL,
        PRIMARY KEY (repo, session, turn_id)
    ) WITHOUT ROWID""",
)

step(
    "0017_what_waits",
    # What waits is counted every few seconds, so it is found without a look at all that was ever recorded.
    "DROP INDEX turns_to_send",
    "CREATE INDEX turns_to_send ON turns (repo, session, id, at) WHERE seq IS NULL AND away = 0",
    "CREATE INDEX attachments_to_send ON turn_attachments (turn_id, name) WHERE sent = 0",
    "CREATE INDEX attachments_by_sha256 ON turn_attachments (sha256)",
)

step(
    "0018_outcomes_of_hydrations",
    # Rows from before do not say how they ended.
    "ALTER TABLE hydrations ADD COLUMN outcome TEXT NOT NULL DEFAULT 'complete'",
)

step(
    "0019_figures",
    # `times` counts the hydrations by how long they took; see store/histogram.py.
    """CREATE TABLE figures (
        step INTEGER NOT NULL,
        at INTEGER NOT NULL,
        hydrations INTEGER NOT NULL,
        warm INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        refreshes INTEGER NOT NULL,
        failures INTEGER NOT NULL,
        times TEXT NOT NULL,
        PRIMARY KEY (step, at)
    ) WITHOUT ROWID""",
)

step(
    "0020_ends_begun",
    # Sessions whose refs are being deleted, so that a kill before their rows are gone does not look like a loss.
    """CREATE TABLE ends_begun (
        repo TEXT NOT NULL,
        session TEXT NOT NULL,
        last_attempt INTEGER NOT NULL,
        upto INTEGER NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (repo, session)
    ) WITHOUT ROWID""",
)
