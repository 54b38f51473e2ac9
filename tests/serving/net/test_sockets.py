"""Listening sockets: where they listen, and what is said when they cannot."""

from __future__ import annotations

import socket

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.serving.net.sockets import listen, shown_address
from appliance.core.units import Address


def test_port_0_picks_a_free_one_and_the_url_says_which() -> None:
    """That is what the ready line prints."""
    with listen(Address("127.0.0.1", 0), "git") as listening:
        port = listening.getsockname()[1]
        assert port > 0
        assert shown_address(listening, "git") == f"git://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            assert listening.accept()


def test_a_listening_socket_is_non_blocking_and_stays_with_us() -> None:
    """A child that inherits it would keep the port after a kill."""
    with listen(Address("127.0.0.1", 0), "git") as listening:
        assert not listening.getblocking()
        assert not listening.get_inheritable()


def test_a_port_in_use_names_the_setting_to_change() -> None:
    """By option and by key."""
    with listen(Address("127.0.0.1", 0), "git") as listening:
        port = listening.getsockname()[1]
        with pytest.raises(
            GitmirrorError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
        ) as caught:
            listen(Address("127.0.0.1", port), "admin")
    assert "--admin" in caught.value.hint
    assert "[serve] admin" in caught.value.hint


def test_a_port_that_was_just_given_back_can_be_taken_again() -> None:
    """A restart finds connections of the last serve in TIME_WAIT."""
    listening = listen(Address("127.0.0.1", 0), "git")
    port = listening.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    listening.setblocking(True)
    accepted, _ = listening.accept()
    accepted.close()
    listening.close()
    client.close()
    listen(Address("127.0.0.1", port), "git").close()


@pytest.mark.parametrize("host", ["nonsense.invalid", "300.1.1.1", "192.0.2.1", "x" * 70, "a..b", "fe80::zz"])
def test_an_address_that_is_not_ours_is_an_error_in_words(host: str) -> None:
    """Unknown names, numbers out of range, other machines' addresses, labels that are too long."""
    with pytest.raises(GitmirrorError, match="cannot listen on"):
        listen(Address(host, 0), "git")


def test_ipv6_is_shown_in_brackets() -> None:
    """As a URL has it."""
    try:
        probe = socket.socket(socket.AF_INET6)
        probe.bind(("::1", 0))
        probe.close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listen(Address("::1", 0), "git") as listening:
        assert shown_address(listening, "http") == f"http://[::1]:{listening.getsockname()[1]}"
