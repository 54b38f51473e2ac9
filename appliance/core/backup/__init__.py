"""Copies what exists on this node alone into a directory elsewhere, and builds a state directory from it again.

- `manifest`: what one backup consists of. `directory`: the files of all backups, how each is written and removed.
- `database_copy`: the database as of one moment. `recordings`: which refs of a mirror are recorded work.
- `bundles`: git bundles of recorded objects. `writer`: makes one backup. `schedule`: makes them while `serve` runs.
- `verification`: proves that backups can be restored. `restoring`: restores one. `scratch`: git for these two.

A backup: the database is copied first and the refs are read afterwards, so every turn that the copied log calls applied
has its commit. What no bundle holds yet goes into a new one: first the upstream's history that the turns stand on, then
the turns. Everything is read back, and the manifest that names it all is written last. Then old backups are removed,
and files that no manifest names.

What always holds: a backup counts once its manifest is there, and a manifest names every file with its size and
SHA-256. A bundle that is there is never written again. The bundles of a manifest need nothing from any upstream. What
cannot be read is not guessed: a damaged mirror keeps what earlier bundles hold, and a damaged manifest keeps all files.
A directory with the backups of another log is refused.
"""
