"""What guests talk to, over git:// and HTTP.

- `net`: connections: accepting, deadlines, HTTP/1.1, files. Knows nothing of git.
- `wire`: git's protocol as bytes: packet lines, requests, reports. Knows nothing of sockets.
- `fetch`: answers to fetches: the engine, the response cache, the refs that are shown, warming.
- `push`: carries a push between a guest and receive-pack, and asks who may.
- `ports`: the git:// port, the guests' HTTP port and the admin port, and their routes.

A connection: `net` accepts it; a port reads what is asked and finds the repository through `access`; then `fetch` or
`push` answers, and what happened is published as an event. `compose` builds all of it for a serve.

What always holds: nothing a guest sends stops the others being served. A place among `max_clients` is held only while
an answer is being made or sent. The work for one request is bounded by its size, and the loop is never held for
longer than a few milliseconds. A short or failed answer is cut off, never passed for a whole one.
"""
