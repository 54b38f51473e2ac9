"""What is kept in SQLite, in one file with a write-ahead log.

- `database`: opens the file, migrates it, and gives out transactions; `migrations` are its numbered steps.
- `registry` (repositories), `health` (what is known of each mirror, and the history of refreshes), `audit` (the
  hash-chained log of pushes), `sessions` (sessions and turns), `activity` (hydrations), `tokens`, `alerts`.
- `stores`: all of them over one database.
- `write_behind`: a queue for rows that may wait a second for others to come along, and are told of when stored.

A row: a store turns plain data of `models` into columns inside one `BEGIN IMMEDIATE`, and back again. A new column is
a new step at the end of `migrations`, a field in `models`, and the store that fills it.

What always holds: a step that was released never changes. The audit log is only ever appended to, and synced before
anybody is told. An error of SQLite's becomes a StoreError with the file and what to do; nothing was changed then. A
file that was moved away or replaced is noticed before the next write.
"""
