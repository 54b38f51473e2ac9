"""The rules of news: which look counts, when a node looks for itself, and what the digest tells apart."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from appliance.core.fleet.asking import HeardNews, _heard
from appliance.core.fleet.messages import LookRequest, News
from appliance.core.fleet.neighbours import digest_of
from appliance.core.fleet.news import Sharing
from appliance.core.fleet.wire import read, write
from appliance.core.git.failures import Kind
from appliance.core.models import Health, Repo
from appliance.core.refresh.attempt import conclude
from appliance.core.refresh.failure import HeardFailure
from appliance.core.refresh.runs import Heard, MirrorFacts
from appliance.core.refresh.schedule import delay_of_hearer

URL = "https://example.com/acme/widgets"
REPO = Repo(1, "acme/widgets", URL, None, "cli", None, True, 0.0)
NEWS = News("a", "acme/widgets", URL, "a" * 64, 1.5, moved=False, next=58.5)
QUESTION = LookRequest("b", "acme/widgets", URL, 60.0)
FACTS = MirrorFacts(tip="1" * 40, head="refs/heads/main", refs=1, size=None)


def test_news_comes_back_from_bytes() -> None:
    failed = replace(NEWS, digest=None, error="gone", error_kind="not-found", retry_after=5.0)
    for message in (NEWS, failed):
        assert read(write(message), News) == message
    assert read(write(QUESTION), LookRequest) == QUESTION


def test_the_digest_tells_refs_names_and_head_apart() -> None:
    refs = {"refs/heads/main": "1" * 40, "refs/heads/caf\udce9": "2" * 40}
    digest = digest_of(refs, "refs/heads/main")
    assert digest == digest_of(dict(reversed(refs.items())), "refs/heads/main")
    others = [
        digest_of(refs, None),
        digest_of(refs, "refs/heads/caf\udce9"),
        digest_of(refs | {"refs/heads/main": "3" * 40}, "refs/heads/main"),
        digest_of(refs | {"refs/tags/v1": "1" * 40}, "refs/heads/main"),
        digest_of({name: oid * 2 for name, oid in refs.items()}, "refs/heads/main"),
    ]
    assert len({digest, *others}) == 6
    # A HEAD that names no branch is not listed, and so it does not count.
    assert digest_of(refs, "refs/heads/gone") == digest_of(refs, None)
    assert digest_of({}, "refs/heads/master") == digest_of({}, "refs/heads/main")


@pytest.mark.parametrize(("next_in", "expected"), [(60.0, 66.0), (600.0, 66.0), (0.0, 6.0)])
def test_a_node_looks_for_itself_a_tenth_of_the_interval_late(next_in: float, expected: float) -> None:
    assert delay_of_hearer(60.0, next_in, 0.0) == pytest.approx(expected)
    assert delay_of_hearer(1.0, 1.0, 0.0) == pytest.approx(2.0)


def test_lag_counts_from_the_look_of_the_other_node() -> None:
    ended = conclude(REPO, Health(), replace(FACTS, heard=Heard(7.0, 53.0)), interval=60, duration=0.1, ended_at=1000.0)
    assert (ended.health.verified_at, ended.health.checked_at) == (993.0, 993.0)
    assert ended.delay == pytest.approx(59.0)


def test_a_failure_of_another_node_is_this_nodes_too_and_so_is_retry_after() -> None:
    failure = HeardFailure(Kind.RATE_LIMITED, "too many", 600.0, Heard(2.0, 600.0))
    ended = conclude(REPO, Health(verified_at=5.0), failure, interval=60, duration=0.1, ended_at=1000.0)
    assert (ended.health.failures, ended.health.error_kind, ended.health.last_error) == (1, "rate-limited", "too many")
    assert (ended.health.checked_at, ended.health.verified_at) == (998.0, 5.0)
    assert ended.health.retry_at == 1600.0
    assert ended.patience == 600.0 <= ended.delay


def test_an_answer_is_as_new_as_was_asked_for() -> None:
    now = time.monotonic()
    at_once = _heard(NEWS, QUESTION, now - 0.5, has_looked=False)
    assert at_once == HeardNews(NEWS, now - 0.5 - 1.5)
    assert _heard(replace(NEWS, age=61.0), QUESTION, now, has_looked=False) is None
    assert _heard(NEWS, replace(QUESTION, age=0.0), now, has_looked=False) is None
    looked = _heard(NEWS, replace(QUESTION, age=0.0), now - 2, has_looked=True)
    assert looked is not None and looked.began_at >= now - 2
    assert _heard(replace(NEWS, repo="acme/other"), QUESTION, now, has_looked=False) is None


@pytest.mark.parametrize(
    ("url", "readers", "shared"),
    [(URL, None, True), (URL, "open", True), (URL, "token", False), ("file:///srv/widgets", None, False)],
)
def test_what_is_shared(url: str, readers: str | None, shared: bool) -> None:
    sharing = Sharing(lambda repo: readers, lambda: 60.0)
    assert sharing.shares(replace(REPO, url=url)) is shared
    assert not sharing.shares(replace(REPO, url=url, enabled=False))
    assert not sharing.fits(replace(REPO, url=url), "::nonsense")
    assert not sharing.fits(replace(REPO, url=url), "https://example.com/acme/other")
