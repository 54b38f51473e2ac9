"""Ready workspaces, and the script with which guests fetch them.

- `snapshot_build`: builds the workspace of one branch tip (`.git`, index and files) as one tar.
- `snapshots`: holds the snapshots of all repositories, and rebuilds them when a branch moves.
- `submodules`: finds the submodules of a commit whose upstreams are mirrored here.
- `lfs_files`, `lfs_ahead`: find the LFS files of a tip, fetch their contents, and decide which are in place in its tar.
- `gzipped`: makes gzipped copies of tars, for slow roads.
- `config`: the git config of a workspace.
- `tar`, `git_index`, `times`: write the two formats so that `git status` in a guest has nothing to rehash.
- `guest_kit`: renders `guest.sh`, the POSIX shell file with which guests hydrate and record, for this node.

A snapshot: when a refresh moves the followed branch, `snapshots` starts a build at low priority. The build checks out
only what differs from the last one, writes the tar under another name, and renames it when it is complete. Until then
guests get the old tar. After a restart, or if somebody touched it, a tar is sent only if its checksum is right;
otherwise everything is built from scratch.

What always holds: a tar is complete and of one commit, or it does not exist. `git status` sees every edit that a guest
makes. `guest.sh` runs under any POSIX shell, leaves DIR complete or untouched, and reports its progress on stderr.
"""
