"""Who may read which mirror.

- `privacy`: which mirrors are private, told from `[[credentials]]` and from a mark on the mirror itself.
- `catalog`: finds the repository that a path means, the private ones apart from the rest.
- `read_tokens`: issues read tokens, and looks them up at each request.
- `gate`: what both guests' ports ask: which repository may this guest have by this path, if any?

A request: the port hands its path, and over HTTP the Authorization header, to the AccessGate. The gate looks the
token up, finds the repository in the catalog, and answers with it or with None. After a reload or a change of the
registry the catalog is replaced as a whole.

What always holds: for a guest that may not read it, a private repository is what an unknown path is, by the same code
and in the same time. What a credential fetched stays private until a refresh without one has succeeded. A token that
was revoked lets nobody in from that moment on.
"""
