"""What guests may write, and the proof of what they wrote.

- `policy`: which refs a guest may push, and how much; pure, and copied beside the hook.
- `push_authorizer`: decides on a push, logs the attempt before a byte of its pack is let through, and logs the
  outcome.
- `pre_receive`: the hook, a second guard that trusts neither `serve` nor the guest. `hook_guard` installs the hooks
  and proves at start that git runs them.
- `turns`: books an applied push as a turn of its session. `quota`: how much may be recorded. `retention`: ends
  sessions, and `session_count` counts them. `compose`: builds all of them for a serve.

A push: a port reads its ref commands and asks the PushAuthorizer. The attempt is in the audit log before receive-pack
sees anything. The hook applies the same policy again; the update hook keeps the new commit under a ref of its own;
only then the session's ref moves. The outcome is logged and the turn is booked before the guest is told.

What always holds: whatever cannot be ruled on, logged or guarded is refused. A recorded turn stays reachable by
`refs/gitmirror/turns/<audit id>`, whatever a later push does. The log tells what really happened, whoever died when.
"""
