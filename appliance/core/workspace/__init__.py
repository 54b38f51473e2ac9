"""Ready workspaces, and the script with which guests fetch them.

- `snapshot_builder`: decides what goes into the workspace of a branch tip; `snapshot_build` builds it as one tar.
- `snapshots`: holds the snapshots of all repositories, and rebuilds them when a branch moves.
- `lfs_files`, `lfs_ahead`: find the LFS files of a tip, fetch their contents, and decide which are in place in its tar.
- `submodules`, `module_finder`, `snapshot_modules`: find the submodules of a tip, and who gets which.
- `tar_checks`: checks whether tars are what was written. `gzipped` makes gzipped copies of them, for slow roads.
- `cone`, `sparse_index`, `parts`, `part_builds`: parts of a tree, which guests ask for by naming directories.
- `cold_snapshots`: what goes of them when the disk is short. `set_aside`: what is then not built until a guest asks.
- `config`, `module_files`: the git config of a workspace, and what leads git to its submodules.
- `tar`, `git_index`, `times`: write the two formats so that `git status` in a guest has nothing to rehash.
- `guest_kit`: renders `guest.sh`, the POSIX shell file with which guests hydrate and record, for this node.

A snapshot: when a refresh moves the followed branch, `snapshots` starts a build at low priority. The build checks out
only what differs from the last one, writes the tar under another name, and renames it when it is complete. Until then
guests get the old tar. After a restart, or if somebody touched it, a tar is sent only if its checksum is right;
otherwise everything is built from scratch.

What always holds: a tar is complete and of one commit, or it does not exist. `git status` sees every edit that a guest
makes. `guest.sh` runs under any POSIX shell, leaves DIR complete or untouched, and reports its progress on stderr.
"""
