"""The first nine steps of the schema: repositories, the audit log, sessions and tokens. None is added here any more."""

from __future__ import annotations

from appliance.core.store.steps import step

step(
    "0001_registry",
    # AUTOINCREMENT never reuses an id, so every cache treats a repository that was added again as a new one.
    """CREATE TABLE repos (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        url TEXT NOT NULL,
        branch TEXT,
        source TEXT NOT NULL CHECK (source IN ('config', 'cli')),
        interval REAL,
        enabled INTEGER NOT NULL DEFAULT 1,
        listed INTEGER NOT NULL DEFAULT 1,
        created_at REAL NOT NULL
    )""",
    """CREATE TABLE health (
        repo_id INTEGER PRIMARY KEY REFERENCES repos(id) ON DELETE CASCADE,
        tip TEXT,
        head TEXT,
        verified_at REAL,
        checked_at REAL,
        last_error TEXT,
        failures INTEGER NOT NULL DEFAULT 0,
        cloned INTEGER NOT NULL DEFAULT 0,
        refs INTEGER NOT NULL DEFAULT 0,
        size INTEGER NOT NULL DEFAULT 0,
        sessions INTEGER NOT NULL DEFAULT 0,
        next_due REAL NOT NULL DEFAULT 0,
        maintained_at REAL
    )""",
    """CREATE TABLE refreshes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        repo TEXT NOT NULL,
        started_at REAL NOT NULL,
        duration REAL NOT NULL,
        result TEXT NOT NULL,
        moved TEXT NOT NULL,
        error TEXT
    )""",
    "CREATE INDEX refreshes_by_repo ON refreshes (repo, id)",
    """CREATE TABLE anchors (
        repo_id INTEGER NOT NULL REFERENCES repos(id) ON DELETE CASCADE,
        ref TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (repo_id, ref)
    )""",
)

step(
    "0002_audit",
    """CREATE TABLE audit_events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL CHECK (kind IN ('attempt', 'outcome', 'note')),
        at TEXT NOT NULL,
        attempt INTEGER REFERENCES audit_events(id),
        push TEXT NOT NULL,
        repo TEXT NOT NULL,
        session TEXT,
        ref TEXT NOT NULL,
        old TEXT,
        new TEXT,
        verdict TEXT CHECK (verdict IN ('accepted', 'rejected')),
        outcome TEXT CHECK (outcome IN ('applied', 'failed')),
        reason TEXT,
        client TEXT NOT NULL,
        prev TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE
    )""",
    "CREATE UNIQUE INDEX audit_outcomes ON audit_events (attempt) WHERE attempt IS NOT NULL",
    "CREATE INDEX audit_by_ref ON audit_events (repo, ref, id)",
    # The hash chain reveals tampering; these triggers stop mistakes.
    """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit_events
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    """CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit_events
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    # INSERT OR REPLACE deletes rows without firing the trigger above.
    """CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit_events
        WHEN EXISTS (SELECT 1 FROM audit_events WHERE id = NEW.id OR hash = NEW.hash)
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
)

step(
    "0003_activity",
    """CREATE TABLE hydrations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        repo TEXT NOT NULL,
        want TEXT NOT NULL,
        wants INTEGER NOT NULL,
        shape TEXT NOT NULL,
        way TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        first_byte REAL NOT NULL,
        seconds REAL NOT NULL,
        client TEXT NOT NULL,
        protocol TEXT NOT NULL
    )""",
    "CREATE INDEX hydrations_by_repo ON hydrations (repo, id)",
)

step(
    "0004_sessions",
    """CREATE TABLE turns (
        id INTEGER PRIMARY KEY REFERENCES audit_events(id),
        repo TEXT NOT NULL,
        session TEXT NOT NULL,
        turn INTEGER NOT NULL,
        commit_id TEXT NOT NULL,
        base TEXT,
        at TEXT NOT NULL,
        subject TEXT NOT NULL,
        commits INTEGER NOT NULL,
        files_changed INTEGER NOT NULL,
        insertions INTEGER NOT NULL,
        deletions INTEGER NOT NULL,
        client TEXT NOT NULL,
        bytes INTEGER NOT NULL
    )""",
    "CREATE UNIQUE INDEX turns_by_session ON turns (repo, session, turn)",
    """CREATE TABLE sessions (
        repo TEXT NOT NULL,
        session TEXT NOT NULL,
        ref TEXT NOT NULL,
        tip TEXT NOT NULL,
        base TEXT,
        turns INTEGER NOT NULL,
        commits INTEGER NOT NULL,
        files_changed INTEGER NOT NULL,
        insertions INTEGER NOT NULL,
        deletions INTEGER NOT NULL,
        first_at TEXT NOT NULL,
        last_at TEXT NOT NULL,
        client TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        kept INTEGER NOT NULL DEFAULT 0,
        archived INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (repo, session)
    )""",
    "CREATE INDEX sessions_by_time ON sessions (last_at)",
    """CREATE TABLE session_ends (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        repo TEXT NOT NULL,
        session TEXT NOT NULL,
        last_attempt INTEGER NOT NULL
    )""",
    "CREATE INDEX session_ends_by_name ON session_ends (repo, session)",
)

step(
    "0005_freshness",
    "ALTER TABLE health ADD COLUMN error_kind TEXT",
    "ALTER TABLE health ADD COLUMN retry_at REAL",
    "ALTER TABLE refreshes ADD COLUMN kind TEXT",
    # The last alert sent about a repository that is stale or failing. No row means none, or that it is healthy again.
    """CREATE TABLE alerts (
        repo_id INTEGER PRIMARY KEY REFERENCES repos(id) ON DELETE CASCADE,
        state TEXT NOT NULL,
        kind TEXT,
        since REAL NOT NULL
    )""",
)

step(
    "0006_read_tokens",
    # Tokens belong to a registration, not to a name: a repository that is registered again starts without tokens.
    """CREATE TABLE read_tokens (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        repo_id INTEGER NOT NULL,
        repo TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE,
        note TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        last_used_at REAL,
        revoked_at REAL
    )""",
)

step(
    "0007_trusted_time",
    "CREATE TABLE trusted_time (id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL)",
)

step(
    "0008_integrity",
    "ALTER TABLE health ADD COLUMN damage TEXT",
    "ALTER TABLE health ADD COLUMN inspected_at REAL",
    "ALTER TABLE health ADD COLUMN verified_whole_at REAL",
)

step(
    "0009_api",
    """CREATE TABLE api_tokens (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        scope TEXT NOT NULL CHECK (scope IN ('read', 'operate')),
        hash TEXT NOT NULL UNIQUE,
        created_at REAL NOT NULL,
        expires_at REAL,
        last_used_at REAL,
        revoked_at REAL
    )""",
    # What sessions are found by (decision 029). The rows of a turn end with it.
    "ALTER TABLE turns ADD COLUMN searchable INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX turns_to_index ON turns (id) WHERE searchable = 0",
    # The text is last, because SQLite does not read the pages of a long one for the columns before it.
    """CREATE TABLE turn_texts (
        turn_id INTEGER PRIMARY KEY REFERENCES turns(id) ON DELETE CASCADE,
        paths INTEGER NOT NULL,
        known_to BLOB,
        text TEXT NOT NULL
    )""",
    # A BLOB, because git allows any bytes in a path, and because bytes have the order that a prefix needs.
    """CREATE TABLE turn_paths (
        turn_id INTEGER NOT NULL REFERENCES turn_texts(turn_id) ON DELETE CASCADE,
        path BLOB NOT NULL,
        PRIMARY KEY (turn_id, path)
    ) WITHOUT ROWID""",
)
