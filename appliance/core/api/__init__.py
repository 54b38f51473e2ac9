"""The HTTP API of a running `serve`: for platforms on the admin port, for our own commands on the control socket.

- `declaration`: what a route is. `node_routes`, `session_routes`, `mirror_routes`, `record_routes`, `disk_routes`,
  `event_routes`, `api_token_routes` declare all of them; `schemas` has their JSON Schemas, `paging` what lists have in
  common.
- `parsing` reads a request as its operation declares it.
- `application`: the ASGI application made from the declarations. `access` admits callers, `problem` words errors.
  `slots` bounds the requests that read mirrors, `streams` sends bodies that are made as they are sent.
  `spool` keeps one on disk that was made before.
- `openapi`: the description, made from the same declarations. `operations`: what `serve` itself must do.
- `client`: calls the API over the control socket. It is all that commands and the live view import.
- `compose`: builds the application.

A request comes in through `serving/net/asgi`, is admitted, checked against its declaration, and answered by one method
of a routes class. Every error becomes a problem (RFC 9457) on the way out.

What must hold: no response that the description does not have. Nothing here starts a server, and only `client` is
imported by commands, so that none of them waits for Starlette. Bodies are bounded before they are parsed.
"""
