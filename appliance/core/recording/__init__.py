"""Decides what guests may write, and records what they wrote.

- `policy`: which refs a guest may push, and how much; pure, and copied beside the hook.
- `push_authorizer`: decides on a push, logs the attempt before any of its pack reaches git, and logs the outcome.
- `pre_receive`: the hook, a second guard that trusts neither `serve` nor the guest. `hook_guard` installs the hooks
  and proves at start that git runs them.
- `outcomes`: tells what became of a push. `turns`: records an applied push as a turn of its session. `found`: adds
  turns to the audit log that it does not know.
- `quota`: limits how much may be recorded. `retention`: ends sessions. `trusted_time`: doubts a clock that has
  jumped. `session_count` counts sessions for `status`. `compose`: builds these parts for a `serve`.

A push: a port reads its ref commands and asks the PushAuthorizer. The attempt is in the audit log before receive-pack
sees anything. The hook applies the same policy again. The update hook creates a ref of its own for the new commit, and
only then does the session's ref move. The outcome is logged and the turn is recorded before the guest is answered.

What always holds: a push that cannot be decided on, logged or guarded is refused. A recorded turn stays reachable by
`refs/gitmirror/turns/<audit id>`, whatever a later push does. The log says what really happened, whichever process was
killed at whatever moment.
"""
