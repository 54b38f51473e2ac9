"""Finds damage to mirrors before a guest meets it, and heals it.

- `recorded_refs`: the refs of sessions and turns that the database knows and a mirror must have.
- `mirror_files`: reads a mirror's files without git. `inspection`: `look` compares refs and files and takes
  milliseconds; `inspect` also has git check the objects.
- `file_repairs`: mends the files of a mirror in place. `salvage`: takes every readable object out of damaged ones.
- `evidence`: keeps what was damaged. `exchange`: puts one repository in another's place. `healing`: mends one mirror.
- `schedule`: pure rules for when a mirror is looked at, inspected and healed. `watch`: does so while `serve` runs.
- `examination`: the same for one command without `serve`. `compose`: builds the healer and the watch.

The life of damage: git reports a broken object, the look after a refresh finds a ref missing, or an inspection at night
finds a fault. The mirror is inspected, `status` shows its `damage`, and it is healed at once: files in place, recorded
refs from the database. If objects are missing, the upstream is fetched into a new repository beside the mirror, and
everything readable of sessions, turns and anchors is copied into it, from the old mirror, then from the backup and the
evidence. The new mirror replaces the old one in one rename. If that does not suffice, the heal is tried again after
longer and longer pauses.

Invariants: one mirror is inspected or healed at a time, at low priority. An inspection that git could not finish never
counts as damage. Without the database, nothing is healed. A heal never ends a session, and one unreadable turn never
costs another. Nothing is deleted before a copy is in the evidence directory. A kill at any moment leaves the old mirror
or the new one, and the next heal reaches the same result.
"""
