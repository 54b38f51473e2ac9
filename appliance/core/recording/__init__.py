"""Decides what guests may write, and records what they wrote.

- `policy`: which refs a guest may push, and how much. It is pure, and is copied beside the hook.
- `push_authorizer`: decides on a push, and logs the attempt before a byte of its pack is let through, and the outcome
  afterwards. `outcomes`: finds out whether each ref of a push moved.
- `pre_receive`: the hook, a second guard that trusts neither `serve` nor the guest. `hook_guard`: installs the hooks,
  and proves at start that git runs them.
- `durability`: has a turn stored elsewhere before its guest is told, and withdraws one that is not. `commands`: what one
  ref command becomes.
- `turns`: records an applied push as a turn of its session. `found`: adds to the log the turns that mirrors hold and it
  lacks. `session_count`: counts sessions. `turn_indexer`: reads what sessions are found by.
- `quota`: how much may be recorded. `retention`: ends old sessions and archives idle ones, by `trusted_time`: whether
  the clock can be believed. `comparison`: what a diff of a session compares. `compose`: builds all of this for one
  `serve`.

A push: a port reads its ref commands and asks the PushAuthorizer. The attempt is in the audit log before receive-pack
sees anything. The hook applies the same policy again, and the update hook puts the new commit under a ref of its own.
Only then does the session's ref move. The outcome and the turn are stored before the guest gets the report.

What always holds: a push that cannot be decided on, logged or guarded is refused. A recorded turn stays reachable by
`refs/gitmirror/turns/<audit id>`, whatever a later push does. The log says what really happened, whichever process died
at whatever moment.
"""
