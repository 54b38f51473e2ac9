"""Everything that is stored in SQLite, in one file with a write-ahead log.

- `database`: opens the file, migrates it, and provides transactions; `faults`: what its errors mean. `migrations` and
  `first_migrations` are its numbered steps, declared with `steps`.
- `registry` (repositories), `health` (the state of each mirror, and the history of refreshes), `audit` and `chain` (the
  hash-chained log of pushes), `sessions` (sessions and turns), `activity` (hydrations), `tokens` (of guests,
  for private mirrors), `api_tokens` (of programs), `alerts`, `trusted_time` (the newest that retention relied on).
- `allowed_repos`: when repositories that guests brought were last used, and which of them have ended.
- `turn_index`: the paths and messages of turns; `session_search` finds sessions by them. `session_summary`: what
  follows from a session's turns. `cursors`: where a page of a list ended.
- `figures`: what the node did in each slot of time, with a `histogram` of how long it took.
- `told`: a file beside the database that names the newest reported audit event, so that a lost database is noticed.
- `stores`: all stores over one database. `known_names`: what a shell completes, read without a trace.
- `write_behind`: a queue that writes rows in batches when they may wait a second.

A row: a store turns plain data of `models` into columns inside one `BEGIN IMMEDIATE`, and back again. To add a column,
add a step at the end of `migrations` and a field in `models`, and fill it in the store.

What always holds: a released step never changes. The audit log is append-only, and an event is synced to disk before
anybody is told about it. An SQLite error becomes a StoreError that names the file and says what to do; nothing has
changed then. A file that was moved away or replaced is noticed before the next write.
"""
