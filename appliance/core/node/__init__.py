"""A node as the commands and the live view see it, whether or not `serve` runs on it.

- `node`: the interface. `current()` checks once whether a `serve` runs and returns one of the next two.
- `running`: calls the API of `serve` over the control socket (`api/client`).
- `offline`: reads the database, and does in this process whatever does not need `serve`.
- `registration`: the steps of adding and removing a repository, the same for `serve` and for `offline`.
- `examining`: inspects and heals mirrors without `serve`. `searching`: reads turns for a search without `serve`.
- `sessions`: what agents did: turns, diffs, a checkout. `queries`: what the live view reads, piece by piece.
- `callers_files`: writes outside the state directory, as whoever called.
- `state_dir`: opens what is in a state directory: stores, git, keyring, privacy.
- `explanations`: what to do about a refresh that failed or a push that was refused.
- `storage`: how much disk space the state directory takes, by purpose. `figures`: what the node did over time.
- `salvage`: the repositories to serve while the database cannot be read.

A command: the command line makes a `Node` from `--state` and `--config`, calls the operation on `current()`, and prints
what it returns. In a running `serve`, a route of `core/api` answers with `daemon/operations`.

What always holds: no operation checks twice whether `serve` runs. `running` and `offline` return documents of the same
form. A command that only reads creates no database.
"""
