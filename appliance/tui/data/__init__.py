"""What the live view knows, and how that is read and kept current. Nothing here draws.

- `model`: everything on screen comes from here, so each fact is held once. `activity`: what happened, newest first.
- `loader`: runs reads and orders in threads. `messages`: what they report to the UI thread.
- `event_follower`: follows the event stream of a running `serve`, in a thread, and joins the next one.
- `follower`: decides what is read when, and what follows from an event.
- `facts`: what is known of one row, in words. `details`: what is read of one repository alone, for the one under the
  cursor.
- `rows`, `diffs`: sessions, guests, checks and the lines of a diff, in the form that lists show.

A push, as an example: `serve` publishes an event; `event_follower` queues it and posts one `EventsArrived` for all that
arrive. `follower` adds it to `activity`, tells the view on screen, and has the loader read the repositories again. The
loader posts `ReposRead`, the follower puts that into the model, and the view redraws the cells that changed.

What always holds: only the UI thread touches the model. Of the reads with one name, one runs at a time, and requests in
between become one. If a read fails, the screen keeps what was read last and also shows the error; the read is tried
again until it works. However many events arrive, the view redraws at most every `CALM` seconds.
"""
