"""Keeping mirrors equal to their upstreams.

- `schedule` (what is due when; pure), `queue`, `scheduler`: decide when a repository is refreshed, in which lane.
- `refresher`: does one refresh of one mirror. `attempt`: what came of it means for health, delay and history.
- `failure`: what an error means, in one word and in a sentence.
- `announcements`: refs that webhooks told of, looked for until they are here.
- `wall_clock`: notices that the clock was set, so that lag stays a duration.
- `health_notes`: what is learnt of a mirror otherwise. `compose`: builds all of them for a serve.

A refresh: the scheduler finds a repository due, or is nudged by a webhook or a command, and starts the refresher when
its lane has a place. The refresher asks the upstream, and fetches when something moved. `attempt` turns the facts or
the error into the new health, which is kept in memory. `RefsMoved` is published at once, `RefreshEnded` once the
outcome is stored, when somebody waits for it.

What always holds: one upstream that hangs delays no other repository. A refresh that fails leaves all refs as they
were. Lag counts from the start of the last refresh that succeeded, whatever else is known. Guests never wait for an
upstream.
"""
