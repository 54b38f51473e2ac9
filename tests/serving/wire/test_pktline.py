"""pkt-lines: any chunking gives the same packets, and garbage is a PacketError and nothing else."""

from __future__ import annotations

import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.serving.wire.pktline import FLUSH, LARGEST, PacketError, PacketSplitter, packet, packet_length
from tests.support.gitutil import clean_env, git, git_bytes

PACKETS = st.lists(st.one_of(st.none(), st.binary(max_size=80)), max_size=12)
HEX = set(string.hexdigits.encode())


def joined(packets: list[bytes | None]) -> bytes:
    return b"".join(FLUSH if each is None else packet(each) for each in packets)


def chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into pieces of the given sizes, the last piece the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(PACKETS, st.lists(st.integers(0, 50), max_size=40))
def test_any_chunking_gives_the_same_packets(packets: list[bytes | None], sizes: list[int]) -> None:
    """However the network cut the stream, nothing is lost, merged or left over."""
    splitter = PacketSplitter()
    found = [each for piece in chunks(joined(packets), sizes) for each in splitter.feed(piece)]
    assert found == packets
    assert splitter.rest == b""


@given(PACKETS, st.binary(max_size=60), st.integers(0, 12))
def test_stopping_early_leaves_the_remainder(packets: list[bytes | None], behind: bytes, stop: int) -> None:
    """The pack behind a push's commands must reach receive-pack whole."""
    packets = [*packets[:stop], None]
    splitter = PacketSplitter()
    taken = []
    for each in splitter.feed(joined(packets) + behind):
        taken.append(each)
        if len(taken) == len(packets):
            break
    assert taken == packets
    assert splitter.rest == behind


@given(st.binary(max_size=200), st.lists(st.integers(0, 20), max_size=20))
@settings(max_examples=300)
def test_garbage_raises_a_packet_error_and_nothing_else(garbage: bytes, sizes: list[int]) -> None:
    """Whatever comes: packets, or that error."""
    splitter = PacketSplitter()
    try:
        for piece in chunks(garbage, sizes):
            list(splitter.feed(piece))
    except PacketError:
        return
    assert garbage.endswith(splitter.rest)


@given(st.binary(max_size=6))
def test_only_four_hex_digits_are_a_length(digits: bytes) -> None:
    """int() takes signs, underscores and blanks, and git does not."""
    if len(digits) == 4 and set(digits) <= HEX and int(digits, 16) != 3:
        assert packet_length(digits) == int(digits, 16)
    else:
        with pytest.raises(PacketError):
            packet_length(digits)


@pytest.mark.parametrize("digits", [b"+1ff", b"1_ff", b" 1ff", b"1ff ", b"0x1f", b"-001", b"0003", b"", b"00000"])
def test_what_python_reads_and_git_does_not_is_refused(digits: bytes) -> None:
    """The two sides of the relay must agree on where a packet ends."""
    with pytest.raises(PacketError):
        packet_length(digits)


@pytest.mark.parametrize("special", [b"0000", b"0001", b"0002"])
def test_the_special_packets_have_no_payload(special: bytes) -> None:
    """Flush, delimiter and response end; the packet behind one is whole."""
    assert list(PacketSplitter().feed(special + packet(b"x"))) == [None, b"x"]


def test_an_empty_packet_is_none_of_the_special_ones() -> None:
    """`0004` has a payload of no bytes."""
    assert list(PacketSplitter().feed(b"0004")) == [b""]


def test_a_packet_over_the_bound_is_refused_by_its_length_alone() -> None:
    """Nobody waits for sixty kilobytes that will not be taken."""
    with pytest.raises(PacketError, match="101 bytes"):
        list(PacketSplitter(most=100).feed(b"0065"))
    assert list(PacketSplitter(most=100).feed(packet(b"x" * 96))) == [b"x" * 96]


def test_the_largest_packet_of_git_is_taken() -> None:
    """65520 bytes with its length; what four hex digits could say beyond it is refused."""
    assert list(PacketSplitter().feed(packet(b"x" * (LARGEST - 4)))) == [b"x" * (LARGEST - 4)]
    with pytest.raises(PacketError):
        list(PacketSplitter().feed(b"fff1"))


def test_many_small_packets_in_one_feed_take_time_in_proportion() -> None:
    """Cutting the buffer at each would take seconds of the loop for eight megabytes of five-byte packets."""

    def seconds(count: int) -> float:
        data, splitter, start = packet(b"x") * count, PacketSplitter(), time.process_time()
        assert sum(1 for _ in splitter.feed(data)) == count
        return time.process_time() - start

    small = min(seconds(20_000) for _ in range(3))
    large = min(seconds(160_000) for _ in range(2))
    assert large < 24 * small, "eight times as much may take eight times as long, not sixty-four"


@pytest.mark.parametrize("version", [0, 2])
def test_what_git_itself_sends_is_split_and_put_together_again(generated_bare: Path, version: int) -> None:
    """The advertisement of a real upload-pack, seven bytes at a time, byte for byte."""
    env = clean_env(generated_bare.parent, GIT_PROTOCOL=f"version={version}")
    code, advertised, _ = git_bytes("upload-pack", "--advertise-refs", str(generated_bare), env=env)
    assert code == 0
    splitter = PacketSplitter()
    packets = [each for at in range(0, len(advertised), 7) for each in splitter.feed(advertised[at : at + 7])]
    assert joined(packets) == advertised
    assert splitter.rest == b""
    head = git("rev-parse", "HEAD", cwd=generated_bare).encode()
    assert packets[0] and packets[0].startswith(b"version 2" if version else head)
