"""The JSON of every event, key by key, and the table of them in the documents."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any
from unittest.mock import Mock

import pytest

from appliance.core.daemon.wiring import subscribe
from appliance.core.events.bus import EventBus
from appliance.core.events.facts import (
    MOST_TOLD,
    TOLD,
    AllowedRepoExpired,
    ConditionChanged,
    Event,
    EventsLost,
    FetchBegan,
    FetchEnded,
    MirrorHealed,
    PushesSwitched,
    PushRuled,
    RefreshEnded,
    RefsMoved,
    RepoEvent,
    TurnRecorded,
)
from appliance.core.events.fleet_facts import TOLD_IN_A_FLEET, SessionShared, TurnsArrived
from appliance.core.models import (
    HeadChange,
    Health,
    Hydration,
    PushDecision,
    RefChange,
    RefCommand,
    RefreshOutcome,
    Repo,
)
from appliance.core.observability.event_sinks import FOR_PLATFORMS
from tests.support.serve import ROOT

AT = 1_700_000_000.25
WHEN = "2023-11-14T22:13:20.250Z"
REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
OLD, NEW = "1" * 40, "2" * 40
MOVED = RefChange("refs/heads/main", OLD, NEW)
COMMAND = RefCommand(OLD, NEW, "refs/heads/main")
FETCH = Hydration("acme/widgets", NEW, 1, "depth 1", "hit", 7, 0.1, 0.2, "10.0.0.7", "git")

EXAMPLES: list[tuple[Event, dict[str, Any]]] = [
    (
        FetchBegan(at=AT, repo=REPO, want=NEW, shape="depth 1", client="10.0.0.7", protocol="git"),
        {"event": "hydrating", "want": NEW, "shape": "depth 1", "client": "10.0.0.7", "protocol": "git", "guest": None},
    ),
    (
        FetchEnded(at=AT, repo=REPO, fetch=FETCH),
        {
            "event": "hydrated",
            "want": NEW,
            "wants": 1,
            "shape": "depth 1",
            "way": "hit",
            "bytes": 7,
            "first_byte": 0.1,
            "seconds": 0.2,
            "client": "10.0.0.7",
            "protocol": "git",
            "guest": None,
            "outcome": "complete",
        },
    ),
    (
        RefsMoved(at=AT, repo=REPO, changes=(MOVED,), head=HeadChange(None, "refs/heads/main")),
        {
            "event": "refs-moved",
            "refs": [{"ref": "refs/heads/main", "old": OLD, "new": NEW}],
            "more": 0,
            "head": {"old": None, "new": "refs/heads/main"},
        },
    ),
    (
        TurnRecorded(
            at=AT, repo=REPO, session="s-1", change=RefChange("refs/agents/s-1", None, NEW), client="10.0.0.7"
        ),
        {
            "event": "recorded",
            "session": "s-1",
            "ref": "refs/agents/s-1",
            "old": None,
            "new": NEW,
            "client": "10.0.0.7",
            "guest": None,
        },
    ),
    (
        ConditionChanged(
            at=AT,
            repo=REPO,
            condition="failing",
            state="failing",
            error="dns",
            words="the upstream's host name cannot be resolved",
            hint="check the host",
            lag=72.4,
            failures=3,
            since=AT,
        ),
        {
            "event": "failing",
            "url": REPO.url,
            "state": "failing",
            "error": "dns",
            "words": "the upstream's host name cannot be resolved",
            "hint": "check the host",
            "lag": 72.4,
            "failures": 3,
            "since": WHEN,
        },
    ),
    (
        MirrorHealed(
            at=AT,
            repo=REPO,
            whole=False,
            done=("refs/agents/s-1 was put back",),
            lost={"refs/agents/s-2": NEW},
            evidence="/var/lib/gitmirror/damaged/1",
            damage="refs/agents/s-2 is lost",
        ),
        {
            "event": "healed",
            "whole": False,
            "done": ["refs/agents/s-1 was put back"],
            "lost": [{"ref": "refs/agents/s-2", "commit": NEW}],
            "evidence": "/var/lib/gitmirror/damaged/1",
            "damage": "refs/agents/s-2 is lost",
        },
    ),
    (
        AllowedRepoExpired(at=AT, repo=REPO, words="nobody has fetched it for 7d"),
        {"event": "expired", "url": REPO.url, "words": "nobody has fetched it for 7d"},
    ),
    (
        PushesSwitched(at=AT, are_off=True, words="the disk is full", hint="make room", since=AT),
        {"event": "pushes-off", "words": "the disk is full", "hint": "make room", "since": WHEN},
    ),
    (EventsLost(at=AT, count=5), {"event": "lost", "count": 5}),
    (
        RefreshEnded(
            at=AT,
            repo=REPO,
            outcome=RefreshOutcome("acme/widgets", AT, 0.5, (MOVED,)),
            health=Health(),
            learnt={},
        ),
        {
            "event": "refreshed",
            "result": "moved",
            "seconds": 0.5,
            "moved": [{"ref": "refs/heads/main", "old": OLD, "new": NEW}],
            "error": None,
            "kind": None,
        },
    ),
    (
        PushRuled(at=AT, repo=REPO, decision=PushDecision("p", REPO, "10.0.0.7", (COMMAND,), {COMMAND.ref: "no"})),
        {
            "event": "pushed",
            "verdict": "rejected",
            "refs": ["refs/heads/main"],
            "commits": [NEW],
            "reason": "no",
            "client": "10.0.0.7",
            "guest": None,
        },
    ),
    (
        SessionShared(at=AT, repo=REPO, session="s", nodes=("a", "b"), node="b", commit=NEW, continues=True),
        {"session": "s", "nodes": ["a", "b"], "node": "b", "commit": NEW, "continues": True},
    ),
    (TurnsArrived(at=AT, repo=REPO, sessions=("s",)), {"sessions": ["s"]}),
]
"""One event of each kind, and its document without `at` and `repo`."""


@pytest.mark.parametrize(("event", "document"), EXAMPLES, ids=[event.name for event, _ in EXAMPLES])
def test_the_document_of_an_event(event: Event, document: dict[str, Any]) -> None:
    """Its keys come in this order: the event, the time, the repository, and then its own."""
    repo = {"repo": REPO.name if isinstance(event, RepoEvent) else None}
    if isinstance(event, EventsLost):
        del repo["repo"]
    wanted = {"event": event.name, "at": WHEN, **repo, **document}
    assert event.document() == wanted
    assert list(event.document()) == list(wanted)


def test_every_kind_has_an_example() -> None:
    assert [type(event) for event, _ in EXAMPLES] == [*TOLD, *TOLD_IN_A_FLEET]


def test_an_event_names_a_bounded_number_of_refs() -> None:
    """The followed branch is among them, wherever it stands."""
    moved = tuple(RefChange(f"refs/heads/{number}", None, NEW) for number in range(MOST_TOLD + 7))
    facts = RefsMoved(repo=REPO, changes=moved, followed=moved[-1].ref).facts()
    assert [each["ref"] for each in facts["refs"]] == [each.ref for each in (moved[-1], *moved[: MOST_TOLD - 1])]
    assert (facts["more"], facts["head"]) == (7, None)
    facts = RefsMoved(repo=REPO, changes=moved[:MOST_TOLD], followed=moved[-1].ref).facts()
    assert (len(facts["refs"]), facts["more"]) == (MOST_TOLD, 0)
    facts = RefsMoved(repo=REPO, changes=(), head=HeadChange("refs/heads/a", "refs/heads/b")).facts()
    assert facts == {"refs": [], "more": 0, "head": {"old": "refs/heads/a", "new": "refs/heads/b"}}


def row(event: Event) -> str:
    """The line of the table for a kind of event."""
    [*_, meaning] = [line for line in (type(event).__doc__ or "").splitlines() if line][:1]
    names, keys = (", ".join(f"`{each}`" for each in some) for some in (event.names, event.facts()))
    return f"| {names} | {meaning} | {keys} |"


def test_the_documents_have_the_table_of_these_events() -> None:
    """operations.md says what a platform is told, when, and with which keys."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("## Events for a platform")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [row(event) for event, _ in EXAMPLES if event.goes_out]
    named = {name for line in rows for name in re.findall(r"`([\w-]+)`", line.split("|")[1])}
    assert named == FOR_PLATFORMS


