"""Pushes: carried between a guest and `git receive-pack`.

- `relay`: reads a push's ref commands, asks the PushAuthority, and only then lets anything through; the same for both
  ports. `parties`: the guest and the PushAuthority, as the relay knows them. `whereabouts`: which mirror a child is in.
- `http`: the guest's side of a push over HTTP.

A push: the advertisement goes out. The ref commands come in, and the PushAuthority decides on them and logs the
attempt. If it accepts, the commands and the pack go to receive-pack, whose report is held back until the outcome is in
the audit log. If it refuses, the guest's pack is read and discarded, so that the guest's git reads the reason. So is
that of a push whose receive-pack is in a mirror that was replaced since it started: it fails, and moves nothing.

What always holds: receive-pack sees no byte of a push before the decision is logged. It always has a peer that reads to
the end, because it could otherwise stop between moving a ref and reporting it. A guest may disconnect at any byte.
`recording` decides; nothing here knows its rules.
"""
