"""Keeping mirrors small and quick, while guests fetch and push.

- `maintainer`: looks where packs and loose objects pile up, repacks by need, everything once a night, and writes the
  commit-graph.
- `anchors`: when an old value of a ref may go; pure.

A repack: whoever moved refs marks the mirror. When it is cluttered enough and nobody works on it, the maintainer
takes its lock alone, repacks geometrically at low priority, and gives the place up as soon as a push wants in.

What always holds: one mirror at a time, and never beside a fetch or a push of the same mirror. Nothing that a guest
may still ask for is deleted: what a ref pointed at is held by an anchor for days, a recorded turn by its own ref.
git's own automatic maintenance is off everywhere, since it would race with both.
"""
