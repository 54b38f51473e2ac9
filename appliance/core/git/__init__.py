"""Mirrors on disk, and running git on them.

- `command`: the only code that runs git: argument lists, a scrubbed environment, a process group, a deadline.
- `mirror`: a bare mirror: create, configure, list the upstream's refs, fetch, anchors, HEAD. `mirror_locks`: which
  operations may work on a mirror at the same time.
- `ref_sets`: parses and compares sets of refs; runs no git.
- `history`: what a recorded commit changed. `browse`: reads commits for people, and checks one out as a worktree.
- `keyring`: lends git a credential for one refresh. `tls_trust`: which certificate authorities git trusts for https.
- `failures`: maps git's error output to one word of a short list. `http_trace`: the HTTP headers git does not report.
- `ref_traces`, `ref_memory`: detect without running git that no ref has changed.

A fetch: the refresher opens an upstream with the keyring, lists its refs, anchors the refs that will move, deletes
local refs whose names conflict, and has `mirror` fetch atomically: all refs move or none.

What always holds: git gets its arguments as a list, and its environment from us alone: no user or system config, no
credential helper, no agent. Names from outside come after `--`, or are checked first. No secret is an argument.
"""
