"""Damages a request as a broken or hostile client would, without forgetting what the request is."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

CONTROLS = b"\0\x01\x07\x08\t\n\x0b\r\x1b\x7f\x80\x9b\xff"
WORDS = (
    b"0000",
    b"0001",
    b"0002",
    b"0003",
    b"0004",
    b"0005\n",
    b"ffff",
    b"fff0",
    b"FFF1",
    b"+001",
    b"0x1f",
    b"\0",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\x1b[2J",
    b"\x1b]0;x\x07",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"..",
    b"/",
    b"//",
    b"%",
    b"%00",
    b"%2e%2e%2f",
    b"refs/heads/",
    b"refs/agents/",
    b"HEAD",
    b"=",
    b":",
    b";",
    b",",
    b"-",
    b"-1",
    b"0" * 40,
    b"1" * 40,
    b"f" * 64,
    b"99999999999999999999",
    b"1" * 5000,
    b"NaN",
    b"[" * 3000,
    b'{"a":' * 1500,
    b"chunked",
    b"gzip",
    b"bytes=",
    b"*",
    b'"',
    b"A" * 300,
)
_NUMBER = re.compile(rb"\d+")
_PIECES = re.compile(rb"(?<=\n)|(?=0000|0001)")


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`data` itself, and `count - 1` mutations of it, always the same for a seed."""
    yield data
    dice = random.Random(seed)
    for _ in range(count - 1):
        damaged = data
        for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
            damaged = dice.choice(_WAYS)(damaged, dice)
        yield damaged


def cut(data: bytes, seed: int, most: int = 8) -> list[bytes]:
    """`data` in up to `most` pieces, as a network may deliver it; none is empty."""
    dice = random.Random(seed)
    at = sorted({0, len(data), *(dice.randrange(len(data) + 1) for _ in range(dice.randrange(most)))})
    return [data[start:end] for start, end in pairwise(at)]


def _place(data: bytes, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.choice((0, 1, 2, 4, 16, 64)))


def _flip(data: bytes, dice: random.Random) -> bytes:
    if not data:
        return data
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _replace(data: bytes, dice: random.Random) -> bytes:
    start, end = _place(data, dice)
    return data[:start] + dice.choice(WORDS) + data[end:]


def _insert(data: bytes, dice: random.Random) -> bytes:
    start, _ = _place(data, dice)
    return data[:start] + dice.choice(WORDS) + data[start:]


def _control(data: bytes, dice: random.Random) -> bytes:
    start, end = _place(data, dice)
    return data[:start] + bytes([dice.choice(CONTROLS)]) + data[min(end, start + 1) :]


def _remove(data: bytes, dice: random.Random) -> bytes:
    start, end = _place(data, dice)
    return data[:start] + data[end:]


def _end(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _repeat(data: bytes, dice: random.Random) -> bytes:
    start, end = _place(data, dice)
    return data[:start] + data[start:end] * dice.choice((2, 3, 10, 100)) + data[end:]


def _pieces(data: bytes, dice: random.Random) -> bytes:
    """Lines, or packets, in another order or twice."""
    pieces = _PIECES.split(data)
    one, other = dice.randrange(len(pieces)), dice.randrange(len(pieces))
    if dice.random() < 0.5:
        pieces[one], pieces[other] = pieces[other], pieces[one]
    else:
        pieces.insert(one, pieces[other])
    return b"".join(pieces)


def _number(data: bytes, dice: random.Random) -> bytes:
    numbers = list(_NUMBER.finditer(data))
    if not numbers:
        return _insert(data, dice)
    found = dice.choice(numbers)
    width = min(len(found[0]), 18)
    value = dice.choice((0, 1, 2, 3, 4, 5, 9, 10**width - 1, 2**31, 2**63, 2**64, int(found[0][:18]) + 1))
    return data[: found.start()] + str(value).zfill(dice.choice((1, width))).encode() + data[found.end() :]


_WAYS: Sequence[Callable[[bytes, random.Random], bytes]] = (
    _flip,
    _replace,
    _insert,
    _control,
    _remove,
    _end,
    _repeat,
    _pieces,
    _number,
)
