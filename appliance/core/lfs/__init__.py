"""Git LFS: the objects of repositories whose large files are not in git.

- `pointers`: reads the small file that stands for an object in git.

What always holds: an object is found through a repository that has it, and through no other one.
"""
