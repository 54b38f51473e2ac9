"""What gitmirror does, with no command line, no terminal and no printing.

The rooms, from the ground up; each imports only what stands below it (`[tool.importlinter]` in pyproject.toml):

- `errors`, `units`, `models`, `names`, `layout`, `health`, `upstream`: what every room speaks of. Plain data and pure
  functions, no input or output.
- `config`: the settings. `process`: child processes, and which process owns a state directory.
- `git`: mirrors on disk. `store`: what is kept in SQLite. `access`: who may read which mirror.
- `refresh`: keeps mirrors equal to their upstreams. `recording`: what guests may write, and the log of it.
  `workspace`: ready workspaces. `maintenance`: repacks. These four do not know each other.
- `observability`: events, alerts, metrics. `serving`: what guests talk to.
- `node`: the face for commands and the live view. `daemon`: one `serve`, composed of all of it. `ops`: doctor,
  install.

What always holds: a room tells another of what happened by an event, never by a call upwards. An error that a person
may see is a GitmirrorError, with what to do in its `hint`. What is slow runs in a child process or a thread, so that
the loop never waits.
"""
