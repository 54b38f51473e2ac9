"""The addresses for guests under systemd, whose sockets set them: the drop-ins that `install --listen` writes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from appliance.core.errors import UsageError

LISTEN_CONF = "listen.conf"
PORTS: Mapping[str, int] = {"git": 9418, "http": 9419}
"""The listeners for guests. The admin port is for operators, so it stays where it is."""
Host = ipaddress.IPv4Address | ipaddress.IPv6Address
LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
_ALLOWED = "give an IP address such as 10.0.0.1 or 0.0.0.0, unix:/DIRECTORY, or vsock"


def listen_drop_ins(addresses: Sequence[str]) -> dict[str, bytes]:
    """The drop-in of each socket unit for guests, empty for loopback alone; none at all without addresses.

    An address is an IP address, `unix:/DIRECTORY` for the sockets git.sock and http.sock in it, or `vsock`. Each goes
    to both listeners with its usual port, and loopback stays beside them for what runs on the node. Raises UsageError.
    """
    if not addresses:
        return {}
    # The first one is what guests are told.
    wanted = list(dict.fromkeys(map(_parse, addresses)))
    hosts = [host for host in wanted if not isinstance(host, str)]
    for everywhere in (host for host in hosts if host.is_unspecified):
        # systemd could open none of the sockets, because an address can be bound once.
        for host in hosts:
            if host != everywhere and everywhere.version in (6, host.version):
                raise UsageError(
                    f"--listen {everywhere} takes in {host}", hint=f"give {everywhere} or {host}, not both"
                )
    if not any(host.is_unspecified for host in hosts) and LOOPBACK not in wanted:
        wanted.append(LOOPBACK)
    drop_ins = {}
    for listener, port in PORTS.items():
        streams = [_stream(address, listener, port) for address in wanted]
        lines = ["[Socket]", "ListenStream=", *(f"ListenStream={stream}" for stream in streams), ""]
        head = "# Written by `gitmirror.pyz install --listen`, and again by the next one."
        drop_ins[f"gitmirror-{listener}.socket"] = b"" if wanted == [LOOPBACK] else "\n".join([head, *lines]).encode()
    return drop_ins


def _parse(address: str) -> Host | str:
    """An IP address, `vsock`, or the directory of `unix:/DIRECTORY`. Raises UsageError."""
    if address == "vsock":
        return address
    refused = UsageError(f"--listen is {address!a}", hint=_ALLOWED)
    # A line break would begin another line of the unit.
    if not address.isprintable():
        raise refused
    if address.startswith("unix:"):
        directory = address.removeprefix("unix:").rstrip("/")
        if not directory.startswith("/"):
            raise refused
        return directory
    try:
        return ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise refused from None


def _stream(address: Host | str, listener: str, port: int) -> str:
    """The address as systemd.socket(5) writes it, where % begins a specifier."""
    if address == "vsock":
        return f"vsock::{port}"
    if isinstance(address, str):
        return f"{address.replace('%', '%%')}/{listener}.sock"
    host = str(address).replace("%", "%%")
    return f"[{host}]:{port}" if address.version == 6 else f"{host}:{port}"
