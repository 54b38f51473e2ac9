"""Finds damage to mirrors, and heals it from the upstream, the database and the backup.

- `recorded_refs`: the refs of sessions and turns that the database knows and a mirror must have.
- `mirror_files`: reads a mirror's files without git, and says what is wrong with them.
- `inspection`: `look` compares refs and files and costs milliseconds; `inspect` also has git check the objects.
- `file_repairs`: mends HEAD, config, the files of refs and what git derives from packs, in place.
- `salvage`: takes every readable object out of damaged repositories and backups, ref by ref.
- `evidence`: keeps what was damaged, under a budget. `exchange`: puts one repository in another's place.
- `healing`: mends one mirror, step by step.

The life of a heal: files are mended in place, and recorded refs are put back where their objects are there. If objects
are missing, the upstream is fetched into a new repository beside the mirror. Everything readable of the sessions, turns
and anchors goes over, from the old mirror first and from the backup then. It takes the mirror's place in one rename.

Invariants: nothing is deleted before it is in evidence. An object goes over only after git has computed its hash anew.
One unreadable turn never costs another. A kill at any moment leaves the old mirror or the new one, whole under its
name, and a second heal ends where the first would have. Only the repository in question is ever written to.
"""
