"""The entries that a guest's egress allowlist needs: the mirror's two ports for guests, and no upstream."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

from appliance.core.config.addresses import tcp_url
from appliance.core.errors import UsageError
from appliance.core.node.node import Node

_EVERYWHERE = ("0.0.0.0", "::")
_DEFAULT_PORTS = {"git": 9418, "http": 80, "https": 443}


def egress_entries(node: Node) -> list[str]:
    """Returns `host:port` of the git and the HTTP listener as guests use them. Raises UsageError when unknown."""
    entries = []
    for parts in _guest_urls(node):
        host, port = parts.hostname or "", _port_of(parts)
        if host in _EVERYWHERE:
            raise UsageError(
                f"{parts.geturl()} listens on all addresses, which an allowlist cannot name", hint=_mend(parts)
            )
        if port == 0:
            raise UsageError(
                f"{parts.geturl()} gets its port only when serve starts", hint="start serve, or configure a port"
            )
        entries.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return list(dict.fromkeys(entries))


def unreachable(node: Node) -> Iterator[str]:
    """Says of each listener whose URL reaches no guest why, and what to do."""
    for parts in _guest_urls(node):
        if parts.hostname in _EVERYWHERE:
            yield f"guests cannot reach {parts.geturl()}, which means all addresses of this node: {_mend(parts)}"


def _guest_urls(node: Node) -> Iterator[SplitResult]:
    """The URLs of the git and the HTTP listener as guests use them."""
    found, serve = node.status(), node.config.serve
    git = found["git"] or serve.public_git or tcp_url(serve.git, "git")
    http = found["http"] or serve.public_http or tcp_url(serve.http, "http")
    # A unix socket or vsock alone is reached by no network.
    return (urlsplit(url) for url in (git, http) if url and "://" in url)


def _port_of(parts: SplitResult) -> int:
    return _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port


def _mend(parts: SplitResult) -> str:
    setting = "public_git" if parts.scheme == "git" else "public_http"
    return f'set the URL that guests use: [serve] {setting} = "{parts.scheme}://mirror:{_port_of(parts)}"'
