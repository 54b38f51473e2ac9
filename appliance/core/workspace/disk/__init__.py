"""Workspaces as disks: the tree of a branch tip as a read-only file system that a guest mounts.

- `erofs`: writes an EROFS image: superblock, device table, inodes, directories.
- `header`: the text in the first kilobyte of each drive, by which a guest knows what it holds and whether all is there.
- `images`: what lies on disk for one repository: its generations, and in each a blob file and its images.
- `build`: builds the image of one commit.
- `disks`: leases disks, and rebuilds those of followed branches. `repository` has what is known of each repository,
  `upstream_commits` says which commits may be in a disk, `sharing` who may read the drives.
- `collector`: ends leases and removes what `collection` plans.

A lease: a platform asks for a branch or a commit, the image is built unless there is one, and the lease is stored in
the database. When the branch moves, its next image is built before anybody asks. Once nobody has leased an image, it
may go: at once if upstream has dropped it, or else when the budget needs the room.

What always holds: nothing that is leased is removed or changed, but by a purge. Nobody gets an image of a commit that
upstream has dropped, nor the blob file of an older generation.
"""
