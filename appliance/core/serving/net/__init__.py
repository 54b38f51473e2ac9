"""Connections, as every port uses them: bytes in, bytes out, each wait with a deadline. Nothing here knows git.

- `sockets`: listening, and the URL of a listener. `acceptor`: accepts connections, and ends them when `serve` stops.
- `seats`: who is connected, and each peer's fair share of the connections. `admission`: the slots for responses.
  `reading`: the memory budget for requests.
- `streams`: one connection; sends files by sendfile. `idle`: when a connection was last used. `linger`: ends one after
  its last answer. `road_speeds`: how fast the roads to peers are.
- `http`: HTTP/1.1 by h11 on such a stream, whose events `http_requests` reads.
  `http_files`: a file with ranges and validators. `http_result`: a response
  whose head goes out with its first byte.
- `aside`: runs heavy work on a request in a thread.

A connection: the acceptor takes it, gives it a seat and starts a task. The port's handler runs in it to its end, under
the port's deadlines. At a stop no new connection is accepted, and running responses may finish within the drain time.

What always holds: a peer that sends nothing, reads nothing or sends without end costs a bounded amount of memory, and
costs the other peers nothing. When descriptors run out, new connections wait in the backlog; the acceptor goes on.
"""
