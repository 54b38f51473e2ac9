"""An https upstream for the benchmark: `git http-backend` behind a small server, in a process of its own.

python -m benchlib.https ROOT PORT CERT KEY
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


def make_certificate(place: Path) -> tuple[Path, Path]:
    """Makes a self-signed certificate for 127.0.0.1 and its key. Raises CalledProcessError, FileNotFoundError."""
    cert, key = place / "cert.pem", place / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    argv += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = ""

    def do_GET(self) -> None:
        """Answers `info/refs`."""
        self._answer(b"")

    def do_POST(self) -> None:
        """Answers `git-upload-pack`. git sends a chunked body only for more than a megabyte."""
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""

    def _answer(self, body: bytes) -> None:
        split = urlsplit(self.path)
        repo, _, service = split.path[1:].partition("/info/refs" if self.command == "GET" else "/git-upload-pack")
        inner = split.path[1 + len(repo) :] + service
        env = os.environ | {
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": f"/{repo.removesuffix('.git')}.git{inner}",
            "QUERY_STRING": split.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        argv = ["git", "-c", "safe.directory=*", "http-backend"]
        head, _, answer = subprocess.run(argv, env=env, input=body, capture_output=True).stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in (fields | {"Content-Length": str(len(answer))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)


def main(argv: Sequence[str]) -> None:
    """Serves until it is killed."""
    root, port, cert, key = argv
    _Handler.root = root
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), _Handler)
    # Each connection's own thread does the handshake.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
