"""Finds damage to mirrors before a guest meets it, and heals it.

- `recorded_refs`: the refs of sessions and turns that the database knows and a mirror must have.
- `mirror_files`: reads a mirror's files without git. `inspection`: `look` compares refs and files and takes
  milliseconds; `inspect` also has git check the objects.
- `file_repairs`: mends the files of a mirror in place. `salvage`: takes every readable object out of damaged ones.
- `evidence`: keeps what was damaged. `exchange`: puts one repository in another's place. `healing`: mends one mirror.
- `schedule`: pure rules for when a mirror is looked at, inspected and healed. `watch`: does so while `serve` runs.
- `examination`: the same for one command without `serve`. `compose`: builds the healer and the watch.

The life of damage: git says something about a broken object, a look after a refresh misses a ref, or an inspection by
night finds it. The mirror is inspected, its `damage` is in `status`, and it is healed at once: files in place, recorded
refs from the database. If objects are missing, the upstream is fetched into a new repository beside the mirror, and
everything readable of sessions, turns and anchors goes over, from the old mirror, then from the backup and evidence.
The new one takes the old one's place in one rename. When that does not suffice, each next heal comes later.

Invariants: one mirror is inspected or healed at a time, at low priority. An inspection that git could not make is never
damage. No heal without the database. A heal never ends a session, and one unreadable turn never costs another. Nothing
is deleted before it is in evidence. A kill at any moment leaves the old mirror or the new one, and the next heal ends
where the first would have.
"""
