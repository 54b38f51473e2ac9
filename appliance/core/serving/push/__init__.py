"""Pushes: carried between a guest and `git receive-pack`.

- `relay`: reads a push's ref commands, asks the PushAuthority, and only then lets anything through; the same for both
  ports.
- `http`: the guest's side of a push over HTTP.

A push: the advertisement goes out; the ref commands come in and are ruled on, which also logs the attempt. When
accepted, commands and pack go to receive-pack and its report is held back until the outcome is in the log. When
refused, the guest's pack is read and thrown away, so that its git gets to read why.

What always holds: receive-pack sees nothing of a push before it was ruled on and logged. It always has a peer that
reads to the end, since it would otherwise stop between moving a ref and telling so. A guest may leave at any byte.
`recording` decides; nothing here knows its rules.
"""
