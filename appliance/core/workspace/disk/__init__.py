"""Workspaces as disks: the tree of a branch tip as a read-only file system that a guest mounts.

- `erofs`: writes an EROFS image: superblock, device table, inodes, directories.
- `header`: the text in the first kilobyte of each drive, by which a guest knows what it holds and whether all is there.
- `images`: what lies on disk for one repository: its generations, and in each a blob file and its images.
"""
