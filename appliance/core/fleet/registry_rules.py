"""Who wins when nodes change the registry at once, and what an entry of the fleet means for a node. Pure.

The bucket puts all changes of one repository in one order. A change is made on the revision that its node knew: the
first to reach the bucket wins, and a node whose change came later applies the winner's and tells its operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum, auto
from typing import Any

from appliance.core.fleet.messages import NotOurs, RepoEntry
from appliance.core.fleet.wire import read, write
from appliance.core.store.fleet_repos import KnownEntry, Pending
from appliance.core.units import rfc3339

SameUrl = Callable[[str, str], bool]


@dataclass(frozen=True)
class Remote:
    """What the bucket has under a name: the `revision`, 0 for nothing, and the entry.

    The entry is None if there is nothing, if it was deleted (`is_gone`), or if this version cannot read it.
    """

    revision: int = 0
    entry: RepoEntry | None = None
    is_gone: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether something is there that cannot be read, and so must not be replaced."""
        return self.revision > 0 and self.entry is None and not self.is_gone

    @property
    def present(self) -> RepoEntry | None:
        """The entry of a repository that is registered, or None."""
        return self.entry if self.entry is not None and not self.entry.removed else None

    @property
    def known(self) -> KnownEntry:
        """The same as this node stores it. Only for what can be read."""
        assert self.entry is not None
        return KnownEntry(self.revision, asdict(self.entry))


class Verdict(Enum):
    """What becomes of a change that waits."""

    SEND = auto()
    DONE = auto()
    OVERTAKEN = auto()


def entry_of(known: KnownEntry | None) -> RepoEntry | None:
    """The entry that a node had applied, or None; also if it was stored by a version that had other entries."""
    if known is None:
        return None
    names = RepoEntry.__dataclass_fields__
    try:
        return RepoEntry(**{key: value for key, value in known.document.items() if key in names})
    except TypeError:
        return None


def outgoing(pending: Pending, known: KnownEntry | None, node: str) -> RepoEntry:
    """The entry that a waiting change makes."""
    document: Mapping[str, Any] = pending.document
    before = entry_of(known)
    continues = before is not None and not before.removed and not pending.is_new
    return RepoEntry(
        name=pending.name,
        url=document["url"],
        branch=document["branch"],
        interval=document["interval"],
        enabled=document["enabled"],
        by=node,
        at=rfc3339(document["at"]),
        removed=document["removed"],
        purged=document["purged"],
        registration=before.registration if continues and before is not None else document["registration"],
    )


def judge(pending: Pending, known: KnownEntry | None, remote: Remote, node: str, same_url: SameUrl) -> Verdict:
    """What becomes of a change that waits, when the bucket has `remote`. What cannot be read is not judged."""
    entry, document = remote.entry, pending.document
    if entry is None:
        # There is nothing to remove, or nothing in the way.
        return Verdict.DONE if document["removed"] else Verdict.SEND
    if is_met(pending, entry, same_url):
        return Verdict.DONE
    is_first = remote.revision <= (known.revision if known else 0)
    # This node's own change whose answer was lost; a later one would be from before a backup was restored.
    is_own = entry.by == node and entry.at <= rfc3339(document["at"])
    if is_first or is_own:
        return Verdict.SEND
    if entry.removed:
        # A purge says more than a removal, and what was registered anew is another repository than the removed one.
        is_anew = pending.is_new and not pending.is_again
        return Verdict.SEND if document["removed"] or is_anew else Verdict.OVERTAKEN
    return Verdict.OVERTAKEN


def is_met(pending: Pending, entry: RepoEntry, same_url: SameUrl) -> bool:
    """Whether an entry is what a waiting change wants already. What is new takes over the options that it lacks."""
    document = pending.document
    if document["removed"] or entry.removed:
        return bool(document["removed"] and entry.removed and entry.purged >= document["purged"])
    if not same_url(document["url"], entry.url) or document["enabled"] != entry.enabled:
        return False
    wants = {key: document[key] for key in ("branch", "interval")}
    return all(value == getattr(entry, key) or (pending.is_new and value is None) for key, value in wants.items())


def words_of_overtaken(pending: Pending, winner: RepoEntry) -> str:
    """What to tell the operator of a change that another node's overtook."""
    document, name = pending.document, pending.name
    what = "removing" if document["removed"] else "adding" if pending.is_new else "changing"
    if winner.removed:
        outcome = f"node {winner.by} removed it from the fleet first"
    elif document["removed"]:
        outcome = f"node {winner.by} changed it first, so it is registered again, for {winner.url}"
    elif document["url"] != winner.url:
        outcome = f"the name is taken in the fleet by {winner.url}, registered on node {winner.by}"
    else:
        outcome = f"node {winner.by} changed it first, and its branch, interval and state are that node's now"
    return f"{what} {name} ({document['url']}) on this node was overtaken while it was away: {outcome}"


def is_renewed(known: KnownEntry | None, entry: RepoEntry) -> bool:
    """Whether an entry is of another registration than the one that was applied here."""
    before = entry_of(known)
    return before is not None and not before.removed and before.registration != entry.registration


def added(remote: Remote, wanted: RepoEntry, same_url: SameUrl) -> RepoEntry | None:
    """The entry that `add-repo` makes of what the bucket has; None if nothing changes.

    `wanted` is a new registration. Options that it does not say stay as they are. Only for what can be read, and not
    for a name that another URL has.
    """
    before = remote.present
    if before is None:
        return wanted
    assert same_url(before.url, wanted.url)
    merged = replace(
        before,
        branch=before.branch if wanted.branch is None else wanted.branch,
        interval=before.interval if wanted.interval is None else wanted.interval,
        enabled=True,
    )
    return None if merged == before else replace(merged, by=wanted.by, at=wanted.at)


def parse(key_name: str | None, data: bytes | None) -> RepoEntry:
    """The entry under the key of `key_name`. Raises NotOurs."""
    entry = read(data, RepoEntry)
    if key_name is None or entry.name != key_name:
        raise NotOurs("its key is not that of its name")
    return entry


def data_of(entry: RepoEntry) -> bytes:
    """The bytes of an entry."""
    return write(entry)
