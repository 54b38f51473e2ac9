"""Ready workspaces, and the script that guests fetch them with.

- `snapshot_build`: builds the workspace of one branch tip: `.git`, index and files, as one tar.
- `snapshots`: keeps those of all repositories, rebuilt when a branch moves.
- `tar`, `git_index`: the two formats, written so that `git status` needs no rehash in a guest.
- `guest_kit`: renders `guest.sh`, the POSIX shell file that guests hydrate and record with, for this node.

A snapshot: a refresh moves the followed branch, so `snapshots` starts a build at low priority. The build checks out
only what differs from the last one, writes the tar beside, and renames it when it is whole. Guests get the old one
until then, and after a restart a tar is taken up again only when it proves to be whole.

What always holds: a tar is complete and of one commit, or it is not there. Every edit that a guest makes is seen by
`git status`. `guest.sh` runs under any POSIX shell, leaves DIR whole or untouched, and says on stderr what it does.
"""
