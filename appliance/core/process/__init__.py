"""Processes: the children of this process, and which process owns a state directory.

- `children`: starts a child in a process group of its own, records it on disk, and ends the whole group.
- `run`: runs one child to its end, with a deadline and a limit on its output. `error_output`: a bounded part of the
  stderr of a child whose output goes elsewhere.
- `owner`: the lock that one `serve` (or one command without it) holds on a state directory, and taking it over from
  an owner that was killed.
- `left_behind`: a process that stays whoever called, once the command has become the owner of the state directory.
- `control_socket`: how other processes connect to the owner. What they say there is `core/api`.
- `disk`: how many bytes and inodes are free, the warning when that is too little, and what files take.
- `cold`: what may be removed when the disk is short, and which files are being sent just now.
- `checked_file`: checks that a file that is written once and sent many times has not changed.
- `pager`: shows output a screen at a time.
- `memory`: returns unused memory to the kernel.
- `cancellable`: waiting for a library that may swallow a cancellation.
- `endurance`: how a background loop survives expected errors: it logs each cause once and goes on.

The life of a child: it inherits an open lock file, and a record of its process group is written as soon as it runs. It
is ended by TERM, a deadline, then KILL. When the owner itself is killed, the next owner finds the records, ends the
processes that are left, and continues only when the inherited lock is free, which proves that no child lives.

Invariants: git's stale locks and half-written packs are never removed while a child of an earlier owner may still
write. A process of an earlier owner is signalled only when it, or the leader of its group, has the lock open.
"""
