"""Workspaces as disks: the tree of a branch tip as a read-only file system that a guest mounts.

- `erofs`: writes an EROFS image: superblock, device table, inodes, directories.
- `header`: the text in the first kilobyte of each drive, which tells a guest what it holds and whether it is complete.
- `images`: the files of one repository: its generations, each with a blob file and its images.
- `build`: starts `worker`, a process that builds the image of one commit, as `order` says. Each repository in it, its
  own and the submodules, is a `member`: `mirror_reader`, `checkout` and `large_files` find what a checkout has, and
  `generation` and `history` append it to the blob file. `assemble` and `submodules` put the image together with
  `index_file`, and `ext4` writes one without EROFS. `last_listing` saves listing a large tree again.
- `checking`: reads drives again in the background.
- `disks`: leases disks, and `following` rebuilds those of followed branches. `orders` and `contents` decide what an
  image has, and which submodules and LFS objects it lacks. `repository` has the state of each repository,
  `upstream_commits` says which commits may be in a disk, and `sharing` who may read the drives.
- `collector`: ends leases and removes what `collection` plans. `cold_disks`: what may go when the disk is short.

A lease: a platform requests a branch or a commit, the image is built unless it exists, and the lease is stored in the
database. When the branch moves, its next image is built before the next request. An image that is not leased may be
removed: at once if upstream has dropped its commit, or else when the budget is exceeded.

Invariants: nothing leased is removed or changed, except by a purge. No new lease gets an image of a commit that
upstream has dropped, or the blob file of an older generation. A blob file has contents of the repository itself and of
the registrations of its line alone, and everybody who gets it may read all of these.
"""
