"""The three ports: git:// and HTTP for guests, HTTP for operators and webhooks.

- `git`: git://. Protocol v2 is answered command by command, everything else is one request per connection.
  `git_daemon`: the child that speaks v0 and v1 and takes pushes.
- `smart_http`: git over HTTP. `guest_routes`: the snapshot, the freshness and the guest kit beside it. `freshness`: how
  far a mirror is behind; refreshes it when a guest asks for a commit that it lacks. `tar_codings`: whether a guest gets
  the snapshot gzipped.
- `wishes`: how a guest waits for a repository that is allowed and not here yet.
- `admin_routes`: `/readyz` and `/metrics`, requested refreshes, and webhooks. `webhook` reads the latter; it is pure.

A fetch over HTTP: the port reads the head under a deadline and has the gate find the repository for this guest. It
reads the body without holding a slot, and asks the gate again if the catalog was replaced meanwhile. Then it waits for
a slot and has the engine answer. An error before the first byte becomes a status and a sentence; a later one cuts the
connection.

What always holds: a path that this guest may not read and one that nobody registered get the same bytes. A guest that
sends its request slowly holds no slot. No part of a webhook's body is used before its signature is verified. The admin
port serves no git.
"""
