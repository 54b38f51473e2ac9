"""Processes: the children of this one, and which process owns a state directory.

- `children`: starts a child in a process group of its own, records it on disk, and ends the whole group.
- `run`: runs one child to its end, with a deadline and a bound on what it says.
- `owner`: the lock that one `serve` (or one command without it) holds on a state directory, and taking it over from
  an owner that was killed.
- `control`: how any other process asks the owner: one JSON document a line over a unix socket.

A child: it inherits an open lock file, and a record of its process group is written as soon as it runs. It is ended
by TERM, a deadline, then KILL. When the owner itself is killed, the next owner finds the records, ends what is left,
and goes on only when the inherited lock is free, which proves that no child lives.

What always holds: nobody removes git's stale locks or half-written packs while a child of an earlier owner may still
write. A signal is sent only to a process that is known to be ours: its start time is compared.
"""
