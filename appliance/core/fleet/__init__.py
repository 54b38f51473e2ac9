"""More than one node: registry, news, recordings and heads of the logs are shared through NATS JetStream.

- `names`: the streams, buckets and subjects of a fleet. `messages`: what is in them; `wire` reads and writes them, and
  what it refuses is skipped.
- `link`: the connection; every call has a deadline.
- `registry`: follows the registry of the fleet and changes it; `bucket` has it in NATS, `registry_rules` say who wins.
- `news`: one node asks an upstream (`leases`), the others ask that node (`asking`, `news_desk`), and fetch from its
  port (`neighbours`). `news_compose` builds these.
- `bringing`: turns of other nodes, on demand: `downloads` gets the bundle, `unpacking` checks it, in `quarantine`, and
  `session_refs` sets the refs. `attached_files`: attachments of other nodes.
- `outgoing`: sends the turns that wait, and is what a push waits for under `durability = "sync"`. `sending` sends
  one, `announcing` ends and keeps; `bundles` makes a turn's bundle, `objects` stores files, `pauses` spaces out
  failures.
- `incoming`: reads what all nodes recorded, in the stream's order, and has the store apply it.
- `heads`: publishes the newest event of the audit log, `log_check` compares the log with what was published, and
  `estate` adds up what the fleet has of a node that died (`node/from_fleet` makes it anew).

The registry is a key-value bucket; SQLite has each node's copy. A turn that was applied goes out as a thin bundle in
the object store and a row in a stream. The order of the rows is the order of the turns on every node. What cannot go
out now waits in SQLite, and a node without NATS is a node alone.

What must always hold: the attempt of a turn is in this node's own log before anything of it goes out; nothing that
arrives changes a turn of this node, unless the session was ended; no token, no credential and, without
`replicate_private`, nothing that was recorded in a private repository goes out.
"""
