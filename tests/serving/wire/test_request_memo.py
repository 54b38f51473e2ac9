"""Requests that are known by their bytes: what is remembered is bounded by what they are unpacked."""

from __future__ import annotations

from appliance.core.serving.fetch.request_memo import RequestMemo
from appliance.core.serving.net.reading import Charge
from appliance.core.serving.wire.v2 import V2Request


def found(memo: RequestMemo, raw: bytes) -> V2Request | None:
    known = memo.find(raw)
    return known.request if known else None


def request(number: int) -> V2Request:
    return V2Request("fetch", (), (b"want %040d" % number,))


def test_what_was_remembered_is_found_by_the_same_bytes() -> None:
    """And by no others."""
    memo = RequestMemo()
    memo.remember(b"packed", request(1), Charge(), 1000)
    assert found(memo, b"packed") == request(1)
    assert found(memo, b"packed.") is None


def test_the_oldest_goes_when_it_becomes_too_much() -> None:
    """Counted by what a request takes, not by the few bytes that it came in."""
    memo = RequestMemo()
    each = RequestMemo.MOST_REMEMBERED // 4
    for number in range(5):
        memo.remember(b"%d" % number, request(number), Charge(), each)
    assert found(memo, b"0") is None
    assert [found(memo, b"%d" % number) for number in range(1, 5)] == [request(number) for number in range(1, 5)]


def test_a_small_packet_that_unpacks_to_a_giant_is_not_remembered() -> None:
    """Eight megabytes in as many kilobytes are no reason to forget everything else."""
    memo = RequestMemo()
    memo.remember(b"usual", request(1), Charge())
    memo.remember(b"bomb", request(2), Charge(), RequestMemo.MOST_REMEMBERED)
    assert found(memo, b"bomb") is None and found(memo, b"usual") == request(1)


def test_the_words_for_a_request_are_few_however_many_lines_it_has() -> None:
    """They go into events and the database: 600,000 lines of deepen-not were 24 MB of them."""
    lines = tuple(b"deepen-not refs/heads/branch-%06d" % number for number in range(1000))
    assert len(V2Request("fetch", (), lines).text) < 500
