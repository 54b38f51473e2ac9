"""Serves guests over git:// and HTTP.

- `net`: connections: accepting, fair shares, deadlines, HTTP/1.1, files. Knows nothing of git.
- `wire`: git's protocol as bytes: packet lines, requests, reports. Knows nothing of sockets.
- `fetch`: answers fetches: the engine, the response cache, the snapshot of the refs, warming.
- `push`: carries a push between a guest and receive-pack, and asks the PushAuthority whether it is accepted.
- `ports`: the git:// port, the guests' HTTP port and the admin port, and their routes.
- `compose`: builds all of it for one `serve`.

A connection: `net` accepts it. A port reads the request and finds the repository through `access`. Then `fetch` or
`push` answers, and the result is published as an event.

What always holds: nothing that a guest sends stops the others from being served. A guest holds one of the `max_clients`
slots only while its response is made or sent. The work for one request is bounded by the request's size, and no single
step holds the event loop for longer than a few milliseconds. A short or failed response is cut off, so that no guest
mistakes it for a complete one.
"""
