"""Events: what happens in a `serve`, as facts.

- `facts`: one frozen class for each event, with the JSON document that the live view and platforms get.
- `fetch_progress`: how far a running fetch is, read from what git prints; no event, but asked for by whoever watches.
- `bus`: hands an event to the listeners that subscribed to its class.

An event: the room where something happened stores it first, then publishes a fact that holds everything a listener
needs, as it was at that moment. `daemon/wiring` says which room subscribes to what. `observability/event_stream` passes
the facts that have a document on to the live view, and those with `goes_out` to `[events]`.

What always holds: an event that reports something stored goes out once it is stored, or after one second if the
database has not stored it by then, so that a broken database silences nothing. Publishing never waits and never raises.
A listener never has to ask the publisher for more. A test keeps the docs' table of events equal to these classes.
"""
