"""What operators and platforms are told of a running `serve`.

- `event_stream`: the events of `core/events` as JSON, for the live view and for `event_sinks`, which hands them to a
  command or a URL of `[events]`.
- `health_monitor`: notices what changed about a repository's condition, by `transitions`, which are pure.
- `alerts`: tells once when a repository turns bad and once when it is well. `delivery`: a command's stdin, a POST.
- `metrics`: what /metrics tells. `report`: what `status` and `repos` tell, with a serve and without.

A refresh that fails: the scheduler has it written; the queue in front of the database tells the stream `refreshed` when
it is, and the bus tells the monitor. That compares the condition with the last one, publishes `failing`, and asks the
alerts, which compare it with what was last told and deliver in a task of their own, again and again for a minute.

What always holds: telling never waits and never raises, and whoever is slow to listen loses the oldest and is told how
many. What tells of something stored is told once it is stored, a second later at most. An alert that was delivered is
not repeated by a restart, and none is lost by one.
"""
