"""TLS in front of a plain upstream, with a certificate that is valid or invalid on demand."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key, as PEM files."""

    cert: Path
    key: Path


def make_certificate(place: Path, name: str, subject: str = "IP:127.0.0.1") -> Certificate:
    """Make a certificate with `openssl`, valid for ten years. `subject` is `IP:127.0.0.1` or `DNS:other.example`."""
    made = Certificate(place / f"{name}.pem", place / f"{name}.key")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    argv += ["-keyout", str(made.key), "-out", str(made.cert), "-days", "3650", "-subj", "/CN=tests"]
    subprocess.run([*argv, "-addext", f"subjectAltName={subject}"], check=True, capture_output=True)
    return made


class TlsFront:
    """Listens with TLS on a free port and carries bytes to `port` of the loopback. A context manager.

    The next connection gets `certificate`.
    """

    def __init__(self, port: int, certificate: Certificate) -> None:
        self.certificate = certificate
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> TlsFront:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._acceptor.join(60)

    def url(self, name: str) -> str:
        """Return the https URL of a repository."""
        return f"https://127.0.0.1:{self.port}/{name}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate.cert, self.certificate.key)
        with contextlib.suppress(OSError), plain:
            plain.settimeout(60)
            with (
                context.wrap_socket(plain, server_side=True) as guest,
                socket.create_connection(("127.0.0.1", self._target), timeout=60) as server,
            ):
                back = threading.Thread(target=_carry, args=(server, guest), daemon=True)
                back.start()
                _carry(guest, server)
                back.join(60)


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