def test_the_page_of_the_api_has_the_other_events() -> None:
    """api.md says what GET /v1/events has besides."""
    section = (ROOT / "docs" / "api.md").read_text().partition("## Events")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [row(event) for event, _ in EXAMPLES if not event.goes_out]


def test_every_event_reaches_who_watches() -> None:
    """By the stream, or by the queue in front of the database that tells the stream."""
    bus, stream, fetches = EventBus(), Mock(), Mock()
    parts = [Mock() for _ in list(signature(subscribe).parameters)[2:]]
    parts[6].fetches = fetches
    subscribe(bus, stream, *parts)
    for event, _ in EXAMPLES:
        bus.publish(event)
    told = [call.args[0] for call in (*stream.publish.mock_calls, *fetches.add.mock_calls)]
    # The scheduler hands these to their queue by itself; the stream makes the others.
    elsewhere = (RefreshEnded, EventsLost)
    assert {type(event) for event in told} == {type(event) for event, _ in EXAMPLES} - set(elsewhere)


def test_a_listener_that_fails_keeps_the_event_from_nobody() -> None:
    bus, heard = EventBus(), list[Event]()

    def fail(event: FetchBegan) -> None:
        raise ValueError(event)

    bus.subscribe(FetchBegan, fail, heard.append)
    for event, _ in EXAMPLES:
        bus.publish(event)
    assert heard == [EXAMPLES[0][0]]
