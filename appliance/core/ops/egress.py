"""The entries that a guest's egress allowlist needs: the mirror's two ports for guests, and no upstream."""

from __future__ import annotations

from urllib.parse import urlsplit

from appliance.core.config.addresses import tcp_url
from appliance.core.errors import UsageError
from appliance.core.node.node import Node

_EVERYWHERE = ("0.0.0.0", "::")
_DEFAULT_PORTS = {"git": 9418, "http": 80, "https": 443}


def egress_entries(node: Node) -> list[str]:
    """Returns `host:port` of the git and the HTTP listener as guests use them. Raises UsageError when unknown."""
    found = node.status()
    serve = node.config.serve
    git = found["git"] or serve.public_git or tcp_url(serve.git, "git")
    http = found["http"] or serve.public_http or tcp_url(serve.http, "http")
    entries = []
    for url, setting in ((git, "public_git"), (http, "public_http")):
        # A unix socket or vsock alone is reached by no network that an allowlist could open.
        if not url or "://" not in url:
            continue
        parts = urlsplit(url)
        host, port = parts.hostname or "", _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        if host in _EVERYWHERE:
            raise UsageError(
                f"{url} listens on all addresses, which an allowlist cannot name",
                hint=f'set the URL that guests use: [serve] {setting} = "{parts.scheme}://mirror:{port}"',
            )
        if port == 0:
            raise UsageError(f"{url} gets its port only when serve starts", hint="start serve, or configure a port")
        entries.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return list(dict.fromkeys(entries))
