"""The three ports: git:// and HTTP for guests, HTTP for operators and webhooks.

- `git`: git://, one request a connection or, in protocol v2, command by command. `git_daemon`: the child that speaks
  v0 and v1, and takes pushes.
- `smart_http`: git over HTTP. `guest_routes`: the snapshot, the freshness and the guest kit beside it; `freshness`
  looks upstream when a guest misses a commit.
- `admin_routes`: what is looked at (`/readyz`, `/metrics`), refreshes that are asked for, and webhooks, which
  `webhook` reads; pure.

A fetch over HTTP: the port reads the head under a deadline, has the gate find the repository for this guest, reads the
body while it holds no place, asks the gate again when the catalog was replaced meanwhile, waits for a place, and has
the engine answer. What goes wrong before the first byte is a status and a sentence; after it, a cut connection.

What always holds: a path that this guest may not have and one that nobody registered get the same bytes. A guest that
takes its time holds no place. Nothing of a webhook's body is looked at before its signature holds. The admin port
answers no git.
"""
