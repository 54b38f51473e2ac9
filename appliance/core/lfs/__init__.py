"""Git LFS: the objects of repositories whose large files are not in git.

- `pointers`: reads the small file that stands for an object in git. `endpoint`: where a repository's LFS server is.
- `http_client`, `upstream_lfs`: the requests to such a server, which block. `upstream`: asks them in threads, with the
  node's credential, a few at once for each host.
- `stock`: the objects on disk, within a budget. `flight`: one object on its way. `bounds`: the share of each
  repository. `objects`: finds an object, or has it fetched, once for all who ask.

The life of an object: a guest's batch request, or the build of a workspace, names it with its size. If it is not on
this node, the node asks the upstream how to fetch it. When the guest requests its bytes, they are fetched into a
temporary file, which is renamed once the SHA-256 is right. Waiting guests are sent what has arrived, except for the
last byte. When room is needed, the least recently used object is removed.

What always holds: an object is found only through a repository that has it. An object on disk is complete, and its
SHA-256 was right. A credential goes to the upstream's own repository alone, and a redirect never takes it to another
origin. A server that hangs, lies or redirects affects its own objects only.
"""
