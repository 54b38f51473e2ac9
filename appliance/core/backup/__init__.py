"""Copies what exists only on this node into a directory elsewhere, and restores a state directory from it.

- `manifest`: what one backup consists of. `directory`: writes, reads and removes the files of all backups.
- `database_copy`: the database as of one moment. `recordings`: which refs of a mirror are recorded work.
- `bundles`: git bundles of recorded objects. `writer`: makes one backup. `schedule`: makes them while `serve` runs.
- `verification`: proves that backups can be restored, and `proof` remembers when it last did. `restoring`: restores
  one, its database first and then its `mirrors`. `takeover`: keeps turns that mirrors on disk have beyond the backup.
  `scratch`: git for all of these.

A backup: the database is copied first and the refs are read afterwards, so every turn that the copied log calls applied
has its commit. Objects that no bundle holds yet go into new bundles: first the upstream's history below the turns, then
the turns. Every file is read back, and the manifest that names them is written last. Then old backups and files that no
manifest names are removed.

Invariants: a backup counts once its manifest exists, and a manifest names every file with its size and SHA-256. An
existing bundle is never changed. The bundles of a manifest need nothing from any upstream. Nothing is guessed: if a
mirror is damaged, its earlier bundles stay in the backup; if a manifest is damaged, no file is removed. A directory
with the backups of another audit log is refused.
"""
