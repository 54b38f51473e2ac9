"""The addresses for guests under systemd, whose sockets set them: the drop-ins that `install --listen` writes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from appliance.core.errors import UsageError

LISTEN_CONF = "listen.conf"
PORTS: Mapping[str, int] = {"git": 9418, "http": 9419}
"""The listeners for guests. The admin port is for operators, so it stays where it is."""
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
_ALLOWED = "give an IP address such as 10.0.0.1 or 0.0.0.0, unix:/DIRECTORY, or vsock"


def listen_drop_ins(addresses: Sequence[str]) -> dict[str, bytes]:
    """The drop-in of each socket unit for guests, empty for loopback alone; none at all without addresses.

    An address is an IP address, `unix:/DIRECTORY` for the sockets git.sock and http.sock in it, or `vsock`. Each goes
    to both listeners with its usual port, and loopback stays beside them for what runs on the node. Raises UsageError.
    """
    if not addresses:
        return {}
    # The first one is what guests are told.
    wanted = list(dict.fromkeys(addresses))
    if LOOPBACK not in wanted and not any(address in EVERYWHERE for address in wanted):
        wanted.append(LOOPBACK)
    drop_ins = {}
    for listener, port in PORTS.items():
        streams = [_stream(address, listener, port) for address in wanted]
        lines = ["[Socket]", "ListenStream=", *(f"ListenStream={stream}" for stream in streams), ""]
        head = "# Written by `gitmirror.pyz install --listen`, and again by the next one."
        drop_ins[f"gitmirror-{listener}.socket"] = b"" if wanted == [LOOPBACK] else "\n".join([head, *lines]).encode()
    return drop_ins


def _stream(address: str, listener: str, port: int) -> str:
    """The address as systemd.socket(5) writes it."""
    if address == "vsock":
        return f"vsock::{port}"
    if address.startswith("unix:"):
        directory = address.removeprefix("unix:").rstrip("/")
        if not directory.startswith("/") or not directory.isprintable():
            raise UsageError(f"--listen is {address!a}", hint=_ALLOWED)
        return f"{directory.replace('%', '%%')}/{listener}.sock"
    try:
        host = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise UsageError(f"--listen is {address!a}", hint=_ALLOWED) from None
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
