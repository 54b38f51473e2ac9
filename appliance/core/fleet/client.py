"""One connection to one NATS server. Imported when a fleet is configured, because it imports nats-py.

nats-py can connect to a list of servers and reconnect by itself, but then nobody learns which server said what, and
whoever waits for it waits without a bound. So `link` goes through the servers, and a connection is made for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.credentials import ServerAccess

# What it logs, it also reports by `error_cb`, which `link` tells in its own words and once.
logging.getLogger("nats").setLevel(logging.CRITICAL + 1)
# asyncio says so whenever a server hangs up, because nats-py begins TLS on a connection that was made without.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())

CONNECT = 2.0
"""Seconds that one server may take to answer."""
PING_EVERY = 3.0
"""Seconds between two pings; a server that missed two is given up."""


class CannotConnect(GitmirrorError):
    """One server could not be used; the hint says what to do about it."""


class OneServer(Client):
    """nats-py's client, which insists on TLS where it was asked for, and can sign without `nkeys`."""

    def __init__(self, access: ServerAccess, *, needs_tls: bool) -> None:
        super().__init__()
        self._needs_tls = needs_tls
        self.lost = asyncio.Event()
        # nats-py takes the public key only together with a seed, for which it imports nkeys, which needs C.
        self._public_nkey = access.credential.nkey if access.credential else None

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Asked before the credential is sent: nats-py goes on without TLS where the server offers none.
        if initial_connection and self._needs_tls and not info.get("tls_required"):
            raise nats.errors.Error("it offers no TLS")
        await super()._process_info(info, initial_connection)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What nats-py runs for this connection, which outlives a `close` that did not get far."""
        own = (self._reading_task, self._ping_interval_task, self._flusher_task, self._reconnection_task)
        return [task for task in own if task is not None]

    def abort(self) -> None:
        """Ends the connection without a word, for a server that answers nobody."""
        with contextlib.suppress(Exception):
            self._transport._bare_io_writer.transport.abort()  # type: ignore[union-attr]


async def connect(
    url: str,
    access: ServerAccess,
    *,
    tls_name: str | None = None,
    on_error: Callable[[Exception], None],
) -> OneServer:
    """Connects to one server within about CONNECT seconds. Raises CannotConnect.

    `tls_name` is the name in its certificate if it is not that of the URL. `on_error` gets what the server complains
    of later. `lost` of the connection is set when it is lost.
    """
    client = OneServer(access, needs_tls=urlsplit(url).scheme == "tls" or access.certificates is not None)
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def hear(error: Exception) -> None:
        # nats-py would go on trying the one server that it knows.
        if not failed.done():
            failed.set_result(error)
        on_error(error)

    async def closed() -> None:
        client.lost.set()

    connecting = asyncio.create_task(
        client.connect(servers=[url], **_options(access, tls_name), error_cb=hear, closed_cb=closed)
    )
    try:
        await asyncio.wait((connecting, failed), timeout=2 * CONNECT, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
            return client
        if failed.done():
            reason: BaseException = failed.result()
        else:
            reason = (connecting.exception() if connecting.done() else None) or TimeoutError()
    except asyncio.CancelledError:
        await _give_up(connecting, client)
        raise
    finally:
        failed.cancel()
    await _give_up(connecting, client)
    raise _explained(reason, access)


async def _give_up(connecting: asyncio.Task[None], client: OneServer) -> None:
    connecting.add_done_callback(_forget)
    connecting.cancel()
    # It may have begun tasks of the connection until it ends.
    await asyncio.wait((connecting,), timeout=0.5)
    await discard(client)


async def discard(client: OneServer) -> None:
    """Closes a connection, politely if the server still answers."""
    # A task of its own, because nats-py ignores being cancelled while it closes, and so would the caller.
    closing = asyncio.create_task(client.close())
    closing.add_done_callback(_forget)
    await asyncio.wait((closing,), timeout=0.5)
    closing.cancel()
    client.abort()
    for task in client.tasks:
        task.cancel()


def _forget(task: asyncio.Task[None]) -> None:
    """Takes the error of a task that nobody asks, which asyncio would print."""
    if not task.cancelled():
        task.exception()


def _options(access: ServerAccess, tls_name: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": access.name,
        "connect_timeout": CONNECT,
        "allow_reconnect": False,
        "ping_interval": PING_EVERY,
        "max_outstanding_pings": 2,
    }
    if access.certificates is not None:
        options["tls"] = access.certificates
    if tls_name is not None:
        options["tls_hostname"] = tls_name
    credential = access.credential
    if credential is not None and credential.seed is not None:
        options["signature_cb"] = credential.answer
    elif credential is not None:
        options |= {"user": credential.user, "password": credential.password}
    return options


def _explained(error: BaseException, access: ServerAccess) -> CannotConnect:
    """What went wrong with a server in an operator's words."""
    text = str(error).removeprefix("nats: ").strip("'")
    mend = "mend [fleet] servers, or start nats-server there"
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message or "certificate verify failed"
        return CannotConnect(f"its certificate is refused: {reason}", hint="mend [fleet] tls_ca, or the certificate")
    if isinstance(error, ssl.SSLError):
        return CannotConnect(f"TLS failed: {error.reason or text}", hint="compare [fleet] tls_ca with the server's tls")
    if text == "it offers no TLS":
        return CannotConnect(text, hint="give the server a certificate, or write nats:// and no tls_ca in [fleet]")
    if isinstance(error, socket.gaierror):
        return CannotConnect(f"its name cannot be resolved: {error.strerror}", hint=mend)
    if isinstance(error, TimeoutError):
        return CannotConnect(f"it did not answer within {CONNECT:.0f} s", hint=mend)
    if isinstance(error, OSError):
        # asyncio has words of its own for several addresses.
        reason = error.strerror if error.strerror and "Connect call" not in error.strerror else _os_words(error)
        return CannotConnect(reason, hint=mend)
    if "authorization violation" in text.lower():
        if access.credential is None:
            return CannotConnect("it demands a credential", hint="set [fleet] credentials_file")
        return CannotConnect(
            "it refused the credential", hint=f"mend {access.credential_file}, or the users of nats-server"
        )
    if "empty response" in text or "INFO" in text:
        return CannotConnect("it does not speak NATS", hint=mend)
    return CannotConnect(f"it said: {text or type(error).__name__}", hint="see the log of nats-server")


def _os_words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else "it cannot be reached"
