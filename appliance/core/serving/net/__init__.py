"""Connections, as every port uses them: bytes in, bytes out, each wait with a deadline. Nothing here knows git.

- `sockets`: listening, and the URL of a listener. `acceptor`: accepts, counts, and ends connections when `serve`
  stops; admission to the places for answers.
- `streams`: one connection; sends files by sendfile. `idle`: when a connection was last used.
- `http`: HTTP/1.1 by h11 on such a stream. `http_files`: a file with ranges and validators. `http_result`: a result
  whose head goes out with its first byte.

A connection: the acceptor takes it and starts a task; the port's handler runs to its end under the port's deadlines.
At a stop nobody new is accepted, and whoever is being answered may finish within the drain time.

What always holds: a peer that sends nothing, takes nothing, or sends without end costs a bounded amount of memory,
and no other peer anything. Running out of descriptors refuses the newest, and never ends the acceptor.
"""
