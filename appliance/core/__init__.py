"""What gitmirror does, with no command line, no terminal and no printing.

The rooms, from the ground up; each imports only what stands below it (`[tool.importlinter]` in pyproject.toml):

- `errors`, `units`, `models`, `names`, `layout`, `health`, `upstream`: plain data and pure functions that every room
  uses. No input or output.
- `config`: the settings. `process`: child processes, and which process owns a state directory.
- `git`: mirrors on disk. `store`: the SQLite database. `access`: who may read which mirror.
- `refresh`: keeps mirrors equal to their upstreams. `recording`: decides what guests may push, and logs it.
  `workspace`: builds and keeps snapshots. `maintenance`: repacks mirrors. These four do not import each other.
- `observability`: events, alerts, metrics. `serving`: the servers that guests and operators connect to.
- `node`: the interface for commands and the live view. `daemon`: composes one `serve` from all the rooms. `ops`:
  doctor, install.

Invariants: a room reports to the rooms above it by events, never by calling upwards. An error that a person may see
is a GitmirrorError whose `hint` says what to do. Slow work runs in a child process or a thread, so that the event
loop never blocks.
"""
