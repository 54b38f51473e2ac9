"""A node as its commands and the live view see it, whether or not `serve` runs on it.

- `node`: the face. `current()` looks once whether a `serve` runs, and answers with one of the next two.
- `running`: asks `serve`, over the control socket (`process/control`).
- `offline`: reads the database, and does by itself what needs no `serve`.
- `registration`: what adding and removing a repository is; `serve` and `offline` take the same steps.
- `sessions`: what agents did: turns, diffs, a checkout. `queries`: what a view that stays open reads, piece by piece.
- `state_dir`: what lies in a state directory, opened: stores, git, keyring, privacy.

A command: the command line makes a `Node` of `--state` and `--config`, asks `current()` for the operation, and prints
what it returns. `serve` answers the other end with the handlers of `daemon/handlers`.

What always holds: no operation looks twice whether `serve` runs, and none writes beside a running one. Both ways of
an operation return the same document. What only looks makes no database.
"""
