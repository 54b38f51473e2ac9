"""The addresses that a listener of `[serve]` may have: TCP, the path of a unix socket, or a port of vsock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.core.units import Address, parse_address

_ALLOWED = (
    'an address such as "127.0.0.1:9418", "[::1]:9418", "unix:/run/gitmirror/git.sock" or "vsock:9418", '
    'a list of such addresses, or "" to turn it off'
)
LARGEST_VSOCK_PORT = 2**32 - 2
"""The port above it means any port (VMADDR_PORT_ANY of vsock(7))."""


@dataclass(frozen=True)
class UnixAddress:
    """The absolute path of a unix socket to listen on."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class VsockAddress:
    """A port of vsock to listen on, for every CID of this machine. Port 0 means any free port."""

    port: int

    def __str__(self) -> str:
        return f"vsock:{self.port}"


ListenAddress = Address | UnixAddress | VsockAddress


def parse_listener(text: str) -> ListenAddress | None:
    """Parses `HOST:PORT`, `unix:/path` or `vsock:PORT`; returns None for the empty string. Raises ValueError."""
    if isinstance(text, str) and text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/") or not path.isprintable():
            raise ValueError('"unix:" with the absolute path of a socket, such as "unix:/run/gitmirror/git.sock"')
        return UnixAddress(path)
    if isinstance(text, str) and text.startswith("vsock:"):
        port = text.removeprefix("vsock:")
        if not port.isascii() or not port.isdigit() or len(port) > 10 or int(port) > LARGEST_VSOCK_PORT:
            raise ValueError(f'"vsock:" with a port from 0 to {LARGEST_VSOCK_PORT}, such as "vsock:9418"')
        return VsockAddress(int(port))
    try:
        return parse_address(text)
    except ValueError:
        raise ValueError(_ALLOWED) from None


def parse_listeners(value: Any) -> tuple[ListenAddress, ...]:
    """Parses one address or a list of them; "" and [] are a listener that is off. Raises ValueError."""
    if isinstance(value, str):
        found = parse_listener(value)
        return () if found is None else (found,)
    if not isinstance(value, Sequence):
        raise ValueError(_ALLOWED)
    parsed = [parse_listener(each) for each in value]
    addresses = tuple(each for each in parsed if each is not None)
    if len(addresses) != len(parsed):
        raise ValueError(f'{_ALLOWED}; "" has no place in a list')
    twice = [
        str(each) for each in addresses if addresses.count(each) > 1 and not (hasattr(each, "port") and each.port == 0)
    ]
    if twice:
        raise ValueError(f"a list that names each address once, and {twice[0]} is in it twice")
    return addresses


def url_of_listener(addresses: Sequence[ListenAddress], scheme: str) -> str | None:
    """What to show as a listener's address: the URL of its first TCP address, else its first one, else None."""
    return tcp_url(addresses, scheme) or next((str(each) for each in addresses), None)


def tcp_url(addresses: Sequence[ListenAddress], scheme: str) -> str | None:
    """The URL of a listener's first TCP address, or None: no client takes the path of a socket as a URL."""
    return next((f"{scheme}://{each}" for each in addresses if isinstance(each, Address)), None)
