"""Requests to LFS servers, with the standard library's client in threads: trusted TLS, checked addresses, deadlines.

It blocks, so it runs in threads of its own: decrypting and hashing gigabytes on the event loop would hold up guests.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from appliance.core.errors import GitmirrorError
from appliance.core.git.tls_trust import trusted_files
from appliance.core.text import escape

STALL = 30.0
"""Seconds that a server may take to accept a connection, and between two pieces of an answer."""
MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_KEPT_METHOD = (307, 308)


class Unreachable(GitmirrorError):
    """The server could not be asked, or broke off. Asking again may help."""


class NotAllowed(GitmirrorError):
    """The server named an address to which the node sends nothing."""


@dataclass(frozen=True)
class Reach:
    """What a request may reach. `home` is the upstream's host, `is_secure` forbids http."""

    home: str
    is_secure: bool


class Line:
    """The connection that a thread uses, so that somebody else can cut it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._is_cut = False

    def use(self, connection: socket.socket) -> socket.socket:
        """Remembers an open connection. Raises Unreachable if it was cut before."""
        self._socket = connection
        if self._is_cut:
            connection.close()
            raise Unreachable("nobody waits for it any more")
        return connection

    def cut(self) -> None:
        """Ends the connection, and whatever waits for it."""
        self._is_cut = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class LfsAnswer:
    """The head of an answer. `length` is that of the body in bytes, None if it is not known; `read` gives the body."""

    status: int
    headers: Mapping[str, str]
    length: int | None
    _response: http.client.HTTPResponse
    _until: float

    def read(self, most: int) -> bytes:
        """At most so many bytes of the body; empty at its end. Raises Unreachable, also if it ends too early."""
        if time.monotonic() > self._until:
            raise Unreachable("it takes too long")
        with _translated():
            data = self._response.read1(most)
        if not data and self._response.length:
            raise Unreachable("its answer was cut off")
        return data


@contextlib.contextmanager
def request(
    method: str,
    url: str,
    headers: Mapping[str, str],
    reach: Reach,
    line: Line,
    *,
    seconds: float,
    body: bytes | None = None,
) -> Iterator[LfsAnswer]:
    """Sends a request, follows redirects, and yields the answer, whose body may take `seconds` in all.

    `headers` are sent to the origin of `url` alone, but for those that say what is understood. Raises Unreachable,
    NotAllowed.
    """
    until, origin = time.monotonic() + seconds, _origin(url)
    for _ in range(MOST_REDIRECTS + 1):
        sent = headers if _origin(url) == origin else {k: v for k, v in headers.items() if k.lower() in _HARMLESS}
        connection, target = _connection(url, reach, line)
        with contextlib.closing(connection):
            with _translated():
                connection.request(method, target, body=body, headers={"User-Agent": "gitmirror", **sent})
                response = connection.getresponse()
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or location is None:
                found = {name.lower(): value for name, value in response.getheaders()}
                yield LfsAnswer(response.status, found, response.length, response, until)
                return
        url = _joined(url, location)
        if response.status not in _KEPT_METHOD and method == "POST":
            method, body = "GET", None
    raise Unreachable("it redirects more often than is followed")


_HARMLESS = ("accept", "content-type")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise NotAllowed("it redirects to an address that is no URL") from None


def _origin(url: str) -> tuple[str, str, int]:
    parts = _split(url)
    return parts.scheme, (parts.hostname or "").lower(), _port(parts)


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.username is None and url.isascii():
            parts.port  # noqa: B018 - raises ValueError
            if not any(ord(each) <= 32 for each in url):
                return parts
    except ValueError:
        pass
    raise NotAllowed("it names an address that is no URL")


def _connection(url: str, reach: Reach, line: Line) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the host of `url`, or to a proxy, that is not open yet, and what to request on it."""
    parts = _split(url)
    host, port = (parts.hostname or ""), _port(parts)
    target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    if reach.is_secure and parts.scheme != "https":
        raise NotAllowed(f"it leads to {escape(host)} without TLS")
    proxy = _proxy_for(parts)
    if proxy is not None:
        _require_allowed(host, (), reach)
    near, near_port = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(near, near_port, timeout=STALL, context=_trust())
        if proxy:
            connection.set_tunnel(host, port)
    else:
        connection = http.client.HTTPConnection(near, near_port, timeout=STALL)
        target = f"http://{parts.netloc}{target}" if proxy else target

    def open_it(*_: object) -> socket.socket:
        return line.use(_open(near, near_port, None if proxy else reach))

    connection._create_connection = open_it  # type: ignore[attr-defined]
    return connection, target


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL, as for git."""
    found = getproxies_environment()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or proxy_bypass(parts.netloc, found):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _open(host: str, port: int, reach: Reach | None) -> socket.socket:
    """Connects to the address that was checked, so that a second look-up cannot give another one."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if reach is not None:
        _require_allowed(host, found, reach)
    failure: OSError | None = None
    for address in dict.fromkeys(found):
        try:
            return socket.create_connection((address, port), timeout=STALL)
        except OSError as error:
            failure = error
    raise failure or OSError("no address")


def _require_allowed(host: str, addresses: Sequence[str], reach: Reach) -> None:
    """Raises NotAllowed if an address is this machine's own, or a link's, and the upstream is not there itself."""
    if (literal := _literal(host)) and host != reach.home:
        addresses = [*addresses, literal]
    inner = {address for address in addresses if _is_inner(address)}
    if not inner or host == reach.home:
        return
    with contextlib.suppress(OSError):
        inner -= {str(info[4][0]) for info in socket.getaddrinfo(reach.home, None, type=socket.SOCK_STREAM)}
    if inner:
        raise NotAllowed(f"it leads to {escape(host)}, an address of this machine or its link")


def _literal(host: str) -> str:
    """The address that a host is in any form that a resolver knows without asking, or an empty string.

    A proxy resolves the host, and may be on this machine.
    """
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    if _address(host) is not None:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_inner(text: str) -> bool:
    found = _address(text)
    return found is None or found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast


def _trust() -> ssl.SSLContext:
    file, directory = trusted_files(os.environ)
    return ssl.create_default_context(cafile=file, capath=directory)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise Unreachable(f"its certificate cannot be trusted, or it speaks no TLS ({error.reason})") from None
    except TimeoutError:
        raise Unreachable(f"it did not answer for {STALL:g}s") from None
    except GitmirrorError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(escape(str(error) or type(error).__name__)[:200]) from None
