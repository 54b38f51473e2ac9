"""Keeps mirrors equal to their upstreams.

- `schedule` (what is due when; pure), `queue`, `scheduler`: decide when a repository is refreshed, and in which lane.
- `sources`: where a refresh gets what the upstream has; in a fleet that can be another node.
- `refresher`: performs one refresh of one mirror. `runs`: what it was asked for, how far it is, what it found.
- `attempt`: derives health, delay and history from its result.
- `left_out`: handles upstream refs that the mirror cannot store, so that they do not stop the others.
- `failure`: explains an error in one word and in a sentence.
- `announcements`: repeats refreshes until the refs that a webhook announced have arrived.
- `wall_clock`: notices that the clock was set, so that lag stays a duration.
- `fair_turns`: bounds what guests may cause of upstreams, and shares it between them.
- `health_notes`: records what is learnt of a mirror in other ways. `compose`: builds these parts for a `serve`.

A refresh: the scheduler finds a repository due, or is nudged by a webhook or a command, and starts the refresher when
its lane has a free slot. The refresher lists the upstream's refs, and fetches if something moved. `attempt` turns the
facts or the error into the new health, which is held in memory. `RefsMoved` is published at once, and `RefreshEnded`
once the outcome is stored.

What always holds: an upstream that hangs delays no other repository. A fetch moves all refs or none, and what had to
be deleted to make way for it is anchored. Lag counts from when the last successful refresh listed the upstream's refs,
whatever else is known. Guests never wait for an upstream, except for a first clone that they asked for.
"""
