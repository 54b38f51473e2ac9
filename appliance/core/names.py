"""Which names are valid for a repository, a branch or a guest. Pure."""

from __future__ import annotations

import re

from appliance.core.errors import UsageError

_GUEST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_NAME_PART = re.compile(r"[A-Za-z0-9._-]+")


def is_repo_name(name: str) -> bool:
    """Whether `name` is OWNER/REPO: each part of `[A-Za-z0-9._-]`, neither `.` nor `..`.

    A REPO must not end in `.git`, because `/o/x.git` on the wire is the repository `o/x`.
    """
    parts = name.split("/")
    return (
        len(parts) == 2
        and all(_NAME_PART.fullmatch(part) and part not in (".", "..") and len(part) <= 128 for part in parts)
        and not parts[1].endswith(".git")
    )


def is_guest_name(name: str) -> bool:
    """Whether a guest can be known by this name: 1 to 64 of `[A-Za-z0-9._-]`, not starting with `.` or `-`."""
    return _GUEST.fullmatch(name) is not None


def is_branch_name(branch: str) -> bool:
    """Checks the rules for a ref name (git-check-ref-format) that matter before git itself sees the name."""
    parts = branch.split("/")
    return (
        all(part and not part.startswith(".") and not part.endswith((".", ".lock")) for part in parts)
        and not branch.startswith("-")
        and ".." not in branch
        and "@{" not in branch
        and all(char.isprintable() and char not in " ~^:?*[\\" for char in branch)
    )


def check_branch_name(branch: str | None) -> None:
    """Raises UsageError unless a branch may have this name. None stands for the default branch."""
    if branch is not None and not is_branch_name(branch):
        raise UsageError(
            f"{branch!r} is not a branch's name", hint="give the name without refs/heads/, as in --branch main"
        )
