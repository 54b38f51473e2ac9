"""Receivers of alerts and events: a script that appends to a file, and an HTTP server that stores what is posted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def script(path: Path, *lines: str) -> list[str]:
    """Write a shell script and return the command that runs it."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return [str(path)]


def documents(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, without one that is being written."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class Catcher:
    """Stores the bodies of POSTs, in order. `status` is the status of its responses."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.status = 200
        self.refused = 0
        self.url = ""


@contextmanager
def catching() -> Iterator[Catcher]:
    """A catcher that listens for as long as the block lasts."""
    catcher = Catcher()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if catcher.status == 200:
                catcher.bodies.append(body)
            else:
                catcher.refused += 1
            self.send_response(catcher.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        catcher.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        yield catcher
        server.shutdown()
