"""Requests that are known by their bytes: what is remembered is bounded by what they are unpacked."""

from __future__ import annotations

import pytest

from appliance.core.serving.wire.pktline import PacketError
from appliance.core.serving.wire.v2 import RequestMemo, V2Request


def request(number: int) -> V2Request:
    return V2Request("fetch", (), (b"want %040d" % number,))


def test_what_was_remembered_is_found_by_the_same_bytes() -> None:
    """And by no others."""
    memo = RequestMemo()
    memo.remember(b"packed", request(1), 1000)
    assert memo.find(b"packed") == request(1)
    assert memo.find(b"packed.") is None


def test_the_oldest_goes_when_it_becomes_too_much() -> None:
    """Counted by what a request takes, not by the few bytes that it came in."""
    memo = RequestMemo()
    each = RequestMemo.MOST_REMEMBERED // 4
    for number in range(5):
        memo.remember(b"%d" % number, request(number), each)
    assert memo.find(b"0") is None
    assert [memo.find(b"%d" % number) for number in range(1, 5)] == [request(number) for number in range(1, 5)]


def test_a_small_packet_that_unpacks_to_a_giant_is_not_remembered() -> None:
    """Eight megabytes in as many kilobytes are no reason to forget everything else."""
    memo = RequestMemo()
    memo.remember(b"usual", request(1))
    memo.remember(b"bomb", request(2), RequestMemo.MOST_REMEMBERED)
    assert memo.find(b"bomb") is None and memo.find(b"usual") == request(1)


def test_what_is_held_while_it_is_read_counts() -> None:
    """All guests together have one bound, and what is given back counts no more."""
    memo = RequestMemo()
    with memo.holding(RequestMemo.MOST_READING), pytest.raises(PacketError), memo.holding(1):
        pass
    with memo.holding(RequestMemo.MOST_READING):
        pass
    assert memo.reading == 0
