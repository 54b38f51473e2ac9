"""Where other nodes of the fleet can fetch from this one."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

from appliance.core.config.settings import Config


def own_url(config: Config, listening: Mapping[str, Sequence[str]], host: str = os.uname().nodename) -> str | None:
    """The URL that this node gives to the others: `[fleet] url`, else what guests are told, else where it listens.

    `listening` has the addresses of each listener. The git listener comes first, because its guests need no HTTP
    server between. An address that stands for every interface is given as `host`. None without any TCP listener.
    """
    told = config.fleet.url or config.serve.public_git or config.serve.public_http
    if told:
        return told.rstrip("/")
    for listener in ("git", "http"):
        for address in listening.get(listener, ()):
            if "://" in address:
                return _with_host(address, host)
    return None


def is_url(url: str) -> bool:
    """Whether a node could fetch from there: what another node says of itself may be anything."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("git", "http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def is_local(url: str) -> bool:
    """Whether the URL leads to the machine of whoever uses it."""
    name = urlsplit(url).hostname or ""
    address = _ip(name)
    return address.is_loopback if address else name == "localhost" or name.endswith(".localhost")


def _with_host(url: str, host: str) -> str:
    parts = urlsplit(url)
    address = _ip(parts.hostname or "")
    if address is None or not address.is_unspecified:
        return url.rstrip("/")
    return urlunsplit((parts.scheme, host if parts.port is None else f"{host}:{parts.port}", "", "", ""))


def _ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
