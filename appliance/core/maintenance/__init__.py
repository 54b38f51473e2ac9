"""Keeps mirrors small and fast while guests fetch and push.

- `maintainer`: finds mirrors in which packs and loose objects pile up, repacks them as needed, repacks each mirror
  completely once a night, and writes the commit-graph.
- `budget`: keeps the state directory within `[storage] budget`. `usage` measures it, and rooms say what can go
  (`process/cold`).
- `scrub`: reads cached files again, slowly, because a disk may corrupt files that nobody touched.
- `anchors`: decides when an old value of a ref may be deleted; pure.

The life of a repack: a refresh or push that moved refs marks the mirror. When the mirror is cluttered enough, the
maintainer takes its exclusive lock and repacks it geometrically at low priority. A push ends the repack at once.

Invariants: one mirror at a time, and never at the same time as a fetch or a push of the same mirror. Nothing that a
guest may still ask for is deleted: an anchor holds every earlier value of a ref for days, and a recorded turn has a ref
of its own. git's automatic maintenance is off everywhere, because it would race with refreshes and pushes.
"""
