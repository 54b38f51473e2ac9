"""Mirrors on disk, and running git on them.

- `command`: runs git with argument lists, a scrubbed environment, a process group of its own and a deadline.
  `error_lines` keeps what it said on stderr.
- `mirror`: a bare mirror: create, configure, list the upstream's refs, fetch, anchors, HEAD. `mirrors`: all mirrors of
  a state directory, by name. `mirror_locks`: which operations may work on a mirror at the same time.
- `ref_sets`: parses and compares sets of refs. `stored_refs`: reads refs from a mirror's files. `reflog`: who moved a
  ref from where to where. `ref_traces`, `ref_memory`: detect that no ref has changed. None of these runs git.
- `history`: what a recorded commit changed. `turn_contents`: its paths and messages, within bounds. `browse`: reads
  commits for people with GitPython, and packs one; `unpacking` checks it out elsewhere. `diff_output`: prints a diff
  with control characters escaped, coloured as git does it.
- `keyring`: lends git a credential for one refresh. `tls_trust`: which certificate authorities git trusts for https.
- `reading`: refs, commits and files for the API, paged or streamed; `revisions` finds the commit that a name means, and
  `objects` parses commits and tags. `diff_document`: a diff as text or as data. `session_bundle`: work as a git bundle.
- `gitmodules`: reads the `.gitmodules` of a commit, and refuses what git refuses.
- `failures`: maps git's error output to one word of a short list. `complaints`: publishes messages that may mean
  damage.
  `http_trace`: the HTTP headers git does not report.

A fetch: the refresher opens an upstream with the keyring, lists its refs, anchors the refs that will move, deletes
local refs whose names conflict, and has `mirror` fetch atomically: all refs move or none.

What always holds: git gets its arguments as a list, and its environment from us alone: no user or system config, no
credential helper, no agent. Names from outside come after `--`, or are checked first. No secret is an argument.
"""
