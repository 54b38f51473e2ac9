"""The documents of `status` and `repos`."""

from __future__ import annotations

import json

import pytest

from appliance.core.config.settings import Config
from appliance.core.models import Health, Repo, State
from appliance.core.observability.report import repo_documents, status_document

NOW = 1_700_000_000.0
REPO = Repo(7, "acme/widgets", "https://github.com/acme/widgets", None, "config", None, True, NOW - 1000)
FRESH = Health(
    tip="1" * 40, head="refs/heads/main", verified_at=NOW - 12.3456, cloned=True, refs=5, size=1000, sessions=2,
    checked_at=NOW - 12,
)  # fmt: skip

STATUS_KEYS = {"serving", "version", "pid", "git", "http", "admin", "clients", "audit_head", "repos", "cache"}
REPO_KEYS = {"name", "url", "branch", "state", "tip", "lag", "verified_at", "last_error", "refs", "size", "sessions"}
LIST_KEYS = {"name", "url", "branch", "source", "state", "interval", "enabled"}
"""The keys of the contract; more are welcome."""


def test_status_has_the_contracts_keys_with_and_without_serve() -> None:
    """Without it `serving` is false and its addresses are null; all of it is JSON."""
    alone = status_document([REPO], {7: FRESH}, Config(), NOW, audit_head="f" * 64)
    assert alone.keys() >= STATUS_KEYS
    assert (alone["serving"], alone["pid"], alone["git"], alone["clients"]) == (False, None, None, 0)
    assert alone["cache"].keys() >= {"hits", "misses", "joined", "bytes", "budget"}
    assert alone["cache"]["budget"] == 10 * 2**30
    live = {"serving": True, "pid": 42, "git": "git://h:1", "cache": {"hits": 1}}
    serving = status_document([REPO], {7: FRESH}, Config(), NOW, audit_head=None, live=live)
    assert serving.keys() == alone.keys()
    assert {key: serving[key] for key in live} == live
    assert json.loads(json.dumps(serving)) == serving


def test_a_repositorys_status_has_the_contracts_keys() -> None:
    """Times in RFC 3339, lag in seconds, the tip whole."""
    [found] = status_document([REPO], {7: FRESH}, Config(), NOW, audit_head=None)["repos"]
    assert found.keys() >= REPO_KEYS
    assert (found["state"], found["branch"], found["tip"]) == ("fresh", "main", "1" * 40)
    assert (found["lag"], found["verified_at"]) == (12.346, "2023-11-14T22:13:07.654Z")
    assert (found["refs"], found["size"], found["sessions"], found["last_error"]) == (5, 1000, 2, None)


def test_what_was_never_looked_at_has_nothing_to_tell() -> None:
    """A repository that was just registered, also before it has a row of its own."""
    [found] = status_document([REPO], {}, Config(), NOW, audit_head=None)["repos"]
    assert (found["state"], found["lag"], found["tip"], found["verified_at"], found["branch"]) == (
        "new", None, None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("branch", "head", "shown"),
    [(None, None, None), (None, "refs/heads/a/b", "a/b"), ("next", "refs/heads/main", "next"), ("next", None, "next")],
)
def test_the_branch_is_the_registered_one_or_the_upstreams(branch: str | None, head: str | None, shown: str) -> None:
    """What snapshots and warming follow."""
    repo = Repo(7, "a/b", "u", branch, "cli", None, True, NOW)
    [found] = repo_documents([repo], {7: Health(head=head)}, Config(), NOW)
    assert found["branch"] == shown


def test_the_registry_has_the_contracts_keys() -> None:
    """The interval is the one that holds, its own or the setting's."""
    own = Repo(8, "a/own", "u", None, "cli", 5.0, False, NOW)
    listed, other = repo_documents([REPO, own], {7: FRESH}, Config(), NOW)
    assert listed.keys() >= LIST_KEYS
    assert (listed["source"], listed["interval"], listed["enabled"], listed["state"]) == ("config", 60.0, True, "fresh")
    assert (other["source"], other["interval"], other["enabled"], other["state"]) == ("cli", 5.0, False, "disabled")
    assert {str(state) for state in State} == {
        "new", "cloning", "fresh", "stale", "failing", "damaged", "disabled",
    }  # fmt: skip
