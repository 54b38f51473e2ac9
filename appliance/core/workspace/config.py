"""The git config that a ready workspace starts with."""

from __future__ import annotations

PARTIAL = 1, "\tpromisor = true\n\tpartialclonefilter = blob:none\n", "[extensions]\n\tpartialClone = origin\n"
"""The format version of a partial repository, what the config of its `origin` says, and its `extensions`."""


def quoted(value: str) -> str:
    """A value or the name of a subsection, as a git config spells it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def workspace_config(url: str, branch: str, *, partial: bool = False, sparse: bool = False) -> str:
    """The config of the workspace in the guest: `origin` is the upstream, and fetches this branch only.

    A `partial` one lacks the contents of old files, and git fetches them when it needs them (git-config,
    `extensions.partialClone`). A `sparse` one has a part of the tree. git itself keeps this setting in a config of the
    worktree, but some other clients refuse a repository with `extensions.worktreeConfig`, and git reads both. Automatic
    maintenance is off, because a workspace is short-lived, and git would repack it in the middle of a turn.
    """
    version, promisor, extension = PARTIAL if partial else (0, "", "")
    cone = "\tsparseCheckout = true\n\tsparseCheckoutCone = true\n" if sparse else ""
    return f"""\
[core]
\trepositoryformatversion = {version}
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
\tcheckStat = minimal
\ttrustctime = false
{cone}{extension}[remote "origin"]
\turl = {quoted(url)}
\tfetch = {quoted(f"+refs/heads/{branch}:refs/remotes/origin/{branch}")}
{promisor}[branch {quoted(branch)}]
\tremote = origin
\tmerge = {quoted(f"refs/heads/{branch}")}
[gc]
\tauto = 0
[maintenance]
\tauto = false
"""


def kit_config(repo: str, commit: str) -> str:
    """What the guest kit notes in the config of each workspace, so that one mounted by hand can be recorded, too."""
    return f"[gitmirror]\n\trepository = {repo}\n\tbase = {commit}\n"
