"""Durations, sizes, addresses and times: what people may write, and what they read."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.units import (
    Address,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_moment,
    parse_size,
    rfc3339,
)

DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
SIZE_UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


@given(number=st.integers(0, 10**6), unit=st.sampled_from(sorted(DURATION_UNITS)))
def test_every_unit_of_a_duration_is_worth_its_seconds(number: int, unit: str) -> None:
    """A whole number with a unit is that many times the unit."""
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * DURATION_UNITS[unit])


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1.5m", 90), (" 2h ", 7200), ("0.5d", 43200)])
def test_durations_of_the_contract_are_read(text: str, seconds: float) -> None:
    """The forms that the documents show, a fraction, and blanks around."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "-5s", "+5s", "5 s", "5S", "1e3s", ".5s", "5.s", "5s 3m", "\uff15s", "nan", "1w", 5, None, ["5s"]],
)
def test_what_is_no_duration_is_refused_with_an_example(text: Any) -> None:
    """Anything else is a ValueError whose text shows what is allowed."""
    with pytest.raises(ValueError, match='such as "30s"'):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"), (0.0004, "0ms"), (0.85, "850ms"), (1, "1s"), (12.4, "12s"), (59.4, "59s"), (60, "1m"),
        (200, "3m 20s"), (3599, "59m 59s"), (3600, "1h"), (18120, "5h 2m"), (86400, "1d"), (273600, "3d 4h"),
        (59.6, "1m"), (3599.7, "1h"),
    ],
)  # fmt: skip
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    """Short, and carried over where it rounds up to the next unit."""
    assert format_duration(seconds) == text


def test_a_duration_just_below_a_second_is_not_shown_as_a_thousand_milliseconds() -> None:
    """Rounding carries over here as everywhere else."""
    assert format_duration(0.9996) == "1s"


@given(st.floats(0, 10**8))
def test_a_shown_duration_is_true_to_its_last_unit(seconds: float) -> None:
    """Reading what was shown gives back the value, but for what the smaller unit leaves out."""
    total = sum(parse_duration(part) for part in format_duration(seconds).split())
    assert abs(total - seconds) <= max(0.5, seconds / 24)


@given(number=st.integers(0, 10**6), unit=st.sampled_from(sorted(SIZE_UNITS)))
def test_every_unit_of_a_size_is_worth_its_bytes(number: int, unit: str) -> None:
    """A whole number with a unit is that many times the unit, exactly."""
    assert parse_size(f"{number}{unit}") == number * SIZE_UNITS[unit]


@pytest.mark.parametrize(
    "text", ["", "10", "10GB", "10gib", "-1B", "1.5GiB", "GiB", "1 GiB", "\uff11B", 10, None, False]
)
def test_what_is_no_size_is_refused_with_an_example(text: Any) -> None:
    """Also decimal units: GB and GiB differ by 7 %, so nobody should have to guess."""
    with pytest.raises(ValueError, match='"256KiB"'):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (512, "512 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (99 * 1024, "99.0 KiB"),
        (100 * 1024, "100 KiB"), (1_500_000, "1.4 MiB"), (3 * 1024**3, "3.0 GiB"), (5000 * 1024**3, "5000 GiB"),
    ],
)  # fmt: skip
def test_a_size_is_shown_in_binary_units(size: int, text: str) -> None:
    """One decimal below a hundred, none above."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9418", Address("127.0.0.1", 9418)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:9418", Address("::1", 9418)),
        ("[::]:65535", Address("::", 65535)),
    ],
)
def test_an_address_is_read_and_shown_the_same(text: str, address: Address) -> None:
    """Names, IPv4, and IPv6 in brackets."""
    assert parse_address(text) == address
    assert str(address) == text


def test_the_empty_address_is_a_listener_that_is_off() -> None:
    """As the contract says of `[serve]`."""
    assert parse_address("") is None


@pytest.mark.parametrize(
    "text",
    ["9418", ":9418", "host:", "host", "::1:9418", "[::1]", "h:99999", "h:-1", "h:+1", "h:\uff19", "h:1 ", 9418, None],
)
def test_what_is_no_address_is_refused_with_an_example(text: Any) -> None:
    """A bare IPv6 address too: where it ends and the port begins would be a guess."""
    with pytest.raises(ValueError, match=re.escape('"[::1]:9418"')):
        parse_address(text)


@given(st.floats(0, 4 * 10**9))
def test_times_are_rfc_3339_in_utc_with_milliseconds(timestamp: float) -> None:
    """They sort as text, end in Z, and are off by less than a millisecond."""
    text = rfc3339(timestamp)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert abs(datetime.fromisoformat(text).timestamp() - timestamp) < 0.0011


@pytest.mark.parametrize("text", ["400000d", "30000d", "0931-01-01", "1969-12-31"])
def test_long_ago_comes_first_as_text_too(text: str) -> None:
    """The database compares it so: `session drop --older-than` of a thousand years took all."""
    assert "0930-12-01" <= parse_moment(text, 1_769_860_800.0) <= "1970-01-01T00:00:00.000Z"
