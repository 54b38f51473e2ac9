"""Git LFS: the objects of repositories whose large files are not in git.

- `pointers`: reads the small file that stands for an object in git. `endpoint`: where a repository's LFS server is.
- `http_client`, `upstream_lfs`: the requests to such a server, which block. `upstream`: asks them in threads, with the
  node's credential, a few at once for each host.
- `stock`: the objects on disk, within a budget. `flight`: one object on its way. `bounds`: the share of each
  repository. `objects`: finds an object, or has it fetched, once for all who ask.

The life of an object: a guest's batch request, or a workspace that is built, names it with its size. If it is not
here, the upstream is asked how to fetch it. It is fetched when the guest asks for its bytes, into a file beside its
place, and renamed once its SHA-256 is right. Guests that wait are sent what has arrived, but for the last byte. When
room is needed, the object that was used longest ago is removed.

What always holds: an object is found through a repository that has it, and through no other one. What counts as here is
complete, and was right. A credential goes to the upstream's own repository alone, and never along a redirect. A server
that hangs, lies or redirects costs its own objects and nobody else's.
"""
