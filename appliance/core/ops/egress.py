"""What a guest's egress allowlist needs: the mirror's own two ports, and no upstream."""

from __future__ import annotations

from urllib.parse import urlsplit

from appliance.core.errors import UsageError
from appliance.core.node.node import Node
from appliance.core.units import Address

_EVERYWHERE = ("0.0.0.0", "::")
_DEFAULT_PORTS = {"git": 9418, "http": 80, "https": 443}


def egress_entries(node: Node) -> list[str]:
    """`host:port` for the git and the HTTP listener, as guests call them. Raises UsageError when that is not known."""
    found = node.status()
    serve = node.config.serve
    git = found["git"] or serve.public_git or _url("git", serve.git)
    http = found["http"] or serve.public_http or _url("http", serve.http)
    entries = []
    for url, setting in ((git, "public_git"), (http, "public_http")):
        if not url:
            continue
        parts = urlsplit(url)
        host, port = parts.hostname or "", _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        if host in _EVERYWHERE:
            raise UsageError(
                f"{url} listens everywhere, which is not an address that a guest can be allowed",
                hint=f'say what guests call this node: [serve] {setting} = "{parts.scheme}://mirror:{port}"',
            )
        if port == 0:
            raise UsageError(f"{url} picks its port when serve starts", hint="start serve, or give it a port")
        entries.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return list(dict.fromkeys(entries))


def _url(scheme: str, address: Address | None) -> str:
    return f"{scheme}://{address}" if address else ""
