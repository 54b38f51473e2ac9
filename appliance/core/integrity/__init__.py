"""Finds damage to mirrors before a guest meets it, and heals it.

- `recorded_refs`: the refs that the database knows and a mirror must have: sessions, the archive, turns.
- `inspection`: `look` compares refs and takes milliseconds; `inspect` also has git check the objects.
- `healing`: mends one mirror, step by step, and names what could not be saved.
- `schedule`: pure rules: when a mirror is looked at, inspected and healed.
- `watch`: does all of this while `serve` runs. `examination`: the same for one command without `serve`.
- `compose`: builds the healer and the watch.

The life of damage: git says something about a broken object while it serves, refreshes or records, a look after a
refresh misses a ref, or an inspection by night finds it. The mirror is then inspected, its `damage` is in `status`, and
it is healed at once. Guests are meanwhile served from what is right. When a heal does not suffice, the state stays
`damaged` and the next heal comes later, each time later.

Invariants: one mirror is inspected or healed at a time, at low priority. An inspection that git could not make is never
damage. No heal without the database, because only it knows what was recorded. A heal never ends a session.
"""
