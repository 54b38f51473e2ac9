"""Which names are valid for a repository, a branch or a guest. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

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


def nearest_repos(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Which of the `known` repositories `name` may mean: those of its last part, else those spelt almost alike."""
    import difflib

    wanted = "/".join(name.casefold().rstrip("/").removesuffix(".git").split("/")[-2:])
    names = {each.casefold(): each for each in known}
    # `homelab`, `ACME/Homelab`, or a URL.
    same = [each for folded, each in names.items() if folded == wanted or folded.endswith(f"/{wanted}")]
    if same:
        return same[:most]
    if "/" not in wanted:
        # Only the last parts are compared, because the owner would count as a difference.
        last = {folded.rpartition("/")[2]: each for folded, each in names.items()}
        return [last[near] for near in difflib.get_close_matches(wanted, last, most, cutoff=0.7)]
    return [names[near] for near in difflib.get_close_matches(wanted, names, most, cutoff=0.7)]


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
