"""Mirrors on disk, and running git on them.

- `command`: the one runner of git: argument lists, a scrubbed environment, a process group, a deadline.
- `mirror`: a bare mirror: create, configure, ask the upstream, fetch, anchors, HEAD. `mirror_locks`: who may work on
  it.
- `history`: what a recorded commit changed. `browse`: reading commits for people, and laying one out as a worktree.
- `keyring`: lends git a credential for one refresh. `tls_trust`: which authorities an https upstream is checked by.
- `failures`: what git said, as one word of a short list. `http_trace`: what git does not pass on of HTTP headers.
- `ref_traces`, `ref_memory`: knowing without asking git that no ref has changed.

A fetch: the refresher opens an upstream with the keyring, asks for its refs, anchors what will move, clears names
that are in the way, and has `mirror` fetch atomically: all refs move or none.

What always holds: git gets its arguments as a list and its environment from us alone: no user's or system's config,
no credential helper, no agent. Names from outside come after `--`, or are checked first. No secret is an argument.
"""
