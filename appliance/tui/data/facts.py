"""What is known of one row, in words: the pairs of a name and a text that a view shows when a row is opened. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.core.models import RefText, Repo
from appliance.core.node.explanations import hint_of_refresh, hint_of_refusal
from appliance.tui.data.activity import HYDRATION, PUSH, ActivityEntry
from appliance.tui.text import count, origin, size, span, took

Facts = list[tuple[str, str]]

WAYS = {
    "hit": "hit: from the cache",
    "joined": "joined: it shared the answer that was being made for another guest",
    "miss": "miss: made for this guest, and then kept in the cache",
    "snapshot": "snapshot: the file of the workspace was there already",
    "direct": "direct: made for this guest, and not kept, because nobody else asks for the same",
}
"""What each way to answer a hydration means."""


def title_of(entry: ActivityEntry) -> str:
    """Returns the heading of one row of activity."""
    word = {HYDRATION: "Hydration from", PUSH: "Push to"}.get(entry.kind, "Refresh of")
    return f"{word} {entry.repo}"


def facts_of(entry: ActivityEntry, now: float) -> Facts:
    """Returns what is known of one row of activity; `now` is Unix seconds."""
    said = "".join(text for text, _ in entry.said)
    when = f"{moment(entry.at)}, {span(now - entry.at)} ago"
    facts: Facts = [("result", said), ("when", when)]
    make = {HYDRATION: _hydration, PUSH: _push}.get(entry.kind, _refresh)
    return [*facts, *make(entry)]


def moment(at: float) -> str:
    """Writes Unix seconds as `2026-01-31 12:00:00 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _from(entry: ActivityEntry) -> tuple[str, str]:
    return "guest", origin(entry.client, entry.guest) or entry.client


def _hydration(entry: ActivityEntry) -> Facts:
    row = entry.row
    wants = row.get("wants", 1) - 1
    more = f" and {count(wants, 'other object')}" if wants > 0 else ""
    facts: Facts = [("way", WAYS.get(str(row.get("way")), "")), _from(entry)]
    facts += [("protocol", str(row.get("protocol") or "")), ("asked for", f"{row.get('want', '')}{more}")]
    facts.append(("shape", str(row.get("shape") or entry.what)))
    if entry.bytes is not None and entry.seconds is not None:
        speed = f", {size(int(entry.bytes / entry.seconds))} a second" if entry.seconds > 0.001 else ""
        facts += [("sent", f"{size(entry.bytes)} ({entry.bytes:,} bytes){speed}"), ("took", took(entry.seconds))]
        if row.get("first_byte") is not None:
            facts.append(("first byte", f"after {took(row['first_byte'])}"))
    return facts


def _push(entry: ActivityEntry) -> Facts:
    row = entry.row
    refs = row.get("refs") or [row["ref"]] if row.get("ref") or row.get("refs") else []
    facts: Facts = [("reason", str(row.get("reason") or "")), _from(entry), ("refs", "\n".join(refs))]
    facts.append(("session", str(row.get("session") or "")))
    if "old" in row:
        facts.append(("from commit", str(row["old"] or "none")))
    # The event of a push says where each of its refs should go; one of the version before, nothing.
    commits = row.get("commits", [row["new"]] if "new" in row else [])
    facts.append(("to commit", "\n".join(commit or "none, to delete it" for commit in commits)))
    return facts


def _refresh(entry: ActivityEntry) -> Facts:
    row = entry.row
    facts: Facts = [("took", took(entry.seconds or 0.0)), ("error", str(row.get("error") or ""))]
    facts.append(("what to do", hint_of_refresh(row.get("kind"))))
    moved = [
        f"{change['ref']}  {(change['old'] or 'new')[:12]} → {(change['new'] or 'deleted')[:12]}"
        for change in row.get("moved") or ()
    ]
    return [*facts, ("moved", "\n".join(moved) if moved else "" if row.get("error") else "nothing")]


def what_to_do(entry: ActivityEntry, repo: Repo, guests: Sequence[Mapping[str, Any]], *, only_known: bool) -> str:
    """Returns what the guest of a refused push may do instead, as it read it itself.

    `guests` are the known guests, and `only_known` says whether no others may push.
    """
    row = entry.row
    refused = dict.fromkeys(row.get("refs") or [row.get("ref") or ""], row.get("reason") or "")
    return hint_of_refusal(repo, refused, entry.guest, guests, only_known=only_known)


def ref_facts(ref: RefText, now: float) -> Facts:
    """Returns what is known of one ref of a mirror."""
    when = f"{moment(ref.at)}, {span(now - ref.at)} ago"
    return [("ref", ref.ref), ("commit", ref.oid), ("made", when), ("subject", ref.subject)]
