"""Who may read which mirror.

- `privacy`: decides which mirrors are private, from `[[credentials]]` and from a mark on the mirror itself.
- `catalog`: finds the repository for a path; private repositories are kept apart from the rest.
- `read_tokens`: issues read tokens, and looks them up at each request. `api_tokens`: looks up the tokens of programs.
  `token_uses`: stores when each was last used.
- `gate`: finds the repository that a guest may read at a path. The git and the HTTP port both use it.
- `allowed`: which upstream a path means that `[[allow]]` lets guests bring.

The life of a request: the port passes its path, and over HTTP the Authorization header, to the AccessGate. The gate
looks the token up, finds the repository in the catalog, and returns it or None. After a reload or a change of the
registry, the catalog is replaced as a whole.

Invariants: a guest that may not read a private repository gets the same response as for an unknown path, from the
same code and in the same time. Objects that were fetched with a credential stay private until a refresh without one
has succeeded. A revoked token grants nothing from the moment it is revoked.
"""
