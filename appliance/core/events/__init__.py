"""What happens in a `serve`, told as facts.

- `facts`: one frozen class for each event, with the JSON document that watchers and platforms get.
- `bus`: hands an event to the parts that subscribed to its kind.

An event: the part where something happened stores it first, then publishes a fact that holds everything a listener
needs, as it was at that moment. `daemon/wiring` says which parts subscribe to what. `observability/event_stream` passes
the facts that have a document on to the live view and to `[events]`.

What always holds: an event is published after what it reports is stored, or after one second if the database does not
take it, so that a broken database silences nothing. Publishing never waits and never raises. A listener never asks back
who published. The tables of events in the docs are held equal to these classes by a test.
"""
