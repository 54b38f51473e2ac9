"""What a running `serve` reports to operators and platforms.

- `event_ring`: the latest events as JSON. `event_stream`: cursors into it, for the API and for `event_sinks`, which
  passes events to the command or the URL of `[events]`. `event_source`: the same as `text/event-stream`.
- `health_monitor`: notices when a repository's condition changes. `transitions`: the pure rules for that.
- `push_watch`: notices when pushes go off or on again, before somebody pushes.
- `alerts`: sends one alert when a repository becomes unhealthy and one when it recovers. `delivery`: writes to a
  command's stdin, or POSTs.
- `figures`: counts hydrations and refreshes, ten seconds at a time, for plots that survive a restart.
- `metrics`: the page /metrics. `report`: the documents of `status` and `repos`, with or without a `serve`.

A refresh that fails: the scheduler queues its row, and the queue gives `refreshed` to the stream once the row is
stored. The bus calls the monitor, which compares the repository's condition with the last one, publishes `failing`, and
calls the alerts. They compare the condition with the last alert and deliver in a task of their own: four tries within
about a minute, not counting the time that each takes.

What always holds: publishing never waits and never raises. A slow subscriber loses the oldest events and learns how
many. An event about something stored goes out once it is stored, or one second later at most. A restart neither repeats
an alert that was delivered nor loses one.
"""
